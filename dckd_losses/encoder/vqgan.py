"""The frozen VQGAN encoder: five levels of features and code logits from one pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import isfinite
from os import PathLike

import torch
from torch import Tensor, nn

from dckd_losses import weights
from dckd_losses.checks import check_choice, check_device, check_images, check_number
from dckd_losses.encoder.base import Comparison, Encoding, FeatureEncoder
from dckd_losses.encoder.stream import FusedPath
from dckd_losses.network import VQGANNetwork, build
from dckd_losses.ops.gradient_scale import GradientScale

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IMPLS = ("auto", "plain", "fused")
MODES = ("stream", "twopass")

# The default number of pixels encoded at once. On a GPU small chunks wait for launches: 16 images
# of 192x192 with their negatives need 9,000 launches one by one. Elsewhere, and in "twopass", which
# saves memory, memory limits it.
PIXELS_IN_FLIGHT = 1 << 16
CUDA_PIXELS_IN_FLIGHT = {"stream": 1 << 21, "twopass": 1 << 18}


class VQGANEncoder(FeatureEncoder):
    """A VQGAN's encoder as a source of features and of code distributions.

    Both of DCKD's losses look at images through it: DCR at the output of each resolution's first
    residual block (before attention), DMM at the distances to the codebook. It is frozen, always
    in eval mode and invisible to the outside (see `FeatureEncoder`).

    Args:
        network: the network, as `dckd_losses.network.build` makes it from tensors. The encoder
            shares its weights and leaves all else of it as it is.
        input_range: images in [0, 1] are mapped linearly to this range. (-1, 1) is what
            taming-transformers trains on; (0, 1) is what DCKD's released code feeds.
        precision: of the convolutions: "float32" (on CUDA as exact as torch's own setting, which
            by default allows TF32), "float16" or "bfloat16". The first convolution is float32
            whatever the setting; statistics, distances and the codebook have at least float32 (the
            codebook's products follow torch's setting). Half precisions keep half the bytes
            and are faster where the hardware has them (a CPU has bfloat16 at most). float16 turns
            the gradient by a few degrees, bfloat16 by 15 to 35, most where student and teacher
            are close (README). float16's gradients are scaled inside; an image whose gradient
            still leaves float16's range gets none.
        impl: "fused" keeps for backward only what backward needs and lets teacher and negatives go
            as soon as they are compared; "plain" leaves all to autograd, compiles in one graph and
            has a second derivative; "auto" takes the fused path, except where torch.compile
            traces, which "fused" refuses.
        mode: of the fused path: "stream" runs everything through the network once; "twopass" runs
            `chunk` images of the batch at a time, and again in backward, and keeps only the images
            between the two. A batch of one chunk passes once and gains nothing.
        chunk: of the fused path: how many images are in flight at once besides the student's
            (and of the student's too in "twopass"); by default what 2^21 pixels hold on CUDA (2^18
            in "twopass") and 2^16 elsewhere, at least one. Results do not depend on it.

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
        _check_options(input_range, precision, impl, mode, chunk)
        super().__init__(_shared(network).set_fused(impl != "plain"))
        self.input_range = (float(input_range[0]), float(input_range[1]))
        self.precision = precision
        self.impl = impl
        self.mode = mode
        self.chunk = chunk
        self._set_precision_and_layout()

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

        `name_or_path` is "compact" (embedded in this package), "vqgan-f16-1024" or
        "vqgan-f16-16384" (fetched once), or the path of a taming-transformers `.ckpt` or of an
        encoder-only `.safetensors`. The other arguments are the class's.

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
        options = dict(precision=precision, impl=impl, mode=mode, chunk=chunk)
        return cls(network, input_range=input_range, **options)  # type: ignore[arg-type]

    def forward(self, images: Tensor, *, num_with_codes: int | None = None) -> Encoding:
        """See `FeatureEncoder.forward`; an image without codes costs a tenth less."""
        self._check_compiling()
        check_images("images", images)
        scale = GradientScale(self.network.encoder.dtype)
        with self._no_autocast(images):
            entered = scale.enter(self.network.prepare(images, self.input_range))
            levels = list(self.network.levels(entered))
            last = levels[-1][:num_with_codes]
            latent = [self.network.encoder(last)] if len(last) else []
            results = scale.leave([*levels, *latent], [1.0] * (len(levels) + len(latent)))
            code_logits = self.network.head(results.pop()) if latent else None
        return Encoding(tuple(results), code_logits)

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        negatives: Tensor | None = None,
        *,
        codes: bool = False,
    ) -> Comparison:
        """See `FeatureEncoder.compare`, which is the plain path; the others are `FusedPath`'s."""
        self._check_compiling()
        if self.impl == "plain" or torch.compiler.is_compiling():
            return super().compare(student, teacher, negatives, codes=codes)
        chunk = self.chunk or self._default_chunk(student)
        path = FusedPath(self.network, self.input_range, codes, chunk)
        compare = path.stream if self.mode == "stream" else path.twopass
        with self._no_autocast(student):
            return compare(student, teacher, negatives)

    def _default_chunk(self, images: Tensor) -> int:
        pixels = CUDA_PIXELS_IN_FLIGHT[self.mode] if images.is_cuda else PIXELS_IN_FLIGHT
        return max(1, pixels // (images.shape[2] * images.shape[3]))

    def _check_compiling(self) -> None:
        if self.impl == "fused" and torch.compiler.is_compiling():
            # Raised outside the trace: what is raised inside only breaks the graph.
            torch.compiler.disable(_refuse_to_compile)()  # type: ignore[no-untyped-call]

    def _no_autocast(self, images: Tensor) -> torch.autocast:
        """The encoder's own precision, whatever the caller's autocast says."""
        check_device("images", images, "the encoder", self.network.quant_conv.weight)
        return torch.autocast(images.device.type, enabled=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VQGANEncoder:
        super()._apply(fn, recurse)
        self._set_precision_and_layout()
        return self

    def _set_precision_and_layout(self) -> None:
        """Weights in the precision and the layout that convolutions want, after every move."""
        exact = self.network.quant_conv.weight.dtype  # float64 after such a cast
        half = self.precision != "float32"
        self.network.set_precision(PRECISIONS[self.precision] if half else exact)
        self.network.to(memory_format=self.network.memory_format)

    def extra_repr(self) -> str:
        return (
            f"input_range={self.input_range}, precision={self.precision!r}, impl={self.impl!r}, "
            f"mode={self.mode!r}, chunk={self.chunk}"
        )


def _refuse_to_compile() -> None:
    raise RuntimeError(
        "impl='fused' does not compile: make the encoder with impl='auto', which takes the plain "
        "path where torch.compile traces"
    )


def _shared(network: VQGANNetwork) -> VQGANNetwork:
    """A network of its own that shows these very weights without copying them.

    What is set, moved or cast there leaves the caller's network as it is.
    """
    views: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()
    }
    return copy.deepcopy(network, views)


def _check_options(
    input_range: tuple[float, float], precision: str, impl: str, mode: str, chunk: int | None
) -> None:
    """Validate encoder options."""
    pair = isinstance(input_range, (tuple, list)) and len(input_range) == 2
    if not pair or not all(isinstance(x, (int, float)) and isfinite(x) for x in input_range):
        raise ValueError(f"input_range must be two finite numbers (low, high), got {input_range!r}")
    if not input_range[0] < input_range[1]:
        raise ValueError(f"input_range must be (low, high) with low < high, got {input_range}")
    check_choice("precision", precision, PRECISIONS)
    check_choice("impl", impl, IMPLS)
    check_choice("mode", mode, MODES)
    check_number("chunk", chunk, at_least=1, whole=True, or_none=True)
    if impl == "plain" and (mode != "stream" or chunk is not None):
        raise ValueError(
            f"mode and chunk are of the fused path, got mode={mode!r} and chunk={chunk} with "
            "impl='plain'"
        )
