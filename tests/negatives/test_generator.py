"""Eq. 4: who makes the negatives, from what, and how they are counted."""

import pytest
import torch
from conftest import Student
from torch import distributed, nn

from dckd_losses import HistoryModel, NegativeGenerator
from dckd_losses.negatives.degradations import RandomNoise
from dckd_losses.negatives.draws import Draws


@pytest.fixture
def history(student):
    return HistoryModel(student)


def test_is_history_of_degraded_copies(history, images):
    lq = images(2, 3, 8, 9)
    seen = NegativeGenerator(history, num_negatives=3, seed=4)(lq)
    inputs = RandomNoise()(lq.repeat(3, 1, 1, 1), Draws(4, 0, torch.tensor(0)))
    assert seen.shape == (3, 2, 3, 16, 18)
    for j in range(3):
        torch.testing.assert_close(seen[j], history(inputs[2 * j : 2 * j + 2]))
    assert not seen.requires_grad


@pytest.mark.parametrize("degradation", ["blur", "noise", "resize", "mix"])
def test_negatives_differ_from_each_other_and_between_calls(history, images, degradation):
    lq = images(1, 3, 12, 12)
    negatives = NegativeGenerator(history, degradation=degradation)
    first, second = negatives(lq), negatives(lq)
    assert len(first) == 5
    assert len(torch.cat([first, second]).flatten(1).unique(dim=0)) == 10


def test_a_callable_degrades_each_negative_anew(history, images):
    lq, calls = images(2, 3, 8, 8), []

    def darken(x):
        calls.append(x)
        x *= 0.5 ** len(calls)
        return x

    before = lq.clone()
    negatives = NegativeGenerator(history, num_negatives=3, degradation=darken)
    seen = negatives(lq)
    assert negatives.counter == 1
    assert torch.equal(lq, before), "what a callable does in place stays its own"
    for j in range(3):
        torch.testing.assert_close(seen[j], history(lq * 0.5 ** (j + 1)))


def test_seed_and_rank_differ(history, images, monkeypatch):
    lq = images(1, 3, 8, 8)
    zero = NegativeGenerator(history)(lq)
    assert not torch.equal(zero, NegativeGenerator(history, seed=1)(lq))
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    assert not torch.equal(zero, NegativeGenerator(history)(lq))


def test_global_generator_is_untouched(history, images):
    lq = images(1, 3, 8, 8)
    state = torch.get_rng_state()
    NegativeGenerator(history, degradation="mix")(lq)
    assert torch.equal(torch.get_rng_state(), state)


def test_history_is_used_not_owned(history, clone):
    negatives = NegativeGenerator(history)
    assert not list(negatives.parameters())
    negatives.double()
    assert next(history.parameters()).dtype == torch.float64
    pair = clone(nn.ModuleList([history, negatives]))
    assert pair[1].history is pair[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_negatives": 0}, "at least one degraded, got 0"),
        ({"num_negatives": 2**63}, "num_negatives must be at most 65536, got 9223372036854775808"),
        ({"num_negatives": "5"}, "must be a whole number, at most 65536, got '5' as text"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"degradation": RandomNoise}, r"write RandomNoise\(\), got RandomNoise itself"),
        ({"num_negatives": 1, "include_clean": True}, "at least one degraded, got 1"),
        ({"degradation": "fog"}, "one of blur, noise, resize, mix or a callable, got 'fog'"),
        ({"degradation": 3}, "got 3"),
    ],
)
def test_refuses_arguments(history, arguments, message):
    with pytest.raises(ValueError, match=message):
        NegativeGenerator(history, **arguments)


def test_refuses_others(history, images):
    with pytest.raises(ValueError, match="history must be a HistoryModel, got Student"):
        NegativeGenerator(Student())
    with pytest.raises(ValueError, match=r"lq must be \(B, C, H, W\)"):
        NegativeGenerator(history)(images(3, 8, 8))
    with pytest.raises(ValueError, match="a degraded lq must be a tensor, got NoneType"):
        NegativeGenerator(history, degradation=lambda x: None)(images(1, 3, 8, 8))
    shrink = NegativeGenerator(history, degradation=lambda x: x[..., ::2])
    with pytest.raises(ValueError, match=r"degraded lq \(1, 3, 8, 4\) and lq \(1, 3, 8, 8\)"):
        shrink(images(1, 3, 8, 8))


def test_a_module_that_degrades_is_no_part_of_it(history):
    negatives = NegativeGenerator(history, degradation=nn.Conv2d(3, 3, 1))
    assert negatives.state_dict().keys() == {"counter"}
    assert not list(negatives.parameters())
