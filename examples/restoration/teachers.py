"""Trained teachers of the paper's networks: from a file, a URL or by name, read without pickle."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from dckd_losses.checkpoint import read_safetensors, refusing

from . import backbones
from .sources import KNOWN, fetch
from .specifications import teacher_of


def load(source: str, backbone: str, scale: int) -> nn.Module:
    """A trained network, frozen and in eval mode.

    Args:
        source: A path, a URL or one of `KNOWN`. Files are those of the networks' authors, of
            BasicSR and its kind (`.pth`, `.pt`, `.ckpt`), or `.safetensors`, ours among them.
        backbone: Which of the paper's networks it has to be.
        scale: Output size over input size it has to have.

    Raises:
        ValueError: The source is another network or has other sizes; names both. Or the network
            is not for this scale.
        RuntimeError: The file is missing, damaged, no weights, a pickle of more than tensors, or
            cannot be fetched. Or spandrel cannot be imported.
    """
    model = backbones.build(backbone, scale)
    known = KNOWN.get(source)
    if known is not None and (known.backbone, known.scale) != (backbone, scale):
        raise ValueError(
            f"{source} is {known.backbone} for x{known.scale}; expected {backbone} for x{scale}"
        )
    url = known.url if known else source
    if "://" in url:
        path = fetch(url, known.sha256 if known else None)
        tensors = _read_fetched(path)
    else:
        path = Path(source)
        tensors = _read(path)
    _fill(model, tensors, f"{path} holds", f"expected {backbone} for x{scale}")
    return model.eval().requires_grad_(False)


def load_for(student: str, source: str | None, scale: int) -> nn.Module:
    """The teacher that Table 1 gives a student, see `load`.

    Raises:
        ValueError: No source, or a scale that the student is not for. And as `load` does.
        RuntimeError: As `load` does.
    """
    backbone = teacher_of(student)
    backbones.specified(student, scale)
    if source is None:
        raise ValueError(
            f"{student} has no embedded teacher; expected {backbone} for x{scale} by --teacher: a "
            f"file, a URL or one of {', '.join(KNOWN)}"
        )
    return load(source, backbone, scale)


def _read_fetched(path: Path) -> dict[str, Tensor]:
    """Read what was fetched; what cannot be read is not kept, as it may have been cut short."""
    try:
        return _read(path)
    except RuntimeError as error:
        path.unlink()
        raise RuntimeError(f"{error}. It has been removed: the next try fetches it anew") from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, under the authors' names."""
    import spandrel  # here: torchvision is heavy

    if not path.is_file():
        raise RuntimeError(f"{path}: no such file, nor one of {', '.join(KNOWN)}")
    with refusing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spandrel tries .pt as TorchScript, which is deprecated
        if path.suffix == ".safetensors":
            content = spandrel.canonicalize_state_dict(read_safetensors(path)[0])
        else:
            content = spandrel.ModelLoader().load_state_dict_from_file(path)
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if not tensors:
            raise ValueError("it holds no tensors")
    return tensors


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], seen: str, expected: str) -> None:
    """Load the parameters of exactly this network.

    Buffers are left as they are: these networks' are constants, and SwinIR's masks, of which one
    size is kept, say nothing but on which patches a file was trained.
    """
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}
    found = {name: tuple(value.shape) for name, value in tensors.items() if name not in buffers}
    if found != wanted:
        odd = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise ValueError(
            f"{seen} {_described(tensors)}; {expected}, {_size(model):,} parameters "
            f"({odd}: {found.get(odd, 'none')} there, {wanted.get(odd, 'none')} here)"
        )
    model.load_state_dict({name: tensors[name] for name in wanted}, strict=False)


def _described(tensors: Mapping[str, Tensor]) -> str:
    """Which network tensors are of, as far as spandrel can tell."""
    import spandrel
    from spandrel_extra_arches import EXTRA_REGISTRY

    for registry in (spandrel.MAIN_REGISTRY, EXTRA_REGISTRY):
        try:
            found = registry.load(dict(tensors))
        except Exception:  # spandrel tries to build whatever a few names suggest
            continue
        size = _size(found.model)
        return f"{found.architecture.name} for x{found.scale}, {size:,} parameters"
    return f"an unknown network of {len(tensors)} tensors"


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
