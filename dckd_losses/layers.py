"""The layers of a VQGAN's encoder, under taming-transformers' tensor names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dckd_losses.architecture import EPS, GROUPS
from dckd_losses.ops import fused, reference


class Conv2d(nn.Conv2d):
    """A convolution that the chosen operations carry out."""

    lean = False  # fused operations

    def forward(self, x: Tensor) -> Tensor:
        ops = fused if self.lean and not torch.compiler.is_compiling() else reference
        out: Tensor = ops.frozen_conv2d(
            x, self.weight, self.bias, self.stride[0], int(self.padding[0])
        )
        return out


class NormSiLU(nn.GroupNorm):
    """GroupNorm and the SiLU after it, which the chosen operations carry out."""

    lean = False  # fused operations

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        ops = fused if self.lean and not torch.compiler.is_compiling() else reference
        out: Tensor = ops.group_norm_silu(x, self.weight, self.bias, GROUPS, EPS)
        return out


class ResidualBlock(nn.Module):
    """Two norm-SiLU-convolution stages and a skip connection; (B, C, H, W) keeps H and W."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = NormSiLU(channels)
        self.conv1 = Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = NormSiLU(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        h += self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return h


class Attention(nn.Module):
    """Single-head self-attention over all positions with a skip connection; (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=EPS)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = (
            q @ k.transpose(1, 2) * q.shape[2] ** -0.5
        )  # torch's fused one has no 2nd derivative
        h = scores.softmax(2) @ v
        out: Tensor = x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """Halve H and W by a strided convolution, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Stage(nn.Module):
    """One resolution: residual blocks, each followed by attention where the level has it."""

    def __init__(self, channels: int, out: int, blocks: int, attention: bool, last: bool) -> None:
        super().__init__()
        widths = [channels] + [out] * (blocks - 1)
        self.block = nn.ModuleList(ResidualBlock(width, out) for width in widths)
        self.attn = nn.ModuleList(Attention(out) for _ in range(blocks if attention else 0))
        if not last:
            self.downsample = Downsample(out)

    def first(self, x: Tensor) -> Tensor:
        """The first block's output, which the losses look at."""
        out: Tensor = self.block[0](x)
        return out

    def rest(self, x: Tensor) -> Tensor:
        """Continue from the first block's output to the end of the level."""
        for i, block in enumerate(self.block):
            x = block(x) if i else x
            x = self.attn[i](x) if len(self.attn) else x
        return x


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out
