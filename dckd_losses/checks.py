"""What may be passed to the losses, and what is said when something else is."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor

MIN_SIZE = 16  # four halvings must leave at least one pixel
VALUE_RANGE = (-0.5, 1.5)  # room for overshoot around [0, 1]; 0-255 or [-1, 1] fall outside


def check_images(name: str, images: Tensor, *, min_size: int = MIN_SIZE) -> None:
    """Require float images (B, 3, H, W) of at least `min_size` pixels a side.

    Raises:
        ValueError: with what was seen and what is expected.
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


def check_match(name: str, images: Tensor, other_name: str, other: Tensor) -> None:
    """Require one shape and one device of two image batches.

    Raises:
        ValueError: with both.
    """
    if images.shape != other.shape:
        raise ValueError(
            f"{name} {tuple(images.shape)} and {other_name} {tuple(other.shape)} differ in shape"
        )
    check_device(name, images, other_name, other)


def check_negatives(negatives: Tensor, student: Tensor) -> None:
    """Require at least one negative (N, B, 3, H, W), each like the student's output.

    Raises:
        ValueError: with both shapes or devices.
    """
    if not isinstance(negatives, Tensor) or negatives.ndim != 5 or len(negatives) == 0:
        seen = tuple(negatives.shape) if isinstance(negatives, Tensor) else type(negatives).__name__
        raise ValueError(f"negatives must be (N, B, 3, H, W) with N at least 1, got {seen}")
    if not negatives.is_floating_point():
        raise ValueError(f"negatives must be floating point in [0, 1], got {negatives.dtype}")
    check_match("each negative", negatives[0], "student", student)


def check_step(student_out: Tensor, teacher_out: Tensor, lq: Tensor | None) -> None:
    """Require one step's images, of which lq may be left out, to belong together.

    Raises:
        ValueError: with what was seen and what is expected.
    """
    check_images("student_out", student_out)
    check_images("teacher_out", teacher_out)
    check_match("teacher_out", teacher_out, "student_out", student_out)
    if lq is None:
        return
    check_images("lq", lq, min_size=1)
    if len(lq) != len(student_out):
        raise ValueError(f"lq has {len(lq)} images, student_out has {len(student_out)}")
    check_device("lq", lq, "student_out", student_out)


def check_device(name: str, images: Tensor, other_name: str, other: Tensor) -> None:
    """Require one device of two tensors.

    Raises:
        ValueError: with both.
    """
    if images.device != other.device:
        raise ValueError(
            f"{name} is on {images.device}, {other_name} on {other.device}: move one with "
            ".to(device)"
        )


def check_values(name: str, images: Tensor, *, bounded: bool) -> None:
    """Require finite values, and with `bounded` values within `VALUE_RANGE`. Synchronises.

    Raises:
        ValueError: with the values seen.
    """
    low, high = torch.aminmax(images.detach())
    seen = f"{low.item():.4g} to {high.item():.4g}"
    if not bool(torch.isfinite(torch.stack([low, high])).all()):
        raise ValueError(f"{name} must be finite, got values from {seen}")
    if bounded and (low < VALUE_RANGE[0] or high > VALUE_RANGE[1]):
        raise ValueError(f"{name} must lie in [0, 1], got values from {seen}")


def check_outputs(name: str, student: Tensor, other_name: str, teacher: Tensor) -> None:
    """Require values of outputs, and that they are not taken for each other. Synchronises.

    Raises:
        ValueError: with what was seen and what is expected.
    """
    if torch.is_grad_enabled() and teacher.requires_grad and not student.requires_grad:
        raise ValueError(
            f"{other_name} requires grad and {name} does not: pass the student's output first, "
            "then the teacher's"
        )
    check_values(name, student, bounded=False)
    check_values(other_name, teacher, bounded=True)


def check_number(name: str, value: object, expected: str, holds: Callable[[float], bool]) -> None:
    """Require a number of which something holds, such as "above 0".

    Raises:
        ValueError: with what was seen and what is expected.
    """
    if isinstance(value, Real) and holds(float(value)):
        return
    kind = "" if isinstance(value, Real) else "a number, "
    hint = " as text (in YAML, 1e-3 is text and 1.0e-3 a number)" if isinstance(value, str) else ""
    raise ValueError(f"{name} must be {kind}{expected}, got {value!r}{hint}")


def check_whole(name: str, value: object) -> None:
    """Require a whole number by its type.

    Raises:
        ValueError: with what was seen.
    """
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")


def is_recording() -> bool:
    """Whether values cannot be looked at: torch.compile or a CUDA graph is recording."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
