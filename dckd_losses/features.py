"""What the losses need of an encoder, and how any frozen network becomes one."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dckd_losses.checks import check_device
from dckd_losses.frozen import FrozenModule
from dckd_losses.ops.feature_path import Images, Objective, Terms, plain


class Path(NamedTuple):
    """Which way images take through the encoder.

    Attributes:
        impl: "plain" or "fused".
        reason: why this one.
    """

    impl: str
    reason: str


class Encoding(NamedTuple):
    """What an encoder says of a batch of images.

    Attributes:
        levels: features from fine to coarse, each (B, C, H, W) with sizes of their own.
        code_logits: (B', K, h, w), `2<z, e_k> - |e_k|^2`; a softmax over K is Eq. 8's
            distribution. B' is the number of images that were asked for; None if none was.
    """

    levels: tuple[Tensor, ...]
    code_logits: Tensor | None


class FeatureEncoder(FrozenModule):
    """What the losses need of an encoder: `Encoding`s, and a way to compare a step's images."""

    def forward(self, images: Tensor, *, coded: int | None = None) -> Encoding:
        """Encode images; `coded` limits the code logits to the first so many of them."""
        weights = [p for p in self.network.parameters() if p.is_floating_point()]
        weight = weights[0] if weights else images
        check_device("images", images, "the encoder", weight)
        with torch.autocast(images.device.type, enabled=False):
            found = self.network(images.to(weight.dtype, copy=True))  # it may write into its input
        levels, code_logits = _encoding(found, type(self.network).__name__)
        if code_logits is None or coded == 0:
            return Encoding(levels, None)
        return Encoding(levels, code_logits[:coded])

    @property
    def path(self) -> Path:
        """Which way images take now, and why."""
        return Path("plain", f"{type(self.network).__name__} is no VQGAN of this package")

    def compare(self, images: Images, objective: Objective) -> tuple[Tensor, Terms]:
        """The loss of a step's images, by the path that `path` names.

        Args:
            images: in [0, 1] nominally.
            objective: from the terms to the loss.

        Returns:
            The loss, differentiable by the student's images, and its terms.

        Raises:
            ValueError: the network lets no gradient through.
        """
        terms = plain(lambda x, coded: self(x, coded=coded), images)
        self._check_gradient(images.student, terms)
        return objective(terms), terms

    def _check_gradient(self, student: Tensor, terms: Terms) -> None:
        """Refuse a loss that would do nothing, and silently."""
        if not (torch.is_grad_enabled() and student.requires_grad):
            return
        divergence = [] if terms.divergence is None else [terms.divergence]
        for kind, found in (("levels", terms.positive), ("code logits", divergence)):
            if found and not any(term.requires_grad for term in found):
                raise ValueError(
                    f"as an encoder {type(self.network).__name__} lets no gradient through to its "
                    f"images: its {kind} must be made without no_grad or detach; its weights are "
                    "frozen anyway"
                )


class FrozenEncoder(FeatureEncoder):
    """Any network as encoder: a frozen copy of a module that maps images to an `Encoding`.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to `(levels, code_logits)`, with a gradient to
            the images. It is copied, so the caller's module stays trainable, and is given copies
            of the images, so it may write into them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(copy.deepcopy(network))


def _encoding(found: object, name: str) -> Encoding:
    """What somebody's network returned, as what it has to be."""
    if isinstance(found, (tuple, list)) and len(found) == 2:
        levels, codes = found
        if (
            isinstance(levels, (tuple, list))
            and all(isinstance(level, Tensor) for level in levels)
            and (codes is None or isinstance(codes, Tensor))
        ):
            return Encoding(tuple(levels), codes)
    seen = type(found).__name__
    if isinstance(found, (tuple, list)):
        seen += f" of {', '.join(type(part).__name__ for part in found) or 'nothing'}"
    raise ValueError(
        f"as an encoder {name} must return Encoding(levels, code_logits), a tuple of tensors and a "
        f"tensor or None, got a {seen}"
    )
