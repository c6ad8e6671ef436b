"""Argument checks with actionable errors."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

MIN_SIZE = 16  # four halvings must leave at least one pixel
VALUE_RANGE = (-0.5, 1.5)  # room for overshoot around [0, 1]; 0-255 or [-1, 1] fall outside


def check_images(name: str, images: Tensor, *, min_size: int = MIN_SIZE) -> None:
    """Require float images (B, 3, H, W) of at least `min_size` pixels a side.

    Raises:
        ValueError: with what was seen and what is expected; so do all checks here.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floating point in [0, 1], got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise ValueError(f"{name} must be (B, 3, H, W), got {tuple(images.shape)}")
    if min(images.shape[2:]) < min_size:
        size = f"{images.shape[2]}x{images.shape[3]}"
        raise ValueError(f"{name} must be at least {min_size}x{min_size} pixels, got {size}")


def check_device(name: str, images: Tensor, other_name: str, other: Tensor) -> None:
    """Require one device of two tensors."""
    if images.device != other.device:
        raise ValueError(
            f"{name} is on {images.device}, {other_name} on {other.device}: move one with "
            ".to(device)"
        )


def check_match(name: str, images: Tensor, other_name: str, other: Tensor) -> None:
    """Require one shape and one device of two image batches."""
    if images.shape != other.shape:
        raise ValueError(
            f"{name} {tuple(images.shape)} and {other_name} {tuple(other.shape)} differ in shape"
        )
    check_device(name, images, other_name, other)


def check_batch(*, lq: Tensor | None = None, **outputs: Tensor) -> None:
    """Require that the images of one step belong together.

    Args:
        lq: the degraded images, of any size; None where the loss does not need them.
        **outputs: restored images by their argument's name, all of one shape.
    """
    (first_name, first), *others = outputs.items()
    check_images(first_name, first)
    for name, images in others:
        check_images(name, images)
        check_match(name, images, first_name, first)
    if lq is None:
        return
    check_images("lq", lq, min_size=1)
    if len(lq) != len(first):
        raise ValueError(
            f"lq has {len(lq)} images, {first_name} has {len(first)} (with watch, lq is what the "
            "watched module last ran on)"
        )
    check_device("lq", lq, first_name, first)


def check_negatives(negatives: Tensor, student: Tensor) -> None:
    """Require at least one negative (N, B, 3, H, W), each like the student's output."""
    if not isinstance(negatives, Tensor) or negatives.ndim != 5 or len(negatives) == 0:
        seen = tuple(negatives.shape) if isinstance(negatives, Tensor) else type(negatives).__name__
        raise ValueError(f"negatives must be (N, B, 3, H, W) with N at least 1, got {seen}")
    if not negatives.is_floating_point():
        raise ValueError(f"negatives must be floating point in [0, 1], got {negatives.dtype}")
    check_match("each negative", negatives[0], "student", student)


def check_values(name: str, images: Tensor, bounds: tuple[float, float] | None = None) -> None:
    """Require finite values, within bounds if there are any. Reads from the device."""
    low, high = torch.aminmax(images.detach())
    seen = f"{low.item():.4g} to {high.item():.4g}"
    if not bool(torch.isfinite(torch.stack([low, high])).all()):
        raise ValueError(f"{name} must be finite, got values from {seen}")
    if bounds is not None and (low < bounds[0] or high > bounds[1]):
        raise ValueError(f"{name} must lie in [0, 1], got values from {seen}")


def check_step_values(student_out: Tensor, teacher_out: Tensor, lq: Tensor | None) -> None:
    """Require plausible values of one step's images, in their order. Reads from the device."""
    if torch.is_grad_enabled() and teacher_out.requires_grad and not student_out.requires_grad:
        raise ValueError(
            "teacher_out requires grad and student_out does not: pass the student's output first, "
            "then the teacher's"
        )
    check_values("student_out", student_out)
    check_values("teacher_out", teacher_out, VALUE_RANGE)
    if lq is not None:
        check_values("lq", lq, VALUE_RANGE)


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    or_none: bool = False,
) -> None:
    """Require a finite number within bounds.

    Args:
        name: the argument's name, for the error.
        value: what was passed.
        at_least: lower bound that is allowed itself.
        above: lower bound that is not.
        at_most: upper bound that is allowed itself.
        below: upper bound that is not.
        whole: require an integer by its type.
        or_none: allow None.
    """
    if or_none and value is None:
        return
    number: Any = value
    typed = isinstance(value, Integral if whole else Real)
    if (
        typed
        and (whole or math.isfinite(number))
        and (at_least is None or number >= at_least)
        and (above is None or number > above)
        and (at_most is None or number <= at_most)
        and (below is None or number < below)
    ):
        return
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    words = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
    if not whole and at_most is None and below is None:
        words.insert(0, "finite")
    kind = "" if typed else "a whole number, " if whole else "a number, "
    expected = (kind + " and ".join(words)).removesuffix(", ") + (", or None" if or_none else "")
    hint = " as text (in YAML, 1e-3 is text and 1.0e-3 a number)" if isinstance(value, str) else ""
    raise ValueError(f"{name} must be {expected}, got {value!r}{hint}")


def is_compiling_or_capturing() -> bool:
    """Whether values cannot be read: torch.compile traces or a CUDA graph captures."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def as_loss(value: Tensor, images: Tensor) -> Tensor:
    """Float32, or float64 where both the computation and the caller's images are float64."""
    return value if value.dtype == images.dtype == torch.float64 else value.float()
