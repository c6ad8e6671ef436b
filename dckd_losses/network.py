"""The encoder half of a VQGAN (Esser et al. 2021) under taming-transformers' tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dckd_losses.architecture import GROUPS, LEVELS, Architecture


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two norm-SiLU-convolution stages and a skip connection; (B, C, H, W) keeps H and W."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: Tensor = h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)
        return out


class Attention(nn.Module):
    """Single-head self-attention over all positions with a skip connection; (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """Halve H and W by a strided convolution, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

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
        self.conv_in = nn.Conv2d(3, a.stem, 3, padding=1)
        self.down = nn.ModuleList(
            Stage(widths[i], widths[i + 1], a.blocks, a.attention[i], last=i == LEVELS - 1)
            for i in range(LEVELS)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], a.z_channels, 3, padding=1)

    def levels(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images to the first residual block's output at each resolution."""
        h = self.conv_in(x)
        taps: list[Tensor] = []
        for stage in self._stages():
            taps.append(stage.first(h))
            if len(taps) < LEVELS:
                h = stage.downsample(stage.rest(taps[-1]))
        return tuple(taps)

    def forward(self, last_level: Tensor) -> Tensor:
        """The last of `levels` to latent vectors (B, Z, h, w)."""
        h = self.mid(self._stages()[-1].rest(last_level))
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
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

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        self.quant_conv = nn.Conv2d(architecture.z_channels, architecture.code_channels, 1)
        self.quantize = Codebook(architecture.codes, architecture.code_channels)

    def levels(self, images: Tensor) -> tuple[Tensor, ...]:
        """The first residual block's output at each of the five resolutions.

        Args:
            images: (B, 3, H, W) in the range the network was trained on, at least 16 pixels a side.
        """
        return self.encoder.levels(images)

    def latents(self, last_level: Tensor) -> Tensor:
        """Continue from the last level to the latent vectors before quantisation, (B, D, h, w)."""
        out: Tensor = self.quant_conv(self.encoder(last_level))
        return out

    def code_logits(self, last_level: Tensor) -> Tensor:
        """`2<z, e_k> - |e_k|^2` for every code k, (B, K, h, w).

        It differs from minus the squared distance of Eq. 8 by |z|^2, which is the same for all
        codes and so cancels in the softmax.
        """
        out: Tensor = self.quantize(self.latents(last_level))
        return out


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
