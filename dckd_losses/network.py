"""The encoder half of a VQGAN (Esser et al. 2021) under taming-transformers' tensor names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dckd_losses.architecture import LEVELS, Architecture
from dckd_losses.layers import Conv2d, GroupNorm, Middle, Stage
from dckd_losses.ops import fused


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
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = Conv2d(widths[-1], a.z_channels, 3, padding=1)

    def levels(self, x: Tensor, start: int = 0, stop: int = LEVELS) -> Iterator[Tensor]:
        """The first residual block's output at each resolution, as they appear.

        Args:
            x: images, or what the level to start at begins with.
            start: the first level.
            stop: the level before which to stop; what it begins with comes last then.
        """
        x = x if start else self.conv_in(x).to(self.dtype)
        for i, stage in enumerate(self._stages()[start:stop], start):
            if i == LEVELS - 1:
                yield stage.block[0](x)
                return
            x, normed = stage.first(x)
            yield x
            x = stage.downsample(stage.rest(x, normed))
        yield x

    def forward(self, last_level: Tensor) -> Tensor:
        """The last of `levels` to latent vectors (B, Z, h, w)."""
        h = self.mid(self._stages()[-1].rest(last_level))
        out: Tensor = self.conv_out(self.norm_out(h))
        return out

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions after the first compute in."""
        return self.conv_out.weight.dtype

    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.down))


class Codebook(nn.Module):
    """The quantiser's codes under taming's name `quantize.embedding.weight`."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        weight = torch.empty(codes, channels)
        if not weight.is_meta:  # where it would draw nothing, and import half of torch to do so
            nn.init.normal_(weight)
        self.embedding = nn.Embedding(codes, channels, _weight=weight)

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

    def levels(self, images: Tensor, start: int = 0, stop: int = LEVELS) -> Iterator[Tensor]:
        """The first residual block's output at each of the five resolutions, as they appear.

        Args:
            images: (B, 3, H, W) in the range the network was trained on, at least 16 pixels a side;
                or what the level to start at begins with.
            start: the first level.
            stop: the level before which to stop; what it begins with comes last then.
        """
        return self.encoder.levels(images, start, stop)

    def frozen_view(self, *, lean: bool) -> VQGANNetwork:
        """A network of its own, frozen, that shows these very weights without copying them.

        What is set, moved or cast there leaves this network as it is.

        Args:
            lean: let `ops.fused` carry out convolutions and norms, where torch.compile does not
                record.
        """
        views: dict[int, object] = {
            id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.parameters()
        }
        view = copy.deepcopy(self, views)
        for module in view.modules():
            if isinstance(module, (Conv2d, GroupNorm, VQGANNetwork)):
                module.lean = lean
        return view

    def latents(self, last_level: Tensor) -> Tensor:
        """Continue from the last level to the latent vectors before quantisation, (B, D, h, w)."""
        out: Tensor = self.quant_conv(self.encoder(last_level))
        return out

    def code_logits(self, last_level: Tensor) -> Tensor:
        """`2<z, e_k> - |e_k|^2` for every code k, (B, K, h, w), from the last level.

        It differs from minus the squared distance of Eq. 8 by |z|^2, which is the same for all
        codes and so cancels in the softmax.
        """
        return self.head(self.encoder(last_level))

    def head(self, h: Tensor) -> Tensor:
        """The encoder's output (B, Z, h, w) to code logits, at least in float32."""
        if not self.lean or torch.compiler.is_compiling():
            out: Tensor = self.quantize(self.quant_conv(h))
            return out
        weight, bias = self._folded_head()
        return fused.frozen_conv2d(h.to(weight.dtype), weight, bias)

    def convolve_in(self, dtype: torch.dtype) -> VQGANNetwork:
        """Let all convolutions between the first one and the codebook compute in a half precision.

        The first one costs next to nothing, and rounded images would be closer to each other than
        a trained student is to its teacher.
        """
        for module in self.encoder.modules():
            if isinstance(module, Conv2d) and module is not self.encoder.conv_in:
                module.to(dtype)
        return self

    @torch.inference_mode(False)  # a first call may be under it, and backward wants it later
    @torch.no_grad()
    def _folded_head(self) -> tuple[Tensor, Tensor]:
        """`quant_conv` and codebook as one 1x1 convolution, made anew where a weight changed."""
        bias, codes = self.quant_conv.bias, self.quantize.embedding.weight
        assert bias is not None
        tensors = (self.quant_conv.weight, bias, codes)
        key = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors)
        if self._head is None or self._head[0] != key:
            mps = codes.device.type == "mps"  # which has no float64
            w, b, codes = ((t.cpu() if mps else t).double() for t in tensors)
            head = (
                (2 * codes @ w.flatten(1))[:, :, None, None],
                2 * codes @ b - codes.square().sum(1),
            )
            folded = [nn.Parameter(t.to(tensors[0]), requires_grad=False) for t in head]
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
