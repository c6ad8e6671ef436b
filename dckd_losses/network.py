"""The encoder half of a VQGAN (Esser et al. 2021) under taming-transformers' tensor names.

It lies below `weights`, which holds files against it, and below `encoder`, which runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dckd_losses.layers import GROUPS, Conv2d, Fusible, GroupNorm, InputConv2d, Middle, Stage
from dckd_losses.ops.conv import frozen_conv2d

LEVELS = 5  # DCKD, appendix: "five different layers"


@dataclass(frozen=True)
class Architecture:
    """All that distinguishes one VQGAN encoder from another; read off the tensors' shapes."""

    stem: int
    channels: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    z_channels: int
    code_channels: int
    codes: int

    def __post_init__(self) -> None:
        odd = [c for c in (self.stem, *self.channels) if c % GROUPS]
        if odd:
            raise ValueError(f"channel counts {odd} are not multiples of {GROUPS} (GroupNorm)")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Architecture:
        """Read it off `encoder.*`, `quant_conv.*` and `quantize.embedding.weight`.

        Raises:
            ValueError: the tensors are those of another kind of network; names what was seen.
        """
        if any(name.startswith(("quantize.embed.", "quantize.proj.")) for name in tensors):
            raise ValueError("this VQGAN has a Gumbel quantiser; a nearest-code one is expected")
        needed = ("encoder.conv_in", "encoder.conv_out", "quant_conv", "quantize.embedding")
        missing = [f"{name}.weight" for name in needed if f"{name}.weight" not in tensors]
        if missing:
            raise ValueError(f"no VQGAN encoder: {', '.join(missing)} missing")
        levels = _count(tensors, "encoder.down.{}.block.0.conv1.weight")
        if levels != LEVELS:
            raise ValueError(f"this encoder has {levels} levels; {LEVELS} are expected")
        z_channels = tensors["encoder.conv_out.weight"].shape[0]
        code_channels, fed = tensors["quant_conv.weight"].shape[:2]
        codes, width = tensors["quantize.embedding.weight"].shape
        if (fed, width) != (z_channels, code_channels):
            raise ValueError(
                f"conv_out gives {z_channels} channels, quant_conv maps {fed} to {code_channels}, "
                f"codes have {width}: not one nearest-code VQGAN"
            )
        return cls(
            stem=tensors["encoder.conv_in.weight"].shape[0],
            channels=tuple(
                tensors[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(LEVELS)
            ),
            blocks=_count(tensors, "encoder.down.0.block.{}.conv1.weight"),
            attention=tuple(f"encoder.down.{i}.attn.0.q.weight" in tensors for i in range(LEVELS)),
            z_channels=z_channels,
            code_channels=code_channels,
            codes=codes,
        )


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    count = 0
    while name.format(count) in tensors:
        count += 1
    return count


class Encoder(nn.Module):
    """Images to latent vectors, in two halves that meet at the last level's first block."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        widths = (a.stem, *a.channels)
        self.conv_in = InputConv2d(3, a.stem, 3, padding=1)
        self.down = nn.ModuleList(
            Stage(widths[i], widths[i + 1], a.blocks, a.attention[i], last=i == LEVELS - 1)
            for i in range(LEVELS)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], a.z_channels, 3, padding=1)

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """The first residual block's output at each resolution, as they appear."""
        x = self.conv_in(images).to(self.dtype)
        for stage in self._stages():
            x = stage.first_block(x)
            yield x
            if hasattr(stage, "downsample"):
                x = stage.downsample(stage.remaining_blocks(x))

    def forward(self, last_level: Tensor) -> Tensor:
        """The last of `levels` to latent vectors (B, Z, h, w)."""
        h = self.mid(self._stages()[-1].remaining_blocks(last_level))
        out: Tensor = self.conv_out(self.norm_out(h))
        return out

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions after the first compute in."""
        return self.conv_out.weight.dtype

    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.down))


class Codebook(Fusible, nn.Module):
    """The quantiser's codes under taming's name `quantize.embedding.weight`."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        weight = torch.empty(codes, channels)
        if not weight.is_meta:  # where it would draw nothing, and import half of torch to do so
            nn.init.normal_(weight)
        self.embedding = nn.Embedding(codes, channels, _weight=weight)

    def forward(self, z: Tensor) -> Tensor:
        """`2<z, e_k> - |e_k|^2` for every code k: (B, D, h, w) to (B, K, h, w).

        It differs from minus the squared distance of Eq. 8 by |z|^2, which is the same for all
        codes and so cancels in the softmax.
        """
        codes = self.embedding.weight
        with torch.autocast(z.device.type, enabled=False):  # distances need float32's digits
            z, bias = 2 * z.to(codes.dtype), -codes.square().sum(1)
            return frozen_conv2d(z, codes[:, :, None, None], bias, fused=self.use_fused)


class VQGANNetwork(nn.Module):
    """Encoder, `quant_conv` and codebook; trainable, without a decoder.

    Only names and arithmetic follow taming-transformers, so its checkpoints load by name.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        self.quant_conv = Conv2d(architecture.z_channels, architecture.code_channels, 1)
        self.quantize = Codebook(architecture.codes, architecture.code_channels)

    def prepare(self, images: Tensor, input_range: tuple[float, float]) -> Tensor:
        """Images from [0, 1] to a range, in at least float32 and in `memory_format`."""
        low, high = input_range
        mapped = images.to(self.quant_conv.weight.dtype) * (high - low) + low
        return mapped.contiguous(memory_format=self.memory_format)

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """The first residual block's output at each of the five resolutions, as they appear."""
        return self.encoder.levels(images)

    def latents(self, last_level: Tensor) -> Tensor:
        """Continue from the last level to the latent vectors before quantisation, (B, D, h, w)."""
        out: Tensor = self.quant_conv(self.encoder(last_level))
        return out

    def code_logits(self, last_level: Tensor) -> Tensor:
        """Continue from the last level to the code logits, (B, K, h, w)."""
        return self.head(self.encoder(last_level))

    def head(self, h: Tensor) -> Tensor:
        """The encoder's output (B, Z, h, w) to code logits, at least in float32."""
        out: Tensor = self.quantize(self.quant_conv(h))
        return out

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout in which convolutions are fast: fused ones on CUDA or in half precision."""
        weight = self.encoder.conv_out.weight
        fast = weight.is_cuda or weight.dtype in (torch.float16, torch.bfloat16)
        fused = self.encoder.conv_out.use_fused
        return torch.channels_last if fused and fast else torch.contiguous_format

    def set_fused(self, fused: bool) -> VQGANNetwork:
        """Let fused operations carry out convolutions and norms; they give weights no gradient."""
        for module in self.modules():
            if isinstance(module, Fusible):
                module.fused = fused
        return self

    def set_precision(self, dtype: torch.dtype) -> VQGANNetwork:
        """Let all convolutions between the first one and the codebook compute in a precision.

        The first one costs next to nothing, and rounded images would be closer to each other than
        a trained student is to its teacher.
        """
        for module in self.encoder.modules():
            if isinstance(module, Conv2d) and module is not self.encoder.conv_in:
                module.to(dtype)
        return self


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
