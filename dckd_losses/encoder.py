"""The frozen VQGAN encoder: five levels of features and code logits from one pass."""

from __future__ import annotations

import copy
from os import PathLike
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dckd_losses import weights
from dckd_losses.checks import check_device, check_images
from dckd_losses.frozen import FrozenModule
from dckd_losses.network import VQGANNetwork, build

PRECISIONS = ("float32", "bfloat16")


class Encoding(NamedTuple):
    """What an encoder says of a batch of images.

    Attributes:
        levels: features from fine to coarse, each (B, C, H, W) with sizes of their own.
        code_logits: (B', K, h, w), `2<z, e_k> - |e_k|^2`; a softmax over K is Eq. 8's
            distribution. B' is the number of images that were asked for; None if none was.
    """

    levels: tuple[Tensor, ...]
    code_logits: Tensor | None


class FrozenEncoder(FrozenModule):
    """Any network as encoder: a frozen copy of a module that maps images to an `Encoding`.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to `(levels, code_logits)`. It is copied, so
            the caller's module stays trainable.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(copy.deepcopy(network))

    def forward(self, images: Tensor, *, coded: int | None = None) -> Encoding:
        """See `VQGANEncoder.forward`; here only the code logits' first images are kept."""
        with torch.autocast(images.device.type, enabled=False):
            levels, code_logits = self.network(images)
        wanted = code_logits is not None and coded != 0
        return Encoding(tuple(levels), code_logits[:coded] if wanted else None)


class VQGANEncoder(FrozenModule):
    """A VQGAN's encoder as a source of features and of code distributions.

    Both of DCKD's losses look at images through it: DCR at the output of each resolution's first
    residual block (before attention), DMM at the distances to the codebook. It is frozen, always
    in eval mode and invisible to the outside (see `FrozenModule`).

    Args:
        network: the network, as `dckd_losses.network.build` makes it from tensors.
        input_range: images in [0, 1] are mapped linearly to this range. (-1, 1) is what
            taming-transformers trains on; (0, 1) is what DCKD's released code feeds.
        precision: "float32", or "bfloat16" for convolutions under autocast, which is faster where
            hardware has it and turns the gradient by some degrees.

    Shape:
        images (B, 3, H, W) float, H and W at least 16, to five levels of channels x (H, H/2, H/4,
        H/8, H/16) and code logits (B, K, H/16, W/16), each rounded down.

    Gradient:
        to the images; the weights never get one.

    Raises:
        ValueError: an argument or the images are not as said above.

    Example:
        >>> encoder = VQGANEncoder.from_pretrained("compact")
        >>> levels, code_logits = encoder(torch.rand(2, 3, 48, 64))
        >>> [tuple(level.shape[2:]) for level in levels]
        [(48, 64), (24, 32), (12, 16), (6, 8), (3, 4)]
    """

    network: VQGANNetwork

    def __init__(
        self,
        network: VQGANNetwork,
        *,
        input_range: tuple[float, float] = (-1.0, 1.0),
        precision: str = "float32",
    ) -> None:
        if len(input_range) != 2 or not input_range[0] < input_range[1]:
            raise ValueError(f"input_range must be (low, high) with low < high, got {input_range}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        super().__init__(network)
        self.input_range = (float(input_range[0]), float(input_range[1]))
        self.precision = precision

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        *,
        input_range: tuple[float, float] = (-1.0, 1.0),
        precision: str = "float32",
    ) -> VQGANEncoder:
        """Make the encoder from weights; the architecture is read off the tensors.

        Args:
            name_or_path: "compact" (embedded in this package), "vqgan-f16-1024" or
                "vqgan-f16-16384" (fetched once), or the path of a taming-transformers `.ckpt` or
                of an encoder-only `.safetensors`.
            input_range: see the class.
            precision: see the class.

        Raises:
            ValueError: an unknown name, or one of the other arguments.
            RuntimeError: weights that are missing, cut short, altered, or not such weights; names
                the file.
        """
        path = weights.find(name_or_path)
        try:
            network = build(weights.read(path))
        except ValueError as error:
            raise RuntimeError(f"{path}: {error}") from error
        return cls(network, input_range=input_range, precision=precision)

    def forward(self, images: Tensor, *, coded: int | None = None) -> Encoding:
        """Encode images.

        Args:
            images: (B, 3, H, W) in [0, 1] nominally.
            coded: the first how many images get code logits (all by default); the others stop
                after the last level, which saves a tenth of their cost.
        """
        check_images("images", images)
        weight = self.network.quant_conv.weight
        check_device("images", images, "the encoder", weight)
        low, high = self.input_range
        dtype = weight.dtype
        half = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16 if half else None, enabled=half):
            x = images.to(dtype) * (high - low) + low
            levels = self.network.levels(x)
            last = levels[-1][:coded]
            code_logits = self.network.code_logits(last) if len(last) else None
        return Encoding(tuple(level.to(dtype) for level in levels), code_logits)

    def extra_repr(self) -> str:
        return f"input_range={self.input_range}, precision={self.precision!r}"


def as_encoder(encoder: str | PathLike[str] | nn.Module) -> FrozenModule:
    """The encoder that a loss was given: a name, a path, an encoder or any other module.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(encoder, FrozenModule):
        return encoder
    if isinstance(encoder, nn.Module):
        return FrozenEncoder(encoder)
    if isinstance(encoder, (str, PathLike)):
        return VQGANEncoder.from_pretrained(encoder)
    raise ValueError(f"encoder must be a name, a path or a module, got {type(encoder).__name__}")
