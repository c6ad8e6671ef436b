"""Argument checks with actionable errors."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_SIZE = 16  # four halvings must leave at least one pixel
VALUE_RANGE = (-0.5, 1.5)  # room for overshoot around [0, 1]; 0-255 or [-1, 1] fall outside
# Noise of sigma 50/255, the strongest that denoisers train with, puts at most 0.54 % of lq's values
# outside VALUE_RANGE (2.55 sigma, if all are black or white) and one in 1e13 outside LQ_RANGE (7.6
# sigma). Photographs in [-1, 1] have a fifth or more below -0.5, those in 0-255 nearly all above.
LQ_RANGE = (-1.5, 2.5)
LQ_OUTSIDE = 0.02
ROOM = 0.1  # autocast in bfloat16 moves a deep network's output by some hundredths of its own size


def check_images(
    name: str, images: Tensor, *, min_size: int = MIN_SIZE, channels: int | None = 3
) -> None:
    """Require float images (B, C, H, W) of at least `min_size` pixels a side.

    Raises:
        ValueError: with what was seen and what is expected; so do all checks here.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floating point in [0, 1], got {images.dtype}")
    if images.ndim != 4 or 0 in images.shape[:2] or channels not in (None, images.shape[1]):
        raise ValueError(f"{name} must be (B, {channels or 'C'}, H, W), got {tuple(images.shape)}")
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
    check_images("lq", lq, min_size=1, channels=None)
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
        check_values("lq", lq, LQ_RANGE)
        outside = ((lq < VALUE_RANGE[0]) | (lq > VALUE_RANGE[1])).float().mean().item()
        if outside > LQ_OUTSIDE:
            raise ValueError(
                f"lq must lie in [0, 1], give or take noise: {outside:.0%} of its values are "
                f"outside {VALUE_RANGE}"
            )


def check_origin(
    model: nn.Module, student: nn.Module, lq: Tensor, student_out: Tensor, teacher_out: Tensor
) -> None:
    """Warn if student_out is not what the student makes of lq. Reads from the device.

    Args:
        model: a copy of the student with weights of any age; it is not changed.
        student: the network in training.
        lq: the degraded images.
        student_out: what the trainer made of them with the student, somehow.
        teacher_out: for the case that the two are swapped.
    """
    if any(isinstance(module, nn.SyncBatchNorm) for module in student.modules()):
        return  # it would wait for the other ranks
    first, *others = _reproduce(model, student, lq)
    if not isinstance(first, Tensor) or first.shape != student_out.shape:
        return  # as where training gives several images; other checks tell the rest
    size, distance = _rms(student_out), _distance(first, student_out)
    swapped = _distance(first, teacher_out) < 0.1 * distance and distance > 1e-3 * size
    words = "teacher_out is what the student makes of lq, student_out is not: are they swapped?"
    if not distance > max(ROOM * size, 3 * max(_rms(first - other) for other in others)):
        if swapped:
            warnings.warn(words, stacklevel=2)
        return
    if swapped:
        raise ValueError(words)
    warnings.warn(
        "student_out is not what the student makes of lq, they differ by "
        f"{distance / max(size, 1e-9):.0%}"
        f"{_reason(first, lq, student_out)}. Negatives come from a copy of the student, so make "
        "the loss from a module that is all of lq to image, and pass the lq that it was given",
        stacklevel=2,
    )


@torch.no_grad()
def _reproduce(model: nn.Module, student: nn.Module, lq: Tensor) -> list[Any]:
    """The student's output three times, by a copy, with random numbers that are given back.

    The copy has the student's weights and modes, as batch norm needs; dropout shows in how much
    the outputs differ.
    """
    model = copy.deepcopy(model)
    tensors = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.copy_(tensors[name])
    modes = {name: module.training for name, module in student.named_modules()}
    for name, module in model.named_modules():
        module.training = modes.get(name, False)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), lq.dtype)
    devices = [] if lq.device.type == "cpu" else [lq.device]
    with torch.random.fork_rng(devices, device_type=lq.device.type):
        return [model(lq.to(dtype, copy=True)) for _ in range(3)]


def _reason(out: Tensor, lq: Tensor, student_out: Tensor) -> str:
    """What was done to a module's output outside of it, in words; nothing if that is unclear."""
    out, student_out = out.float(), student_out.detach().float()
    x, y = out - out.mean(), student_out - student_out.mean()
    slope = ((x * y).sum() / x.square().sum().clamp(min=1e-30)).item()
    if slope and _rms(y - slope * x) < 0.1 * ROOM * _rms(student_out):
        return f": it is {slope:.3g} times as much plus a constant, so scaling lies outside"
    for mode in ("bicubic", "bilinear", "nearest") if lq.shape[1] == 3 else ():
        base = F.interpolate(lq.float(), out.shape[2:], mode=mode)
        if _distance(out + base, student_out) < ROOM * _rms(student_out):
            return ": it is that plus lq, so the residual connection lies outside"
    return ""


def _distance(out: Tensor, seen: Tensor) -> float:
    """Of a network's output from what a trainer may have clipped."""
    return _rms(out.clamp(*seen.detach().aminmax()) - seen)


def _rms(x: Tensor) -> float:
    return x.detach().float().square().mean().sqrt().item()


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
        and (whole or abs(number) <= sys.float_info.max)
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


def check_choice(name: str, value: object, choices: Iterable[str], more: str = "") -> None:
    """Require one of some words; `more` says what else would do."""
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}{more}, got {value!r}")


def check_module(name: str, value: object) -> None:
    """Require a torch module."""
    if not isinstance(value, nn.Module):
        raise ValueError(f"{name} must be a module, got {value!r}")


def is_compiling_or_capturing() -> bool:
    """Whether values cannot be read: torch.compile traces or a CUDA graph captures."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def as_loss(value: Tensor, images: Tensor) -> Tensor:
    """Float32, or float64 where both the computation and the caller's images are float64."""
    return value if value.dtype == images.dtype == torch.float64 else value.float()
