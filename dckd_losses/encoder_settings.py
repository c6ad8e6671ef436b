"""How a VQGAN's encoder may be told to compute, and what is said of anything else."""

from __future__ import annotations

import torch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IMPLS = ("auto", "plain", "fused")
MODES = ("stream", "twopass")


def check_settings(
    input_range: tuple[float, float], precision: str, impl: str, mode: str, chunk: int | None
) -> None:
    """Require settings as `VQGANEncoder` describes them.

    Raises:
        ValueError: with what was seen and what is expected.
    """
    low, high = input_range
    if not low < high:
        raise ValueError(f"input_range must be (low, high) with low < high, got {input_range}")
    for name, value, known in (
        ("precision", precision, PRECISIONS),
        ("impl", impl, IMPLS),
        ("mode", mode, MODES),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if impl == "plain" and (mode != "stream" or chunk is not None):
        raise ValueError(
            f"mode and chunk are of the fused path, got mode={mode!r} and chunk={chunk} with "
            "impl='plain'"
        )
