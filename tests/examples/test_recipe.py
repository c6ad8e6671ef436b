"""Recipes: the paper's numbers at the steps where they change, and what a run really steps with."""

import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from restoration.data.crops import Batches, Crop, RandomCrops, check_shares
from restoration.data.datasets import Pair
from restoration.recipe import PAPER, SMALL, SMALL_SR, Cosine, Decay, Recipe, Stage
from restoration.training.loop import Run, train
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

STAGED = Recipe(5, batch_size=8, crop=16, stages=(Stage(2, 24, 4), Stage(4, 32, 4)))


def test_lr_is_a_ramp_and_half_a_cosine():
    recipe = Recipe(110, batch_size=1, crop=8, lr=1.0, schedule=Cosine(end=0.2, warm_up=10))
    assert recipe.lr_at(0) == pytest.approx(0.1)
    assert recipe.lr_at(9) == pytest.approx(1.0)
    assert recipe.lr_at(10) == pytest.approx(1.0)
    assert recipe.lr_at(60) == pytest.approx(0.6)
    assert recipe.lr_at(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert recipe.lr_at(110) == pytest.approx(0.2)


def test_lr_never_leaves_its_bounds_and_falls_after_the_ramp():
    lrs = [SMALL_SR.lr_at(step) for step in range(SMALL_SR.iterations)]
    assert all(0 < lr <= SMALL_SR.lr for lr in lrs)
    rest = lrs[50:]
    assert rest == sorted(rest, reverse=True)


def test_a_run_shorter_than_the_ramp_has_a_learning_rate():
    recipe = Recipe(iterations=3, batch_size=1, crop=8)
    assert [recipe.lr_at(step) for step in range(4)] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5])


def test_the_papers_recipes_in_full():
    """Implementation details of the paper and its appendix; the steps are tested below."""
    same = {"swinir-student": 250_000, "rcan-student": 250_000, "swinir-light": 500_000}
    for name, iterations in same.items():
        assert (PAPER[name].iterations, PAPER[name].reconstruction) == (iterations, "l1")
        assert (PAPER[name].ema, PAPER[name].clip) == (0.999, None)
    nafnet, restormer = PAPER["nafnet-student"], PAPER["restormer-student"]
    assert (nafnet.iterations, nafnet.reconstruction, nafnet.ema) == (200_000, "psnr", None)
    assert (restormer.iterations, restormer.reconstruction) == (300_000, "l1")
    assert restormer.lr_at(0) == restormer.lr_at(92_000) == 3e-4
    assert restormer.lr_at(300_000) == pytest.approx(1e-6)
    assert not restormer.quarter_turns
    assert restormer.mirror
    for recipe in PAPER.values():
        assert (recipe.dcr_weight, recipe.dmm_weight, recipe.form) == (0.1, 1e-3, "released")
        assert recipe.history_interval == 1000


def test_crops_are_counted_over_the_stages():
    recipe = Recipe(10, batch_size=4, crop=8, stages=(Stage(3, 16, 2), Stage(7, 24, 1)))
    sizes = [recipe.stage_at(step).batch_size for step in range(10)]
    assert sizes == [4, 4, 4, 2, 2, 2, 2, 1, 1, 1]
    assert [recipe.crops_before(step) for step in range(11)] == [sum(sizes[:n]) for n in range(11)]


def test_a_shortened_run_switches_at_the_same_shares():
    short = PAPER["restormer-student"].shortened(3000)
    assert [stage.step for stage in short.stages] == [920, 1560, 2040, 2400, 2760]
    for step in (0, 919, 920, 1960):
        assert short.lr_at(step) == pytest.approx(PAPER["restormer-student"].lr_at(100 * step))
    short = PAPER["rcan-student"].shortened(250)
    assert short.schedule == Decay(steps=(100, 200), factor=0.1)
    assert PAPER["rcan-student"].shortened(250_000) == PAPER["rcan-student"]


def test_each_recipe_of_the_paper_has_a_small_variant_of_the_same_kind():
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
def test_history_interval_is_the_papers_and_less_in_short_runs(iterations, interval):
    assert Recipe(iterations, batch_size=1, crop=8).history_interval == interval


