"""What weights have a name, where they can be had, and where they are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dckd_losses.architecture import Architecture

COMPACT = Path(__file__).parents[1] / "assets" / "compact.safetensors"

# taming-transformers, configs/imagenet_vqgan.yaml, which both published f16 networks share
F16 = Architecture(
    stem=128,
    channels=(128, 128, 256, 256, 512),
    blocks=2,
    attention=(False, False, False, False, True),
    z_channels=256,
    code_channels=256,
    codes=1024,
)


@dataclass(frozen=True)
class Source:
    """A complete taming-transformers checkpoint on the Hugging Face Hub.

    Attributes:
        repository: on the Hub.
        file: in that repository.
        size: for people.
        sha256: of the file, where it has been published; otherwise the first fetch records it.
        architecture: of its encoder.
        elsewhere: other public places that are known to offer these weights.
        revision: the commit, where one is known to have them; otherwise the branch.
    """

    repository: str
    file: str
    size: str
    sha256: str | None
    architecture: Architecture
    elsewhere: tuple[str, ...]
    revision: str = "main"

    @property
    def url(self) -> str:
        """The file's public address."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.file}"


SOURCES = {
    "vqgan-f16-1024": Source(
        repository="llvictorll/Maskgit-pytorch",
        file="pretrained_maskgit/VQGAN/last.ckpt",
        size="958 MB",
        sha256=None,
        architecture=F16,
        elsewhere=(
            "https://heibox.uni-heidelberg.de/f/140747ba53464f49b476/?dl=1",
            "https://github.com/Eleiber/VQGAN-Mirrors/releases/download/0.0.1/"
            "vqgan_imagenet_f16_1024.ckpt",
        ),
    ),
    "vqgan-f16-16384": Source(
        repository="Somnai/pytti-vqgan-checkpoints",
        file="imagenet/imagenet.ckpt",
        size="980 MB",
        sha256="845a68805098cb666420d5db93df53f3a3b6dd443e6dd85c05759c5b998cd663",
        architecture=replace(F16, codes=16384),
        elsewhere=(
            "https://huggingface.co/pxlpshr/pytti-models/resolve/main/vqgan/imagenet.ckpt",
            "https://heibox.uni-heidelberg.de/f/867b05fc8c4841768640/?dl=1",
            "https://github.com/mehdidc/feed_forward_vqgan_clip/releases/download/0.1/"
            "vqgan_imagenet_f16_16384.ckpt",
        ),
        revision="debc22c8f285c7734980c464ff992d335dde6e9a",
    ),
}
NAMES = ("compact", *SOURCES)


def home() -> Path:
    """The folder of converted weights: the environment variable DCKD_HOME, or a cache folder."""
    return Path(os.environ.get("DCKD_HOME") or "~/.cache/dckd-losses").expanduser()


def place(name: str) -> Path:
    """The file that holds, or once fetched will hold, the weights of a name.

    Raises:
        ValueError: the name is none of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"unknown weights {name!r}: expected one of {', '.join(NAMES)}")
    return COMPACT if name == "compact" else home() / f"{name}.safetensors"


def check_promise(name: str, seen: Architecture, path: Path) -> None:
    """Refuse a file whose network is not the one that its name promises; other names promise none.

    Raises:
        RuntimeError: says in what the network in the file differs.
    """
    if name not in SOURCES:
        return
    promised = SOURCES[name].architecture
    different = [
        f"{field.name} {getattr(seen, field.name)} where {name} has {getattr(promised, field.name)}"
        for field in fields(Architecture)
        if getattr(seen, field.name) != getattr(promised, field.name)
    ]
    if different:
        raise RuntimeError(f"{path} is not {name}: it has {', '.join(different)}")
