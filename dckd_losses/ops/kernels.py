"""Whether Triton kernels carry out the norms and the contrast."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from dckd_losses.ops.triton import DTYPES


def triton_takes(device: torch.device, dtype: torch.dtype) -> bool:
    """On CUDA where `triton` is installed, in all precisions but float64."""
    return device.type == "cuda" and dtype in DTYPES and triton_is_there()


@cache
def triton_is_there() -> bool:
    """Whether `triton` can be imported; with torch's own packages for Linux it can."""
    return find_spec("triton") is not None
