"""The fused path: the student passes once with gradient, teacher and negatives in chunks without.

Each of their levels is compared with the student's as soon as it exists, and then freed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dckd_losses.encoder.base import Comparison
from dckd_losses.network import VQGANNetwork
from dckd_losses.ops.distances import LevelDistances
from dckd_losses.ops.gradient_scale import GradientScale


@dataclass(frozen=True)
class FusedPath:
    """The two modes of the fused path.

    Attributes:
        network: with fused operations.
        input_range: of the network; images in [0, 1] are mapped to it.
        codes: whether code logits are wanted.
        chunk: the number of images that are in flight at once besides the student's.
    """

    network: VQGANNetwork
    input_range: tuple[float, float]
    codes: bool
    chunk: int

    def stream(self, student: Tensor, teacher: Tensor, negatives: Tensor | None) -> Comparison:
        """See `FeatureEncoder.compare`; all of the student's images pass at once."""
        scale = GradientScale(self.network.encoder.dtype)
        entered = scale.enter(self.network.prepare(student, self.input_range))
        levels = list(self.network.levels(entered))
        others, distances = [teacher], []
        if negatives is not None:
            others += list(negatives)
            distances = [LevelDistances(level.detach(), len(negatives)) for level in levels]
        teacher_logits = self._compare_others(others, distances)
        results: list[Tensor] = []
        max_slopes: list[float] = []
        for level, distance in zip(levels, distances, strict=False):
            results += distance.differentiable(level)
            max_slopes += distance.max_slope
        if self.codes:
            results.append(self.network.encoder(levels[-1]))
            max_slopes.append(1.0)
        results = scale.leave(results, max_slopes)
        student_logits = self.network.head(results.pop()) if self.codes else None
        return Comparison(results[::2], results[1::2], student_logits, teacher_logits)

    @torch.no_grad()
    def _compare_others(
        self, others: list[Tensor], distances: list[LevelDistances]
    ) -> Tensor | None:
        """Let teacher and negatives pass; returns the teacher's code logits where wanted."""
        batch, logits = len(others[0]), []
        sets = max(1, self.chunk // batch)
        for first in range(0, len(others), sets):
            for start in range(0, batch, self.chunk):
                rows = slice(start, start + self.chunk)
                group = [images[rows] for images in others[first : first + sets]]
                images = self.network.prepare(torch.cat(group), self.input_range)
                for i, level in enumerate(self.network.levels(images)):
                    if distances:
                        distances[i].add(level.view(len(group), -1, *level.shape[1:]), first, start)
                if self.codes and first == 0:
                    logits.append(self.network.code_logits(level[: len(group[0])]))
        return _joined(logits)

    def twopass(self, student: Tensor, teacher: Tensor, negatives: Tensor | None) -> Comparison:
        """As `stream`, `chunk` images of the batch at a time, and again in backward.

        Between the two it keeps the images only. A batch of one chunk passes once.
        """
        batch = len(student)
        if batch <= self.chunk:
            return self.stream(student, teacher, negatives)
        parts, shares = [], []
        for start in range(0, batch, self.chunk):
            rows = slice(start, start + self.chunk)
            images = student[rows], teacher[rows], None if negatives is None else negatives[:, rows]
            parts.append(
                checkpoint(self.stream, *images, use_reentrant=False, preserve_rng_state=False)
            )
            shares.append(len(images[0]) / batch)
        return Comparison(
            [_mean(level, shares) for level in zip(*(p.positive for p in parts), strict=True)],
            [_mean(level, shares) for level in zip(*(p.negative for p in parts), strict=True)],
            _joined([p.student_logits for p in parts]),
            _joined([p.teacher_logits for p in parts]),
        )


def _mean(parts: Sequence[Tensor], shares: list[float]) -> Tensor:
    """The whole batch's mean, from its parts' and their shares of the batch."""
    return torch.stack([share * part for share, part in zip(shares, parts, strict=True)]).sum()


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None
