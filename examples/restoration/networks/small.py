"""Small residual networks that train on a laptop."""

import torch.nn.functional as F
from torch import Tensor, nn

CELL = 2  # pixels a side that a network for images of one size treats as one
BACKBONES = {
    "tiny": {"channels": 12, "blocks": 3},  # the student: 9,492 parameters for x2
    "small": {"channels": 32, "blocks": 8},  # the teacher: 152,332 parameters for x2
    "medium": {"channels": 16, "blocks": 8},  # 39,308 parameters for x2
}


def small(channels: int, blocks: int, scale: int) -> "ResidualNetwork":
    """The network of this shape for a scale."""
    shape = channels, blocks
    return ResidualSameSize(*shape) if scale == 1 else ResidualSR(*shape, scale)


class ResidualBlock(nn.Module):
    """Two convolutions around a ReLU, added to their input; no normalisation (EDSR, 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Refine features, (B, channels, H, W)."""
        residual: Tensor = self.layers(x)
        return x + residual


class ResidualNetwork(nn.Module):
    """What the small networks have in common: convolutions around residual blocks.

    The last convolution starts at zero, so an untrained network returns its input, enlarged, and
    the first updates improve on that. `inputs` and `outputs` are channels of the first and the last
    convolution.
    """

    def __init__(self, channels: int, blocks: int, scale: int, inputs: int, outputs: int) -> None:
        super().__init__()
        if min(channels, blocks, scale) < 1:
            raise ValueError(
                f"got channels={channels}, blocks={blocks}, scale={scale}; expected 1 or more each"
            )
        self.channels, self.blocks, self.scale = channels, blocks, scale
        names = {tuple(shape.values()): name for name, shape in BACKBONES.items()}
        self.backbone = names.get((channels, blocks), "custom")
        self.head = conv(inputs, channels)
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.tail = conv(channels, outputs)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def correction(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        correction: Tensor = self.tail(self.body(self.head(x)))
        return correction


class ResidualSR(ResidualNetwork):
    """Adds detail to the bicubic upsampling of its input.

    Shape: (B, 3, H, W) in [0, 1] to (B, 3, H scale, W scale), not clamped.
    """

    def __init__(self, channels: int, blocks: int, scale: int) -> None:
        super().__init__(channels, blocks, scale, inputs=3, outputs=3 * scale**2)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a batch."""
        detail = F.pixel_shuffle(self.correction(lq), self.scale)
        return detail + F.interpolate(lq, scale_factor=self.scale, mode="bicubic")


class ResidualSameSize(ResidualNetwork):
    """Adds a correction to its input, of which it sees cells of 2 x 2 pixels as one.

    That is a quarter of the cost and twice the sight, which blur and streaks of rain call for.

    Shape: (B, 3, H, W) in [0, 1] to the same, not clamped; odd sizes are padded and cropped inside.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__(channels, blocks, 1, inputs=3 * CELL**2, outputs=3 * CELL**2)

    def forward(self, lq: Tensor) -> Tensor:
        """Restore a batch."""
        height, width = lq.shape[-2:]
        whole = F.pad(lq, (0, -width % CELL, 0, -height % CELL), mode="replicate")
        correction = self.correction(F.pixel_unshuffle(whole, CELL))
        return lq + F.pixel_shuffle(correction, CELL)[..., :height, :width]


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
