"""Networks by name: two small ones that train on a laptop, and the paper's; and their files."""

import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dckd_losses.checkpoint import read_safetensors, write_safetensors

from .residual import ResidualNetwork, ResidualSameSize, ResidualSR
from .specifications import SPECIFICATIONS, Specification

BACKBONES = {
    "tiny": {"channels": 12, "blocks": 3},  # the student: 9,492 parameters for x2
    "small": {"channels": 32, "blocks": 8},  # the teacher: 152,332 parameters for x2
}
NAMES = (*BACKBONES, *SPECIFICATIONS)
SHAPE = ("channels", "blocks", "scale")  # what a small network's metadata must say to rebuild it


def build(name: str, scale: int) -> nn.Module:
    """A fresh network.

    Args:
        name: One of `NAMES`.
        scale: Output size over input size: 1 or more for the small networks, 2 to 4 for SwinIR
            and RCAN, 1 for NAFNet and Restormer.

    Returns:
        (B, 3, H, W) in [0, 1] to (B, 3, H scale, W scale), not clamped; has attributes
        `backbone`, its name ("custom" for a small network of another shape), and `scale`.

    Raises:
        ValueError: Another name, or a scale that this network is not for.
        RuntimeError: spandrel, which has the paper's networks, cannot be imported.
    """
    if name in BACKBONES:
        return _small(**BACKBONES[name], scale=scale)
    specification = specified(name, scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spandrel makes torch speak of what it will deprecate
        architecture = getattr(_architectures(name), specification.architecture)
        model: nn.Module = architecture(scale=scale, **specification.settings)
    model.backbone = name
    return model


def specified(name: str, scale: int) -> Specification:
    """What one of the paper's networks is made of; ValueError where it is not for this scale."""
    if name not in SPECIFICATIONS:
        raise ValueError(f"got backbone {name!r}; expected one of {', '.join(NAMES)}")
    specification = SPECIFICATIONS[name]
    if scale not in specification.scales:
        scales = " or ".join(map(str, specification.scales))
        raise ValueError(f"got scale {scale} for {name}; expected {scales}")
    return specification


def save(model: nn.Module, path: str | Path, **metadata: object) -> None:
    """Write a network as safetensors, at once or not at all.

    Args:
        model: What `build` or `load` gave.
        path: The file; missing folders are made.
        metadata: Further facts, kept in the file as strings.
    """
    path = Path(path)
    facts = {**metadata, "backbone": _name(model), "scale": model.scale}
    if isinstance(model, ResidualNetwork):
        facts |= {key: getattr(model, key) for key in SHAPE}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(model.state_dict(), path, **{key: str(v) for key, v in facts.items()})


def load(path: str | Path) -> nn.Module:
    """Read a network that `save` wrote, in eval mode.

    Raises:
        RuntimeError: For a file that is missing, cut short, altered, not safetensors, without the
            metadata of `save`, or with tensors that do not fit them; names the file. Or spandrel
            is needed and cannot be imported.
    """
    tensors, metadata = read_safetensors(Path(path))
    try:
        if metadata.get("backbone") in SPECIFICATIONS:
            model = build(metadata["backbone"], int(metadata["scale"]))
        else:
            model = _small(**{key: int(metadata[key]) for key in SHAPE})
    except (KeyError, ValueError) as error:
        raise RuntimeError(
            f"{path}: got metadata {metadata}; expected whole numbers for {', '.join(SHAPE)}, or "
            f"a scale and one of the backbones {', '.join(SPECIFICATIONS)}"
        ) from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise RuntimeError(f"{path}: tensors do not fit metadata {metadata}: {error}") from error
    return model.eval()


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products, for one image of height x width pixels."""
    weight = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype))
    return int(counter.get_total_flops()) // 2


def _small(channels: int, blocks: int, scale: int) -> ResidualNetwork:
    """A network of one of the small kinds."""
    shape = channels, blocks
    model = ResidualSameSize(*shape) if scale == 1 else ResidualSR(*shape, scale)
    model.backbone = _name(model)
    return model


def _architectures(name: str) -> ModuleType:
    """The module of the paper's networks, not before one is asked for: torchvision is heavy."""
    try:
        from . import architectures
    except (ImportError, RuntimeError, OSError) as error:  # torchvision raises all of them
        raise RuntimeError(
            f"{name} is built by spandrel, which cannot be imported ({error}): pip install "
            "spandrel spandrel-extra-arches, and the torchvision that belongs to torch "
            f"{torch.__version__}, from the same index"
        ) from error
    return architectures


def _name(model: nn.Module) -> str:
    if not isinstance(model, ResidualNetwork):
        return str(model.backbone)
    shape = {"channels": model.channels, "blocks": model.blocks}
    return next((name for name, known in BACKBONES.items() if known == shape), "custom")
