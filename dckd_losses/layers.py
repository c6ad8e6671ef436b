"""The layers of a VQGAN's encoder, under taming-transformers' tensor names."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from dckd_losses.ops.conv import frozen_conv2d, halving_conv2d, tf32_proof
from dckd_losses.ops.norm import group_norm_silu

GROUPS = 32  # of every GroupNorm in taming-transformers
EPS = 1e-6  # of every GroupNorm in taming-transformers


class Fusible:
    """A layer whose operation has a fused twin."""

    fused = False

    @property
    def use_fused(self) -> bool:
        """If `fused` is set, except where torch.compile traces."""
        return self.fused and not torch.compiler.is_compiling()


class Conv2d(Fusible, nn.Conv2d):
    """A convolution in the precision of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x.to(self.weight.dtype), self.weight)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        bias, padding = cast(Tensor, self.bias), int(self.padding[0])
        return frozen_conv2d(x, weight, bias, padding, fused=self.use_fused)


class InputConv2d(Conv2d):
    """The first convolution, which no setting of TF32 makes less exact than float32.

    Images that are rounded to TF32 are closer to each other than a good student is to its teacher.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(*tf32_proof(x.to(self.weight.dtype), self.weight))


class HalvingConv2d(Conv2d):
    """3x3, of stride 2, padded on the right and at the bottom only: H and W are halved."""

    def forward(self, x: Tensor) -> Tensor:
        return halving_conv2d(x, self.weight, cast(Tensor, self.bias), fused=self.use_fused)


class GroupNorm(Fusible, nn.GroupNorm):
    """GroupNorm, and the SiLU after it if there is one."""

    def __init__(self, channels: int, silu: bool = True) -> None:
        super().__init__(GROUPS, channels, eps=EPS)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        affine = self.weight, self.bias
        return group_norm_silu(x, *affine, GROUPS, EPS, self.silu, fused=self.use_fused)


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

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        skip = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        # With gradient not in place: hooks on modules would forbid it.
        out: Tensor = h + skip if torch.is_grad_enabled() else h.add_(skip)
        return out


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
        # Scaled by 1/sqrt(C), most of it before the product, which float16 cannot always hold.
        before, after = _scales(q.shape[2])
        scores = matmul(q * before, k.transpose(1, 2)) * after
        h = matmul(scores.softmax(2), v)
        out: Tensor = x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return out


def _scales(channels: int) -> tuple[float, float]:
    """Two factors whose product is 1/sqrt(C); the first is a power of two and rounds nothing."""
    before = 2.0 ** -((channels.bit_length()) // 2)
    return before, channels**-0.5 / before


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product (B, L, M) x (B, M, N) whose backward ignores autocast, as its forward does.

    torch's fused attention has no second derivative, and autocast reaches its plain backward.
    """
    if torch.compiler.is_compiling():
        return a @ b
    out: Tensor = _MatMul.apply(a, b)
    return out


class _MatMul(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return matmul(grad, b.transpose(1, 2)), matmul(a.transpose(1, 2), grad)


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

    def first_block(self, x: Tensor) -> Tensor:
        """The first block's output, which the losses compare."""
        out: Tensor = self.block[0](x)
        return out

    def remaining_blocks(self, x: Tensor) -> Tensor:
        """From the first block's output to the end of the level, before it is halved."""
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
