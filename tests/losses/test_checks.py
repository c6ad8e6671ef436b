"""What a bound says, and where a number's error names what was seen."""

import pytest
import torch

from dckd_losses.checks import as_loss, check_batch, check_number

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (-1, {"at_least": 0}, "finite and at least 0, got -1"),
        (INF, {"at_least": 0}, "finite and at least 0, got inf"),
        (NAN, {"above": 0}, "finite and above 0, got nan"),
        (NAN, {"at_least": 0, "at_most": 1}, "at least 0 and at most 1, got nan"),
        (1, {"at_least": 0, "below": 1}, "at least 0 and below 1, got 1"),
        (0, {"above": 0, "or_none": True}, "finite and above 0, or None, got 0"),
        (None, {"above": 0}, "a number, finite and above 0, got None"),
        (1.0, {"whole": True}, "a whole number, got 1.0"),
        (0, {"whole": True, "at_least": 1}, "at least 1, got 0"),
        ("1e-3", {"above": 0}, r"a number, finite and above 0, got '1e-3' as text \(in YAML, "),
    ],
)
def test_a_number_out_of_bounds_is_told_with_both(value, bounds, expected):
    with pytest.raises(ValueError, match=f"^x must be {expected}"):
        check_number("x", value, **bounds)


def test_a_number_within_bounds_passes():
    check_number("x", 0, at_least=0, at_most=0)
    check_number("x", torch.tensor(2).item(), whole=True, above=1, below=3)
    check_number("x", None, above=0, or_none=True)
    check_number("x", 10**400, whole=True)


def test_a_step_is_named_after_its_arguments():
    a, b = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17)
    check_batch(student=a, teacher=a, lq=b[..., :1, :1])
    with pytest.raises(ValueError, match=r"teacher \(1, 3, 16, 17\) and student \(1, 3, 16, 16\)"):
        check_batch(student=a, teacher=b)
    with pytest.raises(ValueError, match="student_out must be a tensor, got None"):
        check_batch(student_out=None, teacher_out=a)


@pytest.mark.parametrize("value", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [torch.float16, torch.float32, torch.float64])
def test_a_loss_is_float64_only_if_both_are(value, images):
    seen = as_loss(torch.ones((), dtype=value), torch.ones(1, dtype=images)).dtype
    expected = torch.float64 if value == images == torch.float64 else torch.float32
    assert seen == expected
