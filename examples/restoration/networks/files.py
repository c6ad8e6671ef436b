"""Files of networks: those written here, and trained teachers by path, URL or name."""

import hashlib
import socket
import sys
from collections.abc import Mapping, Sequence
from operator import gt
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn

from dckd_losses.weights import cache_dir, read_checkpoint
from dckd_losses.weights.files import DIGEST, read_safetensors, write_safetensors

from .build import SPECIFICATIONS, build, specified, teacher_of
from .detected import detect
from .own import FACTS, fill, is_own, recall
from .small import ResidualNetwork, small

SILENCE = 30.0  # seconds
SHAPE = ("channels", "blocks", "scale")  # what a small network's metadata must say to rebuild it

SWINIR_URL = (
    "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/001_classicalSR_DIV2K_s48w8"
)
RESTORMER_URL = "https://github.com/swz30/Restormer/releases/download/v1.0"
NAFNET_URL = "https://huggingface.co/nyanko7/nafnet-models/resolve/main/NAFNet"  # a mirror
SWINIR_X4_SHA256 = "129dc773ba2d4c07f3eb0bb116fbe692011b7cc072d9ca12797cd3748198610a"
NAFNET_SHA256 = "19394e6155d12ef6371d1d57496f87f0ec88f92bdffa27c0792690722d5d1a5c"


class Weights(NamedTuple):
    """The network and the scale of a trained teacher, its URL, and its sha256 where published."""

    backbone: str
    scale: int
    url: str
    sha256: str | None = None


KNOWN = {  # the paper's teachers; RCAN's lie in a Google Drive folder, which has no plain address
    "swinir-x2": Weights("swinir-teacher", 2, f"{SWINIR_URL}_SwinIR-M_x2.pth"),
    "swinir-x3": Weights("swinir-teacher", 3, f"{SWINIR_URL}_SwinIR-M_x3.pth"),
    "swinir-x4": Weights("swinir-teacher", 4, f"{SWINIR_URL}_SwinIR-M_x4.pth", SWINIR_X4_SHA256),
    "nafnet-gopro": Weights("nafnet-teacher", 1, f"{NAFNET_URL}-GoPro-width32.pth", NAFNET_SHA256),
    "restormer-gopro": Weights("restormer-teacher", 1, f"{RESTORMER_URL}/motion_deblurring.pth"),
    "restormer-rain13k": Weights("restormer-teacher", 1, f"{RESTORMER_URL}/deraining.pth"),
}


def fetch(url: str, sha256: str | None = None) -> Path:
    """The file behind a URL, in the folder `teachers` of DCKD_HOME; only the first use fetches it.

    One process fetches while the others wait. A file appears under its name once it is complete. A
    server that is silent for `SILENCE` seconds is given up.

    Raises:
        RuntimeError: It cannot be fetched, or has another sha256; nothing of it is kept.
    """
    name = url.partition("?")[0].rpartition("/")[2]
    # two files of one name are two files
    path = cache_dir() / "teachers" / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    if path.is_file():
        return path
    usual = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(SILENCE)  # torch.hub has no limit of its own
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                show = sys.stderr.isatty()
                torch.hub.download_url_to_file(url, str(path), sha256, progress=show)
    except Exception as error:  # the system's, urllib's, torch.hub's
        raise RuntimeError(
            f"{url} cannot be fetched ({type(error).__name__}: {error}): fetch it on a machine "
            f"with a network and pass its path, or put it here as {path}"
        ) from error
    finally:
        socket.setdefaulttimeout(usual)
    return path


def save(
    model: nn.Module,
    path: str | Path,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    **metadata: object,
) -> None:
    """Write a network as safetensors, at once or not at all; further facts are kept as strings.

    `tensors` take the place of the network's own.
    """
    path = Path(path)
    facts = metadata | (FACTS.get(model) or {"backbone": model.backbone, "scale": model.scale})
    if isinstance(model, ResidualNetwork):
        facts |= {key: getattr(model, key) for key in SHAPE}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {key: str(value) for key, value in facts.items()}
    write_safetensors(model.state_dict() if tensors is None else tensors, path, **text)


