"""The encoder half of a VQGAN (Esser et al. 2021) under taming-transformers' tensor names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dckd_losses.architecture import EPS, GROUPS, LEVELS, Architecture
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


class Encoder(nn.Module):
    """Images to latent vectors, in two halves that meet at the last level's first block."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        widths = (a.stem, *a.channels)
        self.conv_in = Conv2d(3, a.stem, 3, padding=1)
        self.down = nn.ModuleList(
            Stage(widths[i], widths[i + 1], a.blocks, a.attention[i], last=i == LEVELS - 1)
            for i in range(LEVELS)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = NormSiLU(widths[-1])
        self.conv_out = Conv2d(widths[-1], a.z_channels, 3, padding=1)

    def levels(self, x: Tensor) -> Iterator[Tensor]:
        """Images to the first residual block's output at each resolution, as they appear."""
        x = self.conv_in(x)
        *stages, last = self._stages()
        for stage in stages:
            x = stage.first(x)
            yield x
            x = stage.downsample(stage.rest(x))
        yield last.first(x)

    def forward(self, last_level: Tensor) -> Tensor:
        """The last of `levels` to latent vectors (B, Z, h, w)."""
        h = self.mid(self._stages()[-1].rest(last_level))
        out: Tensor = self.conv_out(self.norm_out(h))
        return out

    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.down))


class Codebook(nn.Module):
    """The quantiser's codes under taming's name `quantize.embedding.weight`."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def forward(self, z: Tensor) -> Tensor:
        """`2<z, e_k> - |e_k|^2` for every code k: (B, D, h, w) to (B, K, h, w)."""
        codes = self.embedding.weight
        with torch.autocast(z.device.type, enabled=False):  # distances need float32's digits
            weight = 2 * codes[:, :, None, None]
            return F.conv2d(z.to(codes.dtype), weight, -codes.square().sum(1))


class VQGANNetwork(nn.Module):
    """Encoder, `quant_conv` and codebook; trainable, without a decoder.

    Only names and arithmetic follow taming-transformers, so its checkpoints load by name.
    """

    lean = False  # fused operations
    _head: tuple[object, Tensor, Tensor] | None = None

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        self.quant_conv = Conv2d(architecture.z_channels, architecture.code_channels, 1)
        self.quantize = Codebook(architecture.codes, architecture.code_channels)

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """The first residual block's output at each of the five resolutions, as they appear.

        Args:
            images: (B, 3, H, W) in the range the network was trained on, at least 16 pixels a side.
        """
        return self.encoder.levels(images)

    def fuse(self) -> VQGANNetwork:
        """Let `ops.fused` carry out convolutions and norms, where torch.compile does not record.

        For frozen weights only.
        """
        for module in self.modules():
            if isinstance(module, (Conv2d, NormSiLU, VQGANNetwork)):
                module.lean = True
        return self

    def latents(self, last_level: Tensor) -> Tensor:
        """Continue from the last level to the latent vectors before quantisation, (B, D, h, w)."""
        out: Tensor = self.quant_conv(self.encoder(last_level))
        return out

    def code_logits(self, last_level: Tensor) -> Tensor:
        """`2<z, e_k> - |e_k|^2` for every code k, (B, K, h, w).

        It differs from minus the squared distance of Eq. 8 by |z|^2, which is the same for all
        codes and so cancels in the softmax.
        """
        if not self.lean or torch.compiler.is_compiling():
            out: Tensor = self.quantize(self.latents(last_level))
            return out
        weight, bias = self._folded_head()
        h = self.encoder(last_level)
        with torch.autocast(h.device.type, enabled=False):
            return fused.frozen_conv2d(h.to(weight.dtype), weight, bias)

    @torch.no_grad()
    def _folded_head(self) -> tuple[Tensor, Tensor]:
        """`quant_conv` and codebook as one 1x1 convolution, made anew where a weight changed."""
        bias, codes = self.quant_conv.bias, self.quantize.embedding.weight
        assert bias is not None
        tensors = (self.quant_conv.weight, bias, codes)
        key = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors)
        if self._head is None or self._head[0] != key:
            w, b, codes = (t.double() for t in tensors)
            head = (
                (2 * codes @ w.flatten(1))[:, :, None, None],
                2 * codes @ b - codes.square().sum(1),
            )
            folded = [nn.Parameter(t.to(tensors[0].dtype), requires_grad=False) for t in head]
            self._head = key, folded[0], folded[1]
        return self._head[1], self._head[2]


def build(tensors: Mapping[str, Tensor]) -> VQGANNetwork:
    """Make the network that these tensors belong to, holding these very tensors.

    Raises:
        ValueError: a tensor is missing, left over or of another shape; names each.
    """
    with torch.device("meta"):
        network = VQGANNetwork(Architecture.of(tensors))
    try:
        network.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        reasons = " ".join(str(error).split())
        raise ValueError(f"not a complete VQGAN encoder: {reasons}") from error
    return network
