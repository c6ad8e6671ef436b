"""Which VQGAN encoder it is, read off its tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

GROUPS = 32  # of every GroupNorm in taming-transformers
EPS = 1e-6  # of every GroupNorm in taming-transformers
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
        """Read the architecture off taming-format tensors.

        Args:
            tensors: `encoder.*`, `quant_conv.*` and `quantize.embedding.weight`.

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
