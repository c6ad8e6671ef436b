"""Features as matrices, and their rows in blocks that a CPU's cache holds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CACHED = 1 << 17  # elements of one block: half a MiB in float32, of which some are alive at once


def rows(features: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C): a view where the features are channels_last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def channels_last(features: Tensor) -> Tensor:
    """The same features in the layout of which `rows` is a view."""
    return features.contiguous(memory_format=torch.channels_last)


def blocks(*matrices: Tensor, larger: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """Go through matrices of the same shape (rows, C) together, block by block.

    An operation that follows another on a block finds it in cache, and its scratch memory stays
    small. On other devices than the CPU, where each operation has a cost of its own, one block
    holds all.

    Args:
        matrices: (rows, C) each.
        larger: than usual by this factor, for single operations that need no cache.
    """
    length, width = matrices[0].shape
    on_cpu = matrices[0].device.type == "cpu"
    size = max(1, larger * CACHED // width) if on_cpu else max(1, length)
    return zip(*(torch.split(matrix, size) for matrix in matrices), strict=True)


def pieces(*features: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Go through features of the same shape (B, n, C) together, as `blocks` through matrices.

    Yields:
        Some of the images, and what their piece of each is, (b, m, C): several small images whole,
        or some rows of a large one.
    """
    batch, length, width = features[0].shape
    on_cpu = features[0].device.type == "cpu"
    size = max(1, CACHED // width) if on_cpu else max(1, batch * length)
    images = max(1, size // length)
    for first in range(0, batch, images):
        some = slice(first, first + images)
        for parts in zip(*(torch.split(x[some], size, 1) for x in features), strict=True):
            yield some, parts
