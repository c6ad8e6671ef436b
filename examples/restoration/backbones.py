"""Small residual super-resolution networks: a student and a teacher that train on a laptop."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dckd_losses.checkpoint import read_safetensors, write_safetensors

BACKBONES = {
    "tiny": {"channels": 12, "blocks": 3},  # the student: 9,492 parameters for x2
    "small": {"channels": 32, "blocks": 8},  # the teacher: 152,332 parameters for x2
}
SHAPE = ("channels", "blocks", "scale")  # what a file's metadata must say to rebuild the network


class ResidualBlock(nn.Module):
    """Two convolutions around a ReLU, added to their input; no normalisation (EDSR, 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Refine features, (B, channels, H, W)."""
        residual: Tensor = self.layers(x)
        return x + residual


class ResidualSR(nn.Module):
    """Adds detail to the bicubic upsampling of its input.

    The last convolution starts at zero, so an untrained network is bicubic interpolation and the
    first updates improve on it.

    Args:
        channels: Width.
        blocks: Residual blocks.
        scale: Output size over input size.

    Shape:
        (B, 3, H, W) in [0, 1] to (B, 3, H scale, W scale), not clamped.

    Raises:
        ValueError: Where an argument is below 1.
    """

    def __init__(self, channels: int, blocks: int, scale: int) -> None:
        super().__init__()
        if min(channels, blocks, scale) < 1:
            raise ValueError(
                f"got channels={channels}, blocks={blocks}, scale={scale}; expected 1 or more each"
            )
        self.channels, self.blocks, self.scale = channels, blocks, scale
        self.head = conv(3, channels)
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.tail = conv(channels, 3 * scale**2)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a batch."""
        detail = F.pixel_shuffle(self.tail(self.body(self.head(lq))), self.scale)
        return detail + F.interpolate(lq, scale_factor=self.scale, mode="bicubic")


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def build(name: str, scale: int) -> ResidualSR:
    """A fresh network of `BACKBONES` by name; ValueError for another name."""
    if name not in BACKBONES:
        raise ValueError(f"got backbone {name!r}; expected one of {', '.join(BACKBONES)}")
    return ResidualSR(**BACKBONES[name], scale=scale)


def save(model: ResidualSR, path: str | Path, **metadata: object) -> None:
    """Write a network as safetensors, at once or not at all.

    Args:
        model: The network.
        path: The file; missing folders are made.
        metadata: Further facts, kept in the file as strings.
    """
    path = Path(path)
    facts = {**metadata, "backbone": _name(model)}
    facts |= {key: getattr(model, key) for key in SHAPE}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(model.state_dict(), path, **{key: str(v) for key, v in facts.items()})


def load(path: str | Path) -> ResidualSR:
    """Read a network that `save` wrote, in eval mode.

    Raises:
        RuntimeError: For a file that is missing, cut short, altered, not safetensors, without the
            metadata of `save`, or with tensors that do not fit them; names the file.
    """
    tensors, metadata = read_safetensors(Path(path))
    try:
        model = ResidualSR(**{key: int(metadata[key]) for key in SHAPE})
        model.load_state_dict(tensors)
    except (KeyError, ValueError) as error:
        raise RuntimeError(
            f"{path}: got metadata {metadata}; expected whole numbers for {', '.join(SHAPE)}"
        ) from error
    except RuntimeError as error:
        raise RuntimeError(f"{path}: tensors do not fit metadata {metadata}: {error}") from error
    return model.eval()


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of the convolutions for one LR image of height x width pixels."""
    weight = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype))
    return int(counter.get_total_flops()) // 2


def _name(model: ResidualSR) -> str:
    shape = {"channels": model.channels, "blocks": model.blocks}
    return next((name for name, known in BACKBONES.items() if known == shape), "custom")
