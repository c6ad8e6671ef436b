"""Recipes: the paper's numbers at the steps where they change, and numbers that make no sense."""

import math
from dataclasses import replace

import pytest
from restoration.recipe import PAPER, SMALL, SMALL_SR, Cosine, Decay, Recipe, Stage


def test_lr_is_a_ramp_and_half_a_cosine() -> None:
    recipe = Recipe(110, batch_size=1, crop=8, lr=1.0, schedule=Cosine(end=0.2, warm_up=10))
    assert recipe.lr_at(0) == pytest.approx(0.1)
    assert recipe.lr_at(9) == pytest.approx(1.0)
    assert recipe.lr_at(10) == pytest.approx(1.0)
    assert recipe.lr_at(60) == pytest.approx(0.6)
    assert recipe.lr_at(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert recipe.lr_at(110) == pytest.approx(0.2)


def test_lr_never_leaves_its_bounds_and_falls_after_the_ramp() -> None:
    lrs = [SMALL_SR.lr_at(step) for step in range(SMALL_SR.iterations)]
    assert all(0 < lr <= SMALL_SR.lr for lr in lrs)
    rest = lrs[50:]
    assert rest == sorted(rest, reverse=True)


def test_a_run_shorter_than_the_ramp_has_a_learning_rate() -> None:
    recipe = Recipe(iterations=3, batch_size=1, crop=8)
    assert [recipe.lr_at(step) for step in range(4)] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5])


class TestPaper:
    """Implementation details of the paper and its appendix; counted from 0, so the first
    100,000 steps are 0 to 99,999."""

    @pytest.mark.parametrize("name", ["swinir-student", "rcan-student"])
    def test_super_resolution(self, name: str) -> None:
        recipe = PAPER[name]
        steps = (0, 99_999, 100_000, 199_999, 200_000, 249_999)
        rates = [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
        assert [recipe.lr_at(step) for step in steps] == pytest.approx(rates)
        assert (recipe.iterations, recipe.optimizer, recipe.betas) == (250_000, "adam", (0.9, 0.99))
        assert (recipe.weight_decay, recipe.reconstruction, recipe.ema) == (0, "l1", 0.999)
        assert {recipe.batch_size_at(step) for step in steps} == {16}
        assert {recipe.crop_at(step) for step in steps} == {48}
        assert recipe.clip is None

    def test_nafnet(self) -> None:
        recipe = PAPER["nafnet-student"]
        assert recipe.lr_at(0) == 1e-3
        assert recipe.lr_at(100_000) == pytest.approx((1e-3 + 1e-7) / 2)
        assert recipe.lr_at(200_000) == pytest.approx(1e-7)
        assert (recipe.iterations, recipe.optimizer, recipe.betas) == (200_000, "adamw", (0.9, 0.9))
        assert (recipe.weight_decay, recipe.clip, recipe.ema) == (1e-3, 0.01, None)
        assert (recipe.batch_size_at(0), recipe.crop_at(199_999)) == (32, 256)
        assert recipe.reconstruction == "psnr"

    def test_restormer(self) -> None:
        recipe = PAPER["restormer-student"]
        switches = [92_000, 156_000, 204_000, 240_000, 276_000]
        at = [0, *(step - side for step in switches for side in (1, 0)), 299_999]
        assert [recipe.crop_at(step) for step in at] == [
            *(128, 128, 160, 160, 192, 192, 256, 256, 320, 320, 384, 384)
        ]
        assert [recipe.batch_size_at(step) for step in at] == [
            *(64, 64, 40, 40, 32, 32, 16, 16, 8, 8, 8, 8)
        ]
        assert (recipe.iterations, recipe.optimizer, recipe.betas) == (
            *(300_000, "adamw", (0.9, 0.999)),
        )
        assert recipe.lr_at(0) == recipe.lr_at(91_999) == recipe.lr_at(92_000) == 3e-4
        assert recipe.lr_at(92_000 + 104_000) == pytest.approx((3e-4 + 1e-6) / 2)
        assert recipe.lr_at(300_000) == pytest.approx(1e-6)
        assert (recipe.weight_decay, recipe.clip, recipe.reconstruction) == (1e-4, 0.01, "l1")
        assert not recipe.quarter_turns

    def test_weights_and_history(self) -> None:
        for recipe in PAPER.values():
            assert (recipe.dcr_weight, recipe.dmm_weight, recipe.form) == (0.1, 1e-3, "released")
            assert recipe.history_interval == 1000


def test_crops_are_counted_over_the_stages() -> None:
    recipe = Recipe(10, batch_size=4, crop=8, stages=(Stage(3, 16, 2), Stage(7, 24, 1)))
    sizes = [recipe.batch_size_at(step) for step in range(10)]
    assert sizes == [4, 4, 4, 2, 2, 2, 2, 1, 1, 1]
    assert [recipe.crops_before(step) for step in range(11)] == [sum(sizes[:n]) for n in range(11)]


def test_a_shortened_run_switches_at_the_same_shares() -> None:
    short = PAPER["restormer-student"].shortened(3000)
    assert [stage.step for stage in short.stages] == [920, 1560, 2040, 2400, 2760]
    for step in (0, 919, 920, 1960):
        assert short.lr_at(step) == pytest.approx(PAPER["restormer-student"].lr_at(100 * step))
    short = PAPER["rcan-student"].shortened(250)
    assert short.schedule == Decay(steps=(100, 200), factor=0.1)
    assert PAPER["rcan-student"].shortened(250_000) == PAPER["rcan-student"]


def test_each_recipe_of_the_paper_has_a_small_variant_of_the_same_kind() -> None:
    for name, paper in PAPER.items():
        small = SMALL[name]
        assert small.iterations <= 200
        assert len(small.stages) == len(paper.stages)
        for same in ("lr", "optimizer", "betas", "weight_decay", "reconstruction", "clip"):
            assert getattr(small, same) == getattr(paper, same)
        assert all(stage.crop % 8 == 0 for stage in small.all_stages)
    assert [(stage.crop, stage.batch_size) for stage in SMALL["restormer-student"].all_stages] == [
        *((32, 4), (40, 2), (48, 2), (64, 1), (80, 1), (96, 1))
    ]
    assert set(SMALL) == {"sr", "deblur", "derain", *PAPER}


@pytest.mark.parametrize(
    ("iterations", "interval"),
    [(10, 50), (1000, 50), (25_000, 125), (200_000, 1000), (250_000, 1000), (500_000, 1000)],
)
def test_history_interval_is_the_papers_and_less_in_short_runs(
    iterations: int, interval: int
) -> None:
    assert Recipe(iterations, batch_size=1, crop=8).history_interval == interval


@pytest.mark.parametrize("name", ["iterations", "batch_size", "crop"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_below_one_are_refused(name: str, value: int) -> None:
    numbers = {"iterations": 1, "batch_size": 1, "crop": 1, name: value}
    with pytest.raises(ValueError, match=f"got {name} {value}; expected 1 or more"):
        Recipe(**numbers)


def test_a_stage_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="got batch_size 0; expected 1 or more"):
        replace(SMALL_SR, stages=(Stage(3, 8, 0),))
