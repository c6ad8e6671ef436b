"""From images to the terms of the loss: the plain path, and the fused one that streams.

They and `two_pass` differ in what they keep for backward and in how often they run the network, not
in their result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dckd_losses.ops import reference
from dckd_losses.ops.gradient_scale import GradientScale
from dckd_losses.ops.level_gaps import LevelGaps

if TYPE_CHECKING:
    from dckd_losses.network import VQGANNetwork

DEEP = 2  # the level from which on `DEEP_IMAGES` images have no more features than one at level 0
DEEP_IMAGES = 6


@dataclass
class Images:
    """One step's images and what is wanted of them.

    Attributes:
        student: (B, 3, H, W).
        teacher: (B, 3, H, W).
        negatives: (N, B, 3, H, W), or None where no distances are wanted.
        divergence: from the student's and the teacher's code logits to their mean divergence over
            tokens, or None where it is not wanted.
        prepare: from images as they are given to images as the network wants them. Left for when
            an image's turn comes, so that no prepared copy of all of them is ever held.
    """

    student: Tensor
    teacher: Tensor
    negatives: Tensor | None = None
    divergence: Callable[[Tensor, Tensor], Tensor] | None = None
    prepare: Callable[[Tensor], Tensor] = lambda images: images

    def others(self) -> list[Tensor]:
        """The teacher's images, then each negative's."""
        return [self.teacher, *([] if self.negatives is None else self.negatives)]

    def __getitem__(self, rows: slice) -> Images:
        """A part of the batch."""
        negatives = None if self.negatives is None else self.negatives[:, rows]
        return replace(
            self, student=self.student[rows], teacher=self.teacher[rows], negatives=negatives
        )


@dataclass
class Terms:
    """What the losses are made of.

    Attributes:
        positive: mean distance from student to teacher at each level; scalars, none where no
            distances are wanted.
        negative: the same to each negative, summed over negatives.
        divergence: of the code distributions, a scalar; None where it is not wanted.
    """

    positive: list[Tensor] = field(default_factory=list)
    negative: list[Tensor] = field(default_factory=list)
    divergence: Tensor | None = None


Objective = Callable[[Terms], Tensor]
Encode = Callable[[Tensor, int], tuple[tuple[Tensor, ...], Tensor | None]]


def plain(encode: Encode, images: Images) -> Terms:
    """Everything at once by autograd alone; works for any encoder and has a second derivative.

    Args:
        encode: images and how many of them get code logits, to levels and logits.
        images: in [0, 1].
    """
    batch, others = len(images.student), images.others()
    coded = batch if images.divergence is not None else 0
    with torch.no_grad():
        fixed, targets = encode(torch.cat(others), coded)
    levels, logits = encode(images.student, coded)
    terms = Terms()
    if images.negatives is not None:
        for level, other in zip(levels, fixed, strict=True):
            teacher, *negatives = torch.split(other, batch)
            positive, negative = reference.level_gaps(level, teacher, negatives)
            terms.positive.append(positive)
            terms.negative.append(negative)
    if images.divergence is not None:
        if logits is None or targets is None:
            raise ValueError("this encoder gives no code logits, which DMM needs")
        terms.divergence = images.divergence(logits, targets)
    return terms


def stream(network: VQGANNetwork, images: Images, chunk: int) -> Terms:
    """The student passes with gradient; the others pass after it in chunks without.

    Each of their levels is reduced against the student's as soon as it exists.

    Args:
        network: with fused operations.
        images: in [0, 1].
        chunk: how many of the others' images are in flight at once.
    """
    scale = GradientScale(network.encoder.dtype)
    levels = list(network.levels(scale.enter(images.prepare(images.student))))
    gaps, targets = _compare(network, [level.detach() for level in levels], images, chunk)
    results: list[Tensor] = []
    gains: list[float] = []
    for level, gap in zip(levels, gaps, strict=False):
        results += gap.attach(level)
        gains += gap.gains
    if targets is not None:
        results.append(network.encoder(levels[-1]))
        gains.append(1.0)
    results = scale.leave(results, gains)
    distances = results[: 2 * len(gaps)]
    terms = Terms(distances[::2], distances[1::2])
    if images.divergence is not None and targets is not None:
        terms.divergence = images.divergence(network.head(results[-1]), targets)
    return terms


def _compare(
    network: VQGANNetwork, student: list[Tensor], images: Images, chunk: int
) -> tuple[list[LevelGaps], Tensor | None]:
    """Let the others pass, and reduce each of their levels against the student's.

    Up to level `DEEP` a group of `chunk` images passes at once. From there on features are so small
    that several groups go on together, which the small matrices of these levels like better.

    Returns:
        The gaps at each level (none where no distances are wanted), and the teacher's code logits
        (None where no divergence is wanted).
    """
    others, targets = images.others(), []
    gaps = [LevelGaps(x, len(others) - 1) for x in student if images.negatives is not None]
    with torch.no_grad():
        for groups in _batches(_groups(others, chunk), DEEP_IMAGES * chunk):
            waiting: list[Tensor] = []
            for group in groups:
                features = network.levels(images.prepare(torch.cat(group.parts)), 0, DEEP)
                for i, x in enumerate(features):
                    if gaps and i < DEEP:
                        group.add_to(gaps[i], x)
                waiting.append(x)
            sizes = [len(x) for x in waiting]
            for i, x in enumerate(network.levels(_joined(waiting), DEEP), DEEP):
                pieces = torch.split(x, sizes)
                for group, piece in zip(groups, pieces, strict=True):
                    if gaps:
                        group.add_to(gaps[i], piece)
            if images.divergence is not None:
                of_teacher = [
                    g.sets(p)[0] for g, p in zip(groups, pieces, strict=True) if not g.first
                ]
                targets += [network.code_logits(torch.cat(of_teacher))] if of_teacher else []
    return gaps, torch.cat(targets) if targets else None


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts as one; they are let go."""
    joined = torch.cat(parts)
    parts.clear()
    return joined


@dataclass
class _Group:
    """Some images of some sets, which pass together.

    Attributes:
        first: the first set's number; the teacher's is 0.
        start: the first image's number within the sets.
        parts: each set's images.
    """

    first: int
    start: int
    parts: list[Tensor]

    def sets(self, features: Tensor) -> Tensor:
        """Features of all these images as (sets, images, C, H, W)."""
        return features.view(len(self.parts), -1, *features.shape[1:])

    def add_to(self, gaps: LevelGaps, features: Tensor) -> None:
        """Compare their features with the student's."""
        gaps.add(self.sets(features), self.first, self.start)


def _groups(others: list[Tensor], chunk: int) -> Iterator[_Group]:
    """Image sets in groups of about `chunk` images."""
    batch = len(others[0])
    together = max(1, chunk // batch)
    for first in range(0, len(others), together):
        for start in range(0, batch, chunk):
            sets = others[first : first + together]
            yield _Group(first, start, [images[start : start + chunk] for images in sets])


def _batches(groups: Iterator[_Group], images: int) -> Iterator[list[_Group]]:
    """Groups in lists of at most so many images, or of one group."""
    batch: list[_Group] = []
    for group in groups:
        size = sum(len(part) for one in (*batch, group) for part in one.parts)
        if batch and size > images:
            yield batch
            batch = []
        batch.append(group)
    yield batch