def load(path: str | Path) -> nn.Module:
    """Read a network that `save` wrote, in eval mode.

    Raises:
        RuntimeError: The file is missing, damaged, without the metadata of `save`, or its tensors
            do not fit them; names the file. Or spandrel is needed and cannot be imported.
    """
    tensors, metadata = read_safetensors(Path(path))
    name = metadata.get("backbone", "")
    try:
        if own := is_own(name):
            model = recall(metadata)
        elif name in SPECIFICATIONS:
            model = build(name, int(metadata["scale"]))
        else:
            shape = {key: int(metadata[key]) for key in SHAPE}
            blocks = len({name.split(".")[1] for name in tensors if name.startswith("body.")})
            claimed = shape["channels"], shape["blocks"], shape["scale"] ** 2
            sizes = len(tensors["head.weight"]), blocks, len(tensors["tail.weight"])
            if any(map(gt, claimed, sizes)):  # before any memory is asked for
                raise ValueError("they claim more than the tensors are")
            model = small(**shape)
    except (KeyError, ValueError) as error:
        if own:
            raise RuntimeError(f"{path}: {error}") from error
        raise RuntimeError(
            f"{path}: got metadata {metadata}; expected {', '.join(SHAPE)} of these tensors, or "
            f"a scale and one of the backbones {', '.join(SPECIFICATIONS)}"
        ) from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RuntimeError(f"{path}: tensors do not fit metadata {metadata}: {error}") from error
    if DIGEST not in metadata:  # a damaged name of it must not pass for a file that never had one
        raise RuntimeError(f"{path}: got no {DIGEST}; expected a network that the examples saved")
    return model.eval()


def open_network(source: str, scale: int, network: Sequence[str] = ()) -> nn.Module:
    """Any trained network, frozen and in eval mode.

    Args:
        source: A file of weights, a URL of one, or one of `KNOWN`. Files are those of the networks'
            authors, of BasicSR, Lightning and the like (`.pth`, `.pt`, `.ckpt`), `.safetensors`, or
            students.
        scale: Output size over input size it has to have.
        network: Its code and `key=value` options, or a name of `SPECIFICATIONS`. By default a
            student's file says it, and spandrel recognises others by their tensors.

    Raises:
        ValueError: It is another network or for another scale; says what it is.
        RuntimeError: The file is missing, damaged, no weights, a pickle of more than tensors, or
            cannot be fetched. Or spandrel cannot be imported.
    """
    known = KNOWN.get(source)
    name, *options = network or [known.backbone if known else ""]
    papers = name in SPECIFICATIONS
    if name and not is_own(name) and (options or not papers):
        raise ValueError(
            f"got network {' '.join(network)}; expected package.module:callable or "
            f"file.py:callable with key=value options, or one of {', '.join(SPECIFICATIONS)}"
        )
    if known and papers and (known.backbone, known.scale) != (name, scale):
        raise ValueError(
            f"{source} is {known.backbone} for x{known.scale}; expected {name} for x{scale}"
        )
    model = build(name, scale, options) if name else None  # what is wrong with it is said first
    url = known.url if known else source
    path = fetch(url, known.sha256 if known else None) if "://" in url else Path(source)
    if not path.is_file():
        seen = "is a folder" if path.is_dir() else "no such file"
        raise RuntimeError(f"{path}: {seen}; expected a file or a URL{_names_of(name, scale)}")
    try:
        tensors, facts = read_checkpoint(path), {}
        if path.suffix == ".safetensors":
            facts = read_safetensors(path)[1]
        if not tensors:
            raise RuntimeError(f"{path} is not such weights: it holds no tensors")
    except RuntimeError as error:
        if "://" not in url:
            raise
        path.unlink()  # it may have been cut short
        again = "It has been removed: the next try fetches it anew"
        raise RuntimeError(f"{error}. {again}") from error
    if model is not None:
        # the paper's networks have constants only: SwinIR's masks, say, differ with the patches
        fill(model, tensors, str(path), f"{' '.join(network)} for x{scale}", buffers=not papers)
    elif "backbone" in facts:
        model, seen = load(path), int(facts["scale"])
        if seen != scale:
            raise ValueError(f"{source}: a network for x{seen}; expected one for x{scale}")
    else:
        model = detect(tensors, source, scale)
    return model.eval().requires_grad_(False)


def _names_of(backbone: str, scale: int) -> str:
    """The names of `KNOWN` for a network, or of a scale, as a list of what else would do."""
    names = [n for n, w in KNOWN.items() if w.scale == scale and backbone in ("", w.backbone)]
    return "".join(f" or {name}" for name in names)


def load_teacher(student: str, source: str | None, scale: int) -> nn.Module:
    """The teacher that Table 1 gives a student; raises as `open_network`, and for no source."""
    backbone = teacher_of(student)
    specified(student, scale)
    if source is None:
        raise ValueError(
            f"{student} has no embedded teacher; expected {backbone} for x{scale} by --teacher: "
            f"a file or a URL{_names_of(backbone, scale)}"
        )
    return open_network(source, scale, [backbone])
