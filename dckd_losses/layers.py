"""The layers of a VQGAN's encoder, under taming-transformers' tensor names."""

from __future__ import annotations

from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from dckd_losses.architecture import EPS, GROUPS
from dckd_losses.ops import fused, reference
from dckd_losses.ops.kernels import triton_takes


def _operations(lean: bool) -> ModuleType:
    return fused if lean and not torch.compiler.is_compiling() else reference


class Conv2d(nn.Conv2d):
    """A convolution that the chosen operations carry out, in the precision of its weight."""

    lean = False  # fused operations

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        out: Tensor = _operations(self.lean).frozen_conv2d(
            x, self.weight, self.bias, int(self.padding[0])
        )
        return out


class HalvingConv2d(Conv2d):
    """3x3, of stride 2, padded on the right and at the bottom only: H and W are halved."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _operations(self.lean).halving_conv2d(x, self.weight, self.bias)
        return out


class GroupNorm(nn.GroupNorm):
    """GroupNorm and the SiLU after it if there is one, which the chosen operations carry out."""

    lean = False  # fused operations

    def __init__(self, channels: int, silu: bool = True) -> None:
        super().__init__(GROUPS, channels, eps=EPS)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _operations(self.lean).group_norm_silu(
            x, self.weight, self.bias, GROUPS, EPS, self.silu
        )
        return out

    def then(self, conv: Conv2d, x: Tensor) -> Tensor:
        """This norm, SiLU and a 3x3 convolution."""
        out: Tensor = _operations(self.lean).group_norm_silu_conv2d(
            x, self.weight, self.bias, GROUPS, EPS, conv.weight, conv.bias
        )
        return out

    def add(self, x: Tensor, skip: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`x + skip`, which may overwrite x, and what this norm makes of it where that is free."""
        if self.lean and not torch.compiler.is_compiling() and triton_takes(x.device, x.dtype):
            total, normed = fused.add_group_norm_silu(x, skip, self.weight, self.bias, GROUPS, EPS)
            return total, [normed]
        x += skip
        return x, []


class ResidualBlock(nn.Module):
    """Two norm-SiLU-convolution stages and a skip connection; (B, C, H, W) keeps H and W."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels)
        self.conv1 = Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, normed: list[Tensor] | None = None) -> Tensor:
        h, skip = self.summands(x, normed or [])
        h += skip
        return h

    def summands(self, x: Tensor, normed: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The two that make the output, the second of which may be x itself.

        Args:
            x: (B, C, H, W).
            normed: what `norm1` makes of x where that is known, else empty. It is taken out, so
                that it can be let go before the block ends.
        """
        h = self.conv1(normed.pop()) if normed else self.norm1.then(self.conv1, x)
        h = self.norm2.then(self.conv2, h)
        return h, self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x


class Attention(nn.Module):
    """Single-head self-attention over all positions with a skip connection; (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, silu=False)
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
    """Halve H and W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = HalvingConv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
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

    def first(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The first block's output, which the losses look at, and the next norm's where it follows.

        Sum and norm in one go spare a pass over memory.
        """
        first, *others = self._blocks()
        if len(self.attn) or not others:
            return first(x), []
        return others[0].norm1.add(*first.summands(x, []))

    def rest(self, x: Tensor, normed: list[Tensor] | None = None) -> Tensor:
        """Continue from what `first` gave to the end of the level."""
        for i, block in enumerate(self._blocks()):
            x = block(x, normed) if i else x
            x = self.attn[i](x) if len(self.attn) else x
        return x

    def _blocks(self) -> list[ResidualBlock]:
        return cast("list[ResidualBlock]", list(self.block))


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
