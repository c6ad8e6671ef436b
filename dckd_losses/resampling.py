"""Interpolation along one axis as matrices, one for each image of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

BICUBIC_A = -0.75  # torch's and OpenCV's bicubic


def scatter(weights: Tensor, at: Tensor, side: int) -> Tensor:
    """Rows of a matrix from taps: weights and positions (B, rows, taps) to (B, rows, side)."""
    matrix = weights.new_zeros(*weights.shape[:2], side)
    return matrix.scatter_add(2, at, weights)


def resize_matrix(source: Tensor, target: Tensor, columns: int, rows: int, mode: Tensor) -> Tensor:
    """Interpolation along one axis as matrices, one per image.

    Equal to `torch.nn.functional.interpolate` (align_corners=False, no antialiasing).

    Args:
        source: pixels before, (B,); at most `columns`.
        target: pixels after, (B,); at most `rows`. Rows beyond are copies that nothing reads.
        columns: width of the matrices.
        rows: height of the matrices.
        mode: 0 area, 1 bilinear, 2 bicubic, (B,).

    Returns:
        (B, rows, columns) float32; each row sums to one.
    """
    source, target = source[:, None, None], target[:, None, None]
    row = torch.arange(rows, device=source.device)[:, None]
    column = torch.arange(columns, device=source.device)
    last = (source - 1).long()
    first = torch.floor(row * source / target)
    end = torch.ceil((row + 1) * source / target)
    inside = (column >= torch.minimum(first, source - 1)) & (column < end) & (column <= last)
    area = inside / inside.sum(2, keepdim=True)
    centre = (row + 0.5) * source / target - 0.5
    below = torch.floor(centre)
    t = centre - below
    a = BICUBIC_A
    linear = torch.cat([torch.zeros_like(t), 1 - t, t, torch.zeros_like(t)], 2)
    cubic = torch.cat(
        [
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
            ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
            ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ],
        2,
    )
    taps = torch.arange(-1, 3, device=source.device)
    at = torch.minimum((below.long() + taps).clamp(min=0), last)
    points = scatter(torch.where(mode[:, None, None] == 1, linear, cubic), at, columns)
    return torch.where(mode[:, None, None] == 0, area, points)
