"""The frozen VQGAN encoder: five levels of features and code logits from one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike

import torch
from torch import Tensor

from dckd_losses import weights
from dckd_losses.checks import check_device, check_images
from dckd_losses.encoder_settings import PRECISIONS, check_settings
from dckd_losses.features import Encoding, FeatureEncoder, Path
from dckd_losses.network import VQGANNetwork, build
from dckd_losses.ops.feature_path import Images, Objective, Terms, stream
from dckd_losses.ops.gradient_scale import GradientScale
from dckd_losses.ops.kernels import triton_takes
from dckd_losses.ops.two_pass import two_pass

PIXELS_IN_FLIGHT = 256 * 256  # of the others' images by default, at least one image


class VQGANEncoder(FeatureEncoder):
    """A VQGAN's encoder as a source of features and of code distributions.

    Both of DCKD's losses look at images through it: DCR at the output of each resolution's first
    residual block (before attention), DMM at the distances to the codebook. It is frozen, always
    in eval mode and invisible to the outside (see `FrozenModule`).

    Args:
        network: the network, as `dckd_losses.network.build` makes it from tensors. The encoder
            shares its weights and leaves all else of it as it is.
        input_range: images in [0, 1] are mapped linearly to this range. (-1, 1) is what
            taming-transformers trains on; (0, 1) is what DCKD's released code feeds.
        precision: of the convolutions: "float32" (on CUDA as exact as torch's own setting, which
            by default allows TF32), "float16" or "bfloat16". The first convolution, statistics,
            distances and the codebook have at least float32. Half precisions keep half the bytes
            and are faster where the hardware has them (a CPU has bfloat16 at most). float16 turns
            the gradient by a few degrees, bfloat16 by 15 to 35, most where student and teacher
            are close (README). float16's gradients are scaled inside.
        impl: "fused" keeps for backward only what backward needs and lets teacher and negatives go
            as soon as they are compared; "plain" leaves all to autograd, compiles in one graph and
            has a second derivative; "auto" takes the fused path but where torch.compile records,
            which "fused" does not let it do: its graph breaks there. See `path`.
        mode: of the fused path: "stream" runs everything through the network once; "twopass" runs
            it all chunk by chunk, twice where the batch has more than one, and keeps only the
            gradient of the student's images: memory does not grow with the batch.
        chunk: of the fused path: how many images are in flight at once besides the student's
            (and of the student's too in "twopass"); by default what 256x256 pixels hold.

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
        impl: str = "auto",
        mode: str = "stream",
        chunk: int | None = None,
    ) -> None:
        check_settings(input_range, precision, impl, mode, chunk)
        super().__init__(network.frozen_view(lean=impl != "plain"))
        self.input_range = (float(input_range[0]), float(input_range[1]))
        self.precision = precision
        self.impl = impl
        self.mode = mode
        self.chunk = chunk
        self._arrange()

    @classmethod
    @torch.inference_mode(False)  # whose tensors could never be saved for backward
    def from_pretrained(
        cls,
        name_or_path: str | PathLike[str],
        *,
        input_range: tuple[float, float] = (-1.0, 1.0),
        precision: str = "float32",
        impl: str = "auto",
        mode: str = "stream",
        chunk: int | None = None,
    ) -> VQGANEncoder:
        """Make the encoder from weights; the architecture is read off the tensors.

        Args:
            name_or_path: "compact" (embedded in this package), "vqgan-f16-1024" or
                "vqgan-f16-16384" (fetched once), or the path of a taming-transformers `.ckpt` or
                of an encoder-only `.safetensors`.
            input_range: see the class.
            precision: see the class.
            impl: see the class.
            mode: see the class.
            chunk: see the class.

        Raises:
            ValueError: no name or path, an unknown name, or one of the other arguments.
            RuntimeError: weights that are missing, cut short, altered, or not such weights; names
                the file.
        """
        path = weights.find(name_or_path)
        try:
            network = build(weights.load(path))
        except (ValueError, KeyError) as error:
            raise RuntimeError(f"{path}: {error}") from error
        return cls(
            network,
            input_range=input_range,
            precision=precision,
            impl=impl,
            mode=mode,
            chunk=chunk,
        )

    def forward(self, images: Tensor, *, coded: int | None = None) -> Encoding:
        """Encode images.

        Args:
            images: (B, 3, H, W) in [0, 1] nominally.
            coded: the first how many images get code logits (all by default); the others stop
                after the last level, which saves a tenth of their cost.
        """
        if self._breaks_the_graph:
            from dckd_losses.ops.unrecorded import unrecorded

            return unrecorded(self.forward, images, coded=coded)
        check_images("images", images)
        scale = GradientScale(self.network.encoder.dtype)
        with self._precisely(images):
            levels = list(self.network.levels(scale.enter(self._mapped(images))))
            last = levels[-1][:coded]
            latent = [self.network.encoder(last)] if len(last) else []
            results = scale.leave([*levels, *latent], [1.0] * (len(levels) + len(latent)))
            code_logits = self.network.head(results[-1]) if latent else None
        return Encoding(tuple(results[: len(levels)]), code_logits)

    @property
    def path(self) -> Path:
        """Which way images take now, and why."""
        if self.impl == "plain":
            return Path("plain", "impl='plain'")
        if self.impl == "auto" and torch.compiler.is_compiling():
            return Path("plain", "torch.compile records the plain path and fuses it itself")
        weight = self.network.quant_conv.weight
        by = "Triton kernels" if triton_takes(weight.device, weight.dtype) else "torch's operations"
        return Path("fused", f"mode={self.mode!r}, by {by}")

    def compare(self, images: Images, objective: Objective) -> tuple[Tensor, Terms]:
        """See `FeatureEncoder.compare`."""
        if self._breaks_the_graph:
            from dckd_losses.ops.unrecorded import unrecorded

            return unrecorded(self.compare, images, objective)
        if self.path.impl == "plain":
            return super().compare(images, objective)
        pixels = images.student.shape[2] * images.student.shape[3]
        chunk = self.chunk or max(1, PIXELS_IN_FLIGHT // pixels)
        with self._precisely(images.student):
            images = replace(images, prepare=self._mapped)
            if self.mode == "twopass":
                return two_pass(self.network, images, chunk, objective)
            terms = stream(self.network, images, chunk)
        return objective(terms), terms

    @property
    def _breaks_the_graph(self) -> bool:
        """Whether this call must not be recorded."""
        return self.impl == "fused" and torch.compiler.is_compiling()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VQGANEncoder:
        super()._apply(fn, recurse)
        self._arrange()
        return self

    def _arrange(self) -> None:
        """Weights in the precision and the layout that convolutions want, after every move."""
        exact = self.network.quant_conv.weight.dtype  # float64 after such a cast
        half = self.precision != "float32"
        self.network.convolve_in(PRECISIONS[self.precision] if half else exact)
        if self.impl != "plain" and self.network.quant_conv.weight.is_cuda:
            self.network.to(memory_format=torch.channels_last)

    def _mapped(self, images: Tensor) -> Tensor:
        """Images in the network's range, at least in float32, in the layout of the path."""
        low, high = self.input_range
        mapped = images.to(self.network.quant_conv.weight.dtype) * (high - low) + low
        fused = self.path.impl == "fused"
        return mapped.contiguous(
            memory_format=torch.channels_last if fused else torch.contiguous_format
        )

    def _precisely(self, images: Tensor) -> torch.autocast:
        """The encoder's own precision, whatever the caller's autocast says."""
        check_device("images", images, "the encoder", self.network.quant_conv.weight)
        return torch.autocast(images.device.type, enabled=False)

    def extra_repr(self) -> str:
        return (
            f"input_range={self.input_range}, precision={self.precision!r}, impl={self.impl!r}, "
            f"mode={self.mode!r}, chunk={self.chunk}"
        )
