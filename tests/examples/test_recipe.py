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
    third = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
    for step, lr in ((0, 0.1), (9, 1), (10, 1), (35, third), (60, 0.6), (110, 0.2)):
        assert recipe.lr_at(step) == pytest.approx(lr)
    short = Recipe(iterations=3, batch_size=1, crop=8)  # than its ramp
    assert [short.lr_at(step) for step in range(3)] == pytest.approx([2e-5, 4e-5, 6e-5])


ADAM, LIGHT = ("adam", (0.9, 0.99), 0, None, 0.999), ("adam", (0.9, 0.999), 0, None, 0.999)
NAFNET, RESTORMER = (("adamw", (0.9, b), d, 0.01, None) for b, d in ((0.9, 1e-3), (0.999, 1e-4)))
SIZES = [(64, 128), (40, 160), (32, 192), (16, 256), (8, 320), (8, 384)]
SWITCHES = [0, 92_000, 156_000, 204_000, 240_000, 276_000]


def restormers_rate(step):
    done = max(0, step - 92_000) / 208_000
    return 1e-6 + (3e-4 - 1e-6) * (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize(
    ("name", "iterations", "loss", "optimizer", "sizes", "rates"),
    [
        *(
            (name, 250_000, "l1", ADAM, {0: (16, 48), 249_999: (16, 48)},
             {0: 1e-4, 99_999: 1e-4, 100_000: 1e-5, 199_999: 1e-5, 200_000: 1e-6})
            for name in ("swinir-student", "rcan-student")
        ),
        ("swinir-light", 500_000, "l1", LIGHT, {0: (64, 64), 499_999: (64, 64)},
         {0: 2e-4, 249_999: 2e-4, 250_000: 1e-4, 399_999: 1e-4, 400_000: 5e-5, 449_999: 5e-5,
          450_000: 2.5e-5, 474_999: 2.5e-5, 475_000: 1.25e-5}),
        ("nafnet-student", 200_000, "psnr", NAFNET, {0: (32, 256), 199_999: (32, 256)},
         {0: 1e-3, 99_999: 5.000579e-4, 100_000: 5.0005e-4, 200_000: 1e-7}),
        ("restormer-student", 300_000, "l1", RESTORMER,
         dict(zip(SWITCHES, SIZES, strict=True))
         | {step - 1: size for step, size in zip(SWITCHES[1:], SIZES, strict=False)},
         {step: restormers_rate(step) for step in (*SWITCHES, 91_999, 275_999, 300_000)}),
    ],
)  # fmt: skip
def test_the_papers_recipes_in_full(name, iterations, loss, optimizer, sizes, rates):
    """Implementation details of the paper and its appendix."""
    recipe = PAPER[name]
    assert (recipe.iterations, recipe.reconstruction) == (iterations, loss)
    names = ("optimizer", "betas", "weight_decay", "clip", "ema")
    assert tuple(getattr(recipe, each) for each in names) == optimizer
    stages = {step: recipe.stage_at(step) for step in sizes}
    assert {step: (s.batch_size, s.crop) for step, s in stages.items()} == sizes
    assert {step: recipe.lr_at(step) for step in rates} == pytest.approx(rates, rel=1e-6)
    assert (recipe.quarter_turns, recipe.mirror) == (
        (False, True) if len(sizes) > 2 else (True, False)
    )
    assert (recipe.dcr_weight, recipe.dmm_weight, recipe.form) == (0.1, 1e-3, "released")
    assert recipe.balance is None, "fixed weights"
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("iterations", "batch_size", "crop") for value in (0, 2.5)),
        *(("iterations", value) for value in ("9", None, math.nan, math.inf, 10**400)),
        *((name, value) for name in ("lr", "clip") for value in (0, -1, math.nan, math.inf)),
        *((name, -1) for name in ("weight_decay", "dcr_weight", "dmm_weight")),
        *(("balance", value) for value in (0, math.nan, "0.3")),
        *(("ema", 1), ("betas", (0.9, 1)), ("optimizer", "sgd"), ("reconstruction", "l2")),
        *(("form", None), ("stages", (Stage(3, 8, 0),)), ("stages", (Stage("3", 8, 1),))),
    ],
)
def test_odd_numbers_are_refused_by_name(name, value):
    seen = {"stages": "batch_size|a stage's step"}.get(name, name)
    with pytest.raises(ValueError, match=rf"(got )?({seen}) .*(must be|expected)"):
        replace(SMALL_SR, **{name: value})
    if name == "iterations":
        with pytest.raises(ValueError, match="iterations must be"):
            SMALL_SR.shortened(value)


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


@pytest.mark.parametrize(("optimizer", "clip"), [("adam", None), ("adamw", 1e-3)])
def test_a_run_steps_as_its_recipe_says(optimizer, clip, image, tmp_path):
    rates, stages = Decay(steps=(1,), factor=0.5), (Stage(2, 24, 2),)
    chosen = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.2}
    recipe = Recipe(3, 4, 16, stages, schedule=rates, optimizer=optimizer, clip=clip, **chosen)
    run, step = bright_run(recipe, image, tmp_path)
    groups = []

    def note(optimizer, args, kwargs):
        (group,) = optimizer.param_groups
        norm = group["params"][0].grad.abs().item()
        groups.append({**group, "kind": type(optimizer).__name__.lower(), "norm": norm})

    handle = register_optimizer_step_pre_hook(note)
    train(run, step, resume=False)
    handle.remove()
    assert run.student.seen == [(4, 3, 16, 16), (4, 3, 16, 16), (2, 3, 24, 24)]
    assert [group["lr"] for group in groups] == [0.1, 0.05, 0.05]
    for group in groups:
        assert (group["kind"], group["betas"], group["weight_decay"]) == (
            optimizer,
            (0.8, 0.9),
            0.2,
        )
        assert group["norm"] == pytest.approx(clip, rel=1e-3) if clip else group["norm"] > 0.01


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
