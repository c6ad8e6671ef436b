"""What a bound says, and where a number's error names what was seen."""

import pytest
import torch
from conftest import Pyramid
from torch import nn

from dckd_losses import (
    DCKDLoss,
    DCRLoss,
    DMMLoss,
    HistoryModel,
    NegativeGenerator,
    VQGANEncoder,
    gradient_ratio,
)
from dckd_losses.checks import as_loss, check_batch, check_number, check_step_values
from dckd_losses.negatives import RandomMix, RandomNoise

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (-1, {"at_least": 0}, "finite and at least 0, got -1"),
        (10**400, {"above": 0}, "finite and above 0, got 10000"),
        (INF, {"at_least": 0}, "finite and at least 0, got inf"),
        (NAN, {"above": 0}, "finite and above 0, got nan"),
        (NAN, {"at_least": 0, "at_most": 1}, "at least 0 and at most 1, got nan"),
        (1, {"at_least": 0, "below": 1}, "at least 0 and below 1, got 1"),
        (0, {"above": 0, "or_none": True}, "finite and above 0, or None, got 0"),
        (None, {"above": 0}, "a number, finite and above 0, got None"),
        (1.0, {"whole": True}, "a whole number, got 1.0"),
        (1.5, {"at_least": 0, "at_most": 1}, "at least 0 and at most 1, got 1.5"),
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


def tiny():
    return nn.Conv2d(3, 3, 3, padding=1)


ODD = ["x", -1, [], {}, object(), torch.ones(2), 2 + 3j, 10**400, NAN]


@pytest.mark.parametrize(
    "make",
    [
        lambda odd: DCRLoss(Pyramid(), level_weights=odd),
        lambda odd: DCRLoss(Pyramid(), eps=odd),
        lambda odd: DMMLoss(Pyramid(), form=odd),
        *(
            lambda odd, name=name: VQGANEncoder.from_pretrained("compact", **{name: odd})
            for name in ("input_range", "precision", "impl", "mode")
        ),
        lambda odd: DCKDLoss(odd, Pyramid()),
        lambda odd: DCKDLoss(tiny(), Pyramid(), history=odd),
        lambda odd: DCKDLoss(tiny(), Pyramid(), negatives=odd),
        lambda odd: DCKDLoss(tiny(), Pyramid()).watch(odd),
        lambda odd: DCKDLoss(tiny(), Pyramid()).attach(odd),
        lambda odd: HistoryModel(tiny()).step(odd),
        lambda odd: HistoryModel(tiny(), decay=odd),
        lambda odd: NegativeGenerator(odd),
        lambda odd: NegativeGenerator(HistoryModel(tiny()), include_clean=odd),
        lambda odd: NegativeGenerator(HistoryModel(tiny()), degradation=odd),
        lambda odd: RandomMix(noise=odd),
        lambda odd: RandomNoise(sigma=odd),
        lambda odd: gradient_ratio(odd, torch.ones(()), torch.ones(1)),
    ],
)
def test_odd_arguments_end_in_a_sentence(make):
    """In a ValueError, not in whatever Python or torch says of them later."""
    for odd in ODD:
        with pytest.raises(ValueError, match=r"[a-z_' ]{12}"):
            make(odd)


@pytest.mark.parametrize("value", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [torch.float16, torch.float32, torch.float64])
def test_a_loss_is_float64_only_if_both_are(value, images):
    seen = as_loss(torch.ones((), dtype=value), torch.ones(1, dtype=images)).dtype
    expected = torch.float64 if value == images == torch.float64 else torch.float32
    assert seen == expected


@pytest.fixture
def photograph():
    """Values of a photograph: a fifth below 0.1, some at both ends."""
    return torch.linspace(-0.2, 1.2, 3 * 32 * 32).clamp(0, 1).square().view(1, 3, 32, 32)


def noise(images, sigma):
    generator = torch.Generator().manual_seed(0)
    return images + sigma / 255 * torch.randn(images.shape, generator=generator)


@pytest.mark.parametrize("base", ["photograph", "black", "white"])
def test_noise_of_sigma_50_is_an_lq_like_others(photograph, base):
    lq = {"photograph": photograph, "black": 0 * photograph, "white": 0 * photograph + 1}[base]
    lq = noise(lq.repeat(8, 1, 1, 1), 50)
    assert lq.min() < -0.5 or lq.max() > 1.5
    check_step_values(photograph, photograph, lq)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (lambda x: 255 * x, r"lq must lie in \[0, 1\], got values from 0 to 255"),
        (lambda x: 2 * x - 1, r"lq must lie in \[0, 1\], give or take noise: \d\d% of its values"),
        (lambda x: noise(2 * x - 1, 15), "give or take noise"),
        (lambda x: (x - 0.45) / 0.22, "lq must lie"),
    ],
    ids=["0-255", "[-1, 1]", "[-1, 1] with noise", "standardised"],
)
def test_an_lq_in_another_range_is_told(photograph, told, message):
    with pytest.raises(ValueError, match=message):
        check_step_values(photograph, photograph, told(photograph))


def test_lq_may_have_any_size_and_channels_and_outputs_three():
    out, raw = torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 1, 1)
    check_batch(student_out=out, teacher_out=out, lq=raw)
    with pytest.raises(ValueError, match=r"student_out must be \(B, 3, H, W\), got \(1, 4, 16"):
        check_batch(student_out=torch.zeros(1, 4, 16, 16), teacher_out=out)
    with pytest.raises(ValueError, match=r"lq must be \(B, C, H, W\), got \(1, 0, 1, 1\)"):
        check_batch(student_out=out, teacher_out=out, lq=raw[:, :0])
