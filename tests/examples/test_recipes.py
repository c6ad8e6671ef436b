"""Recipes: the learning rate as a function of the step, and numbers that make no sense."""

import math

import pytest
from restoration.recipes import SMALL_SR, Recipe


def test_lr_is_a_ramp_and_half_a_cosine() -> None:
    recipe = Recipe(iterations=110, batch_size=1, crop=8, lr=1.0, lr_end=0.2, warm_up=10)
    assert recipe.lr_at(0) == pytest.approx(0.1)
    assert recipe.lr_at(9) == pytest.approx(1.0)
    assert recipe.lr_at(10) == pytest.approx(1.0)
    assert recipe.lr_at(60) == pytest.approx(0.6)
    assert recipe.lr_at(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert recipe.lr_at(110) == pytest.approx(0.2)


def test_lr_never_leaves_its_bounds_and_falls_after_the_ramp() -> None:
    lrs = [SMALL_SR.lr_at(step) for step in range(SMALL_SR.iterations)]
    assert all(0 < lr <= SMALL_SR.lr for lr in lrs)
    rest = lrs[SMALL_SR.warm_up :]
    assert rest == sorted(rest, reverse=True)


def test_a_run_shorter_than_the_ramp_has_a_learning_rate() -> None:
    recipe = Recipe(iterations=3, batch_size=1, crop=8)
    assert [recipe.lr_at(step) for step in range(4)] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5])


@pytest.mark.parametrize(
    ("iterations", "interval"), [(10, 50), (1000, 50), (25_000, 100), (250_000, 1000)]
)
def test_history_interval_is_the_papers_share_of_a_run(iterations: int, interval: int) -> None:
    assert Recipe(iterations, batch_size=1, crop=8).history_interval == interval


@pytest.mark.parametrize("name", ["iterations", "batch_size", "crop"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_below_one_are_refused(name: str, value: int) -> None:
    numbers = {"iterations": 1, "batch_size": 1, "crop": 1, name: value}
    with pytest.raises(ValueError, match=f"got {name} {value}; expected 1 or more"):
        Recipe(**numbers)
