"""A small residual super-resolution network that trains on a laptop."""

import torch.nn.functional as F
from torch import Tensor, nn


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
