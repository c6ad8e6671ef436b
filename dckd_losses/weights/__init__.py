"""Named weights: where they are, how they get there, and how files of weights are read.

`python -m dckd_losses.weights` lists, fetches, converts, verifies and describes them. Besides the
Hugging Face Hub, `SOURCES` has other public places where the same checkpoints can be had.
"""

from dckd_losses.weights.files import read_checkpoint
from dckd_losses.weights.registry import (
    COMPACT,
    F16,
    NAMES,
    SOURCES,
    Source,
    cache_dir,
    convert,
    fetch,
    find,
    load,
    local_path,
)

__all__ = [
    "COMPACT",
    "F16",
    "NAMES",
    "SOURCES",
    "Source",
    "cache_dir",
    "convert",
    "fetch",
    "find",
    "load",
    "local_path",
    "read_checkpoint",
]