@pytest.mark.parametrize("name", ["iterations", "batch_size", "crop"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_below_one_are_refused(name, value):
    numbers = {"iterations": 1, "batch_size": 1, "crop": 1, name: value}
    with pytest.raises(ValueError, match=f"got {name} {value}; expected 1 or more"):
        Recipe(**numbers)


def test_a_stage_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got batch_size 0; expected 1 or more"):
        replace(SMALL_SR, stages=(Stage(3, 8, 0),))


def test_steps_take_one_crop_after_the_other():
    batches = list(Batches(STAGED))
    assert [len(batch) for batch in batches] == [8, 8, 4, 4, 4]
    assert [crop.number for crop in chain(*batches)] == list(range(28))
    assert [{crop.size for crop in batch} for batch in batches] == [{16}, {16}, {24}, {24}, {32}]
    assert len(Batches(STAGED)) == 5


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_processes_and_parts_share_the_same_step(processes, parts):
    ranks = [
        list(Batches(STAGED, processes=processes, rank=rank, parts=parts))
        for rank in range(processes)
    ]
    for step, whole in enumerate(Batches(STAGED)):
        shares = [batch for rank in ranks for batch in rank[step * parts : (step + 1) * parts]]
        assert list(chain(*shares)) == whole
        assert len({len(share) for share in shares}) == 1
    assert len(Batches(STAGED, processes=processes, parts=parts)) == 5 * parts


@pytest.mark.parametrize("first", range(6))
def test_a_resumed_run_goes_on_where_the_first_stopped(first):
    assert list(Batches(STAGED, first=first)) == list(Batches(STAGED))[first:]


def test_the_papers_switches_far_into_the_run():
    """Restormer's first switch: 92,000 steps of 64 crops, then 40 crops of 160."""
    batches = iter(Batches(PAPER["restormer-student"], first=91_999, processes=8, rank=7))
    before, after = next(batches), next(batches)
    assert before == [Crop(92_000 * 64 - 8 + i, 128) for i in range(8)]
    assert after == [Crop(92_000 * 64 + 35 + i, 160) for i in range(5)]


def test_shares_that_differ_are_refused():
    message = r"batch of 4 crops from step 2 on; .* multiple of 8, .* \(2\) times .* \(4\)"
    with pytest.raises(ValueError, match=message):
        check_shares(STAGED, processes=2, parts=4)
    with pytest.raises(ValueError, match="multiple of 3"):
        Batches(STAGED, processes=3)


class Brightness(nn.Module):
    """One number to learn, at no cost; keeps the shapes of what it saw."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, lq):
        self.seen.append(tuple(lq.shape))
        return lq * self.factor


class EnoughError(Exception):
    """Ends a training."""


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)


def bright_run(recipe, image, folder):
    crops = RandomCrops.of(recipe, [Pair("a", image, image // 2)], scale=1, seed=0)
    run = Run(folder, recipe, Brightness(), crops, Accelerator(cpu=True))

    def step(lq, hq):
        loss = recipe.pixel_loss(run.model(lq), hq)
        return loss, {"pixel": loss}

    return run, step


def two_steps(recipe, first, image, folder):
    """What the trainer's student sees and its optimizer has, in two steps from `first` on."""
    run, step = bright_run(recipe, image, folder)
    run.step = first
    groups = []

    def note(optimizer, args, kwargs):
        (group,) = optimizer.param_groups
        (parameter,) = group["params"]
        groups.append({**group, "kind": type(optimizer).__name__, "norm": abs(parameter.grad)})
        if len(groups) == 2:
            raise EnoughError

    handle = register_optimizer_step_pre_hook(note)
    try:
        train(run, step, resume=False)
    except EnoughError:
        pass
    finally:
        handle.remove()
    return run.student.seen, groups


@pytest.mark.parametrize(
    ("switch", "before", "after"),
    [
        (92_000, (64, 128), (40, 160)),
        (156_000, (40, 160), (32, 192)),
        (204_000, (32, 192), (16, 256)),
        (240_000, (16, 256), (8, 320)),
        (276_000, (8, 320), (8, 384)),
    ],
)
def test_restormers_progressive_learning(switch, before, after, image, tmp_path):
    seen, groups = two_steps(PAPER["restormer-student"], switch - 1, image, tmp_path)
    assert seen == [(batch, 3, size, size) for batch, size in (before, after)]
    done = [max(0, step - 92_000) / 208_000 for step in (switch - 1, switch)]
    rates = [1e-6 + (3e-4 - 1e-6) * (1 + np.cos(np.pi * share)) / 2 for share in done]
    assert [group["lr"] for group in groups] == pytest.approx(rates)
    for group in groups:
        assert (group["kind"], group["betas"], group["weight_decay"]) == (
            "AdamW",
            (0.9, 0.999),
            1e-4,
        )
        assert group["norm"] <= 0.01 * 1.0001


@pytest.mark.parametrize(
    ("name", "first", "rates"),
    [
        ("swinir-student", 99_999, (1e-4, 1e-5)),
        ("swinir-student", 199_999, (1e-5, 1e-6)),
        ("rcan-student", 99_999, (1e-4, 1e-5)),
        ("swinir-light", 249_999, (2e-4, 1e-4)),
    ],
)
def test_super_resolutions_decays(name, first, rates, image, tmp_path):
    seen, groups = two_steps(PAPER[name], first, image, tmp_path)
    batch, size = (64, 64) if name == "swinir-light" else (16, 48)
    assert seen == [(batch, 3, size, size)] * 2
    assert [group["lr"] for group in groups] == pytest.approx(rates)
    betas = (0.9, 0.999) if name == "swinir-light" else (0.9, 0.99)
    for group in groups:
        assert (group["kind"], group["betas"], group["weight_decay"]) == ("Adam", betas, 0)
        assert group["eps"] == 1e-8
        assert group["norm"] > 0.01  # nothing is clipped


def test_nafnets_cosine(image, tmp_path):
    seen, groups = two_steps(PAPER["nafnet-student"], 99_999, image, tmp_path)
    assert seen == [(32, 3, 256, 256)] * 2
    assert [group["lr"] for group in groups] == pytest.approx([5.0005e-4] * 2, rel=1e-4)
    assert groups[0]["lr"] > groups[1]["lr"]
    for group in groups:
        assert (group["kind"], group["betas"], group["weight_decay"]) == ("AdamW", (0.9, 0.9), 1e-3)
        assert group["norm"] <= 0.01 * 1.0001


def test_the_first_and_the_last_step_of_nafnet(image, tmp_path):
    small = replace(PAPER["nafnet-student"], batch_size=1, crop=16)
    assert two_steps(small, 0, image, tmp_path)[1][0]["lr"] == 1e-3
    assert two_steps(small, 199_998, image, tmp_path)[1][1]["lr"] == pytest.approx(1e-7, rel=0.01)


def test_the_psnr_loss_is_the_mean_of_the_images_psnr():
    target = torch.zeros(2, 3, 4, 4)
    output = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    loss = PAPER["nafnet-student"].pixel_loss(output, target)
    assert loss.item() == pytest.approx(-30.0, abs=1e-3)  # 20 dB and 40 dB
    assert SMALL_SR.pixel_loss(output, target).item() == pytest.approx(0.055)


def test_the_average_is_what_a_run_yields(image, tmp_path):
    """By its closed form, also after resuming."""
    recipe = Recipe(iterations=3, batch_size=4, crop=16, ema=0.5)
    run, step = bright_run(recipe, image, tmp_path)
    averages = []
    run.validate = lambda model: averages.append(model.factor.item()) or 0.0
    raw = []
    handle = register_optimizer_step_post_hook(
        lambda optimizer, *rest: raw.append(optimizer.param_groups[0]["params"][0].item())
    )
    train(run, step, resume=False)
    handle.remove()
    one, two, three = raw
    assert averages == pytest.approx([one, (one + two) / 2, (one + two) / 4 + three / 2])
    assert run.student.factor.item() == averages[2] != pytest.approx(three)
    again, step = bright_run(recipe, image, tmp_path)
    train(again, step, resume=True)
    assert again.student.factor.item() == averages[2]
