"""The fused path: the student passes once with gradient, teacher and negatives in chunks without.

Each of their levels is compared with the student's as soon as it exists, and then freed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dckd_losses.encoder.base import Comparison
from dckd_losses.network import VQGANNetwork
from dckd_losses.ops.distances import LevelDistances
from dckd_losses.ops.gradient_scale import GradientScale

Range = tuple[float, float]


def to_input_range(images: Tensor, input_range: Range, network: VQGANNetwork) -> Tensor:
    """Images from [0, 1] to the network's range, in at least float32 and in its path's layout."""
    low, high = input_range
    mapped = images.to(network.quant_conv.weight.dtype) * (high - low) + low
    return mapped.contiguous(memory_format=network.memory_format)


def stream(
    network: VQGANNetwork,
    input_range: Range,
    student: Tensor,
    teacher: Tensor,
    negatives: Tensor | None,
    codes: bool,
    chunk: int,
) -> Comparison:
    """See `FeatureEncoder.compare`; of teacher and negatives, `chunk` images pass at once."""
    scale = GradientScale(network.encoder.dtype)
    entered = scale.enter(to_input_range(student, input_range, network))
    levels = list(network.levels(entered))
    distances: list[LevelDistances] = []
    others = [teacher]
    if negatives is not None:
        distances = [LevelDistances(level.detach(), len(negatives)) for level in levels]
        others += list(negatives)
    teacher_logits = _compare_others(network, input_range, others, distances, codes, chunk)
    results: list[Tensor] = []
    max_slopes: list[float] = []
    for level, distance in zip(levels, distances, strict=False):
        results += distance.differentiable(level)
        max_slopes += distance.max_slope
    if codes:
        results.append(network.encoder(levels[-1]))
        max_slopes.append(1.0)
    results = scale.leave(results, max_slopes)
    student_logits = network.head(results.pop()) if codes else None
    return Comparison(results[::2], results[1::2], student_logits, teacher_logits)


@torch.no_grad()
def _compare_others(
    network: VQGANNetwork,
    input_range: Range,
    others: list[Tensor],
    distances: list[LevelDistances],
    codes: bool,
    chunk: int,
) -> Tensor | None:
    """Let teacher and negatives pass; returns the teacher's code logits where they are wanted."""
    batch, logits = len(others[0]), []
    sets = max(1, chunk // batch)
    for first in range(0, len(others), sets):
        for start in range(0, batch, chunk):
            group = [images[start : start + chunk] for images in others[first : first + sets]]
            images = to_input_range(torch.cat(group), input_range, network)
            for i, level in enumerate(network.levels(images)):
                if distances:
                    distances[i].add(level.view(len(group), -1, *level.shape[1:]), first, start)
            if codes and first == 0:
                logits.append(network.code_logits(level[: len(group[0])]))
    return torch.cat(logits) if logits else None


def twopass(
    network: VQGANNetwork,
    input_range: Range,
    student: Tensor,
    teacher: Tensor,
    negatives: Tensor | None,
    codes: bool,
    chunk: int,
) -> Comparison:
    """As `stream`, `chunk` images of the batch at a time, and again in backward.

    Between the two it keeps the images only. A batch of one chunk passes once and gains nothing.
    """
    batch, parts = len(student), []
    for start in range(0, batch, chunk):
        rows = slice(start, start + chunk)
        others = None if negatives is None else negatives[:, rows]
        arguments = network, input_range, student[rows], teacher[rows], others, codes, chunk
        if chunk >= batch:
            return stream(*arguments)
        parts.append(checkpoint(stream, *arguments, use_reentrant=False, preserve_rng_state=False))
    shares = [min(chunk, batch - start) / batch for start in range(0, batch, chunk)]
    return Comparison(
        _means([part.positive for part in parts], shares),
        _means([part.negative for part in parts], shares),
        _joined([part.student_logits for part in parts]),
        _joined([part.teacher_logits for part in parts]),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _means(parts: list[list[Tensor]], shares: list[float]) -> list[Tensor]:
    """The whole batch's means at each level, from its parts' and their shares of the batch."""
    return [
        torch.stack([share * x for share, x in zip(shares, level, strict=True)]).sum()
        for level in zip(*parts, strict=True)
    ]
