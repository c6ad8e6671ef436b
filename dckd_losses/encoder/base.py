"""What the losses need of an encoder, and how any frozen network becomes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dckd_losses.checks import check_device
from dckd_losses.copies import at_least_float32
from dckd_losses.ops.distances import level_distances


class Encoding(NamedTuple):
    """What an encoder says of a batch of images.

    Attributes:
        levels: features from fine to coarse, each (B, C, H, W) with sizes of their own.
        code_logits: (B', K, h, w), `2<z, e_k> - |e_k|^2`; a softmax over K is Eq. 8's
            distribution. B' is the number of images that were asked for; None if none was.
    """

    levels: tuple[Tensor, ...]
    code_logits: Tensor | None


class Comparison(NamedTuple):
    """What the losses are computed from.

    Attributes:
        positive: mean |S - T| at each level, scalars; empty without negatives.
        negative: the sum over negatives of mean |S - N_j| at each level, likewise.
        student_logits: the student's code logits, (B, K, h, w); None where they are not wanted.
        teacher_logits: the teacher's, without gradient.
    """

    positive: list[Tensor]
    negative: list[Tensor]
    student_logits: Tensor | None
    teacher_logits: Tensor | None


class FeatureEncoder(nn.Module):
    """A frozen network that turns images into `Encoding`s and compares a step's images.

    The network lies outside `_modules` and stays in eval mode. It is in no `state_dict`,
    `parameters()` or `buffers()` of this module or of a parent, so optimizers,
    DistributedDataParallel and checkpoints never meet it; `.to()` and its kin still reach it, but
    casts below float32 only move it.

    Args:
        network: maps images (B, 3, H, W) in [0, 1] to `(levels, code_logits)`, with a gradient to
            the images; it may write into them. It is frozen in place.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "network", network.requires_grad_(False).eval())
        super().train(False)

    def train(self, mode: bool = True) -> FeatureEncoder:
        """Stay in eval mode whatever a parent's `train()` says."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FeatureEncoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.inference_mode(False):  # whose tensors could never be saved for backward
            self.network._apply(at_least_float32(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: Tensor, *, num_with_codes: int | None = None) -> Encoding:
        """Encode images.

        Args:
            images: (B, 3, H, W) in [0, 1] nominally.
            num_with_codes: the first how many images get code logits; all by default.
        """
        weights = [p for p in self.network.parameters() if p.is_floating_point()]
        weight = weights[0] if weights else images
        check_device("images", images, "the encoder", weight)
        with torch.autocast(images.device.type, enabled=False):
            found = self.network(images.to(weight.dtype, copy=True))  # it may write into its input
        levels, code_logits = _encoding(found, type(self.network).__name__)
        if code_logits is None or num_with_codes == 0:
            return Encoding(levels, None)
        return Encoding(levels, code_logits[:num_with_codes])

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        negatives: Tensor | None = None,
        *,
        codes: bool = False,
    ) -> Comparison:
        """Compare the student's images with the others, differentiably by the student's.

        Everything passes at once and by autograd alone, so it has a second derivative.

        Args:
            student: (B, 3, H, W) in [0, 1] nominally.
            teacher: (B, 3, H, W), likewise.
            negatives: (N, B, 3, H, W), likewise; None where no distances are wanted.
            codes: whether code logits are wanted.

        Raises:
            ValueError: the network gives no code logits, or lets no gradient through.
        """
        batch = len(student)
        num_with_codes = batch if codes else 0
        others = [teacher, *([] if negatives is None else negatives)]
        with torch.no_grad():
            fixed = self(torch.cat(others), num_with_codes=num_with_codes)
        mine = self(student, num_with_codes=num_with_codes)
        if codes and (mine.code_logits is None or fixed.code_logits is None):
            raise ValueError("this encoder gives no code logits, which DMM needs")
        positive, negative = [], []
        if negatives is not None:
            for level, other in zip(mine.levels, fixed.levels, strict=True):
                teacher_level, *negative_levels = other.split(batch)
                distances = level_distances(level, teacher_level, negative_levels)
                positive.append(distances[0])
                negative.append(distances[1])
        found = Comparison(positive, negative, mine.code_logits, fixed.code_logits)
        self._check_gradient(student, found)
        return found

    def _check_gradient(self, student: Tensor, found: Comparison) -> None:
        """Refuse a loss that would do nothing, and silently."""
        if not (torch.is_grad_enabled() and student.requires_grad):
            return
        logits = [] if found.student_logits is None else [found.student_logits]
        for kind, results in (("levels", found.positive), ("code logits", logits)):
            if results and not any(result.requires_grad for result in results):
                raise ValueError(
                    f"as an encoder {type(self.network).__name__} lets no gradient through to its "
                    f"images: its {kind} must be made without no_grad or detach; its weights are "
                    "frozen anyway"
                )


def _encoding(found: object, name: str) -> Encoding:
    """Require that a network returned an `Encoding`."""
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
