"""Networks that spandrel recognises by their tensors' names and shapes; no code of a file runs."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .own import check_output

# Under which a trainer keeps the network, with other modules beside it
WRAPPERS = {"model", "net", "net_g", "netG", "network", "generator", "student"}


@contextmanager
def needing_spandrel(what: str) -> Iterator[None]:
    """Say what to do where importing it fails; its imports' warnings are not the user's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch will deprecate
            yield
    except (ImportError, RuntimeError, OSError) as error:  # torchvision raises all of them
        raise RuntimeError(
            f"{what} spandrel, which cannot be imported ({error}): pip install spandrel "
            "spandrel-extra-arches, and the torchvision that belongs to torch "
            f"{torch.__version__}, from the same index"
        ) from error


class Detected(nn.Module):
    """A recognised network, frozen: (B, 3, H, W) to (B, 3, H scale, W scale), both in [0, 1].

    Images are padded as the network needs; the result is cropped and clamped.

    Attributes:
        backbone: The architecture's name.
        scale: Output size over input size.
    """

    def __init__(self, descriptor: "spandrel.ImageModelDescriptor") -> None:  # noqa: F821
        super().__init__()
        self.backbone, self.scale = descriptor.architecture.name, descriptor.scale
        self.model = descriptor.model.eval().requires_grad_(False)
        self._restore = descriptor

    @torch.no_grad()
    def forward(self, lq: Tensor) -> Tensor:
        """Restore images; under autocast too, where the network bears half precision."""
        bears = self._restore.supports_half
        with nullcontext() if bears else torch.autocast(lq.device.type, enabled=False):
            restored: Tensor = self._restore(lq.to(torch.float32, copy=True))  # RCAN writes into it
        return restored.clone()  # of an inference tensor, which backward could not keep


def detect(tensors: Mapping[str, Tensor], source: str, scale: int) -> Detected:
    """The network for this scale that tensors belong to, as its authors or a trainer saved them.

    Raises:
        ValueError: spandrel does not know it, or it is for another scale, channels or purpose.
        RuntimeError: spandrel cannot be imported.
    """
    with needing_spandrel(f"{source} is to be recognised by"):
        import spandrel  # here: torchvision is heavy
        from spandrel_extra_arches import EXTRA_REGISTRY
    found, state = None, spandrel.canonicalize_state_dict(dict(tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while found is None and state:
            for registry in (spandrel.MAIN_REGISTRY, EXTRA_REGISTRY):
                try:
                    found = registry.load(state)
                    break
                except Exception:  # it tries to build whatever a few names suggest
                    continue
            state = _unwrapped(state)
    if found is None:
        raise ValueError(
            f"{source}: spandrel recognises no network in its {len(tensors)} tensors: name the "
            "code that makes it, as in file.py:Network or package.module:Network, by "
            "--teacher-network or evaluate.py's --backbone"
        )
    what = f"{source} is {found.architecture.name}"
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose == "FaceSR":
        raise ValueError(f"{what}, made for {found.purpose}; expected one that restores any image")
    if (found.input_channels, found.output_channels) != (3, 3):
        raise ValueError(
            f"{what} for x{found.scale}, from {found.input_channels} to {found.output_channels} "
            "channels; expected one of RGB images, from 3 to 3"
        )
    if found.scale != scale:
        raise ValueError(f"{what} for x{found.scale}; expected one for x{scale}")
    network = Detected(found)
    check_output(network, what, scale)
    return network


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is below the word that all names begin with, or that wrappers use; {} for neither."""
    words = {name.partition(".")[0] for name in state if "." in name}
    common = words if all("." in name for name in state) and len(words) == 1 else set()
    inner = [f"{word}." for word in common or words & WRAPPERS]
    if len(inner) != 1:
        return {}
    return {n.removeprefix(inner[0]): t for n, t in state.items() if n.startswith(inner[0])}
