"""What a run really steps with: each recipe of the paper, by the trainer's own objects."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair
from restoration.recipe import PAPER, SMALL_SR, Recipe
from restoration.training import loop
from restoration.training.loop import Run, average_of, optimizer_of, reconstruction, set_lr
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

pytestmark = pytest.mark.usefixtures("one_thread")


class Brightness(nn.Module):
    """One number to learn, at no cost; keeps the shapes of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, lq: Tensor) -> Tensor:
        self.seen.append(tuple(lq.shape))
        return lq * self.factor


class EnoughError(Exception):
    """Ends a training."""


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)


def two_steps(
    recipe: Recipe, first: int, image: np.ndarray, folder: Path
) -> tuple[list[tuple[int, ...]], list[dict[str, Any]]]:
    """What the trainer's student sees and its optimizer has, in two steps from `first` on."""
    student = Brightness()
    crops = RandomCrops.of(recipe, [Pair("a", image, image // 2)], scale=1, seed=0)
    run = Run(folder, recipe, crops, student, step=first)
    groups: list[dict[str, Any]] = []

    def note(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        (group,) = optimizer.param_groups
        (parameter,) = group["params"]
        groups.append({**group, "kind": type(optimizer).__name__, "norm": abs(parameter.grad)})
        if len(groups) == 2:
            raise EnoughError

    handle = register_optimizer_step_pre_hook(note)
    try:
        loop.train(run, Accelerator(), resume=False)
    except EnoughError:
        pass
    finally:
        handle.remove()
    return student.seen, groups


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
def test_restormers_progressive_learning(
    switch: int,
    before: tuple[int, int],
    after: tuple[int, int],
    image: np.ndarray,
    tmp_path: Path,
) -> None:
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
def test_super_resolutions_decays(
    name: str, first: int, rates: tuple[float, float], image: np.ndarray, tmp_path: Path
) -> None:
    seen, groups = two_steps(PAPER[name], first, image, tmp_path)
    batch, size = (64, 64) if name == "swinir-light" else (16, 48)
    assert seen == [(batch, 3, size, size)] * 2
    assert [group["lr"] for group in groups] == pytest.approx(rates)
    betas = (0.9, 0.999) if name == "swinir-light" else (0.9, 0.99)
    for group in groups:
        assert (group["kind"], group["betas"], group["weight_decay"]) == ("Adam", betas, 0)
        assert group["eps"] == 1e-8
        assert group["norm"] > 0.01  # nothing is clipped


def test_nafnets_cosine(image: np.ndarray, tmp_path: Path) -> None:
    seen, groups = two_steps(PAPER["nafnet-student"], 99_999, image, tmp_path)
    assert seen == [(32, 3, 256, 256)] * 2
    assert [group["lr"] for group in groups] == pytest.approx([5.0005e-4] * 2, rel=1e-4)
    assert groups[0]["lr"] > groups[1]["lr"]
    for group in groups:
        assert (group["kind"], group["betas"], group["weight_decay"]) == ("AdamW", (0.9, 0.9), 1e-3)
        assert group["norm"] <= 0.01 * 1.0001


def test_the_first_and_the_last_step_of_nafnet(image: np.ndarray, tmp_path: Path) -> None:
    small = replace(PAPER["nafnet-student"], batch_size=1, crop=16)
    assert two_steps(small, 0, image, tmp_path)[1][0]["lr"] == 1e-3
    assert two_steps(small, 199_998, image, tmp_path)[1][1]["lr"] == pytest.approx(1e-7, rel=0.01)


def test_frozen_parameters_are_not_the_optimizers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    (group,) = optimizer_of(SMALL_SR, model).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[0].parameters()]
    set_lr(optimizer := optimizer_of(SMALL_SR, model), SMALL_SR, 500)
    assert optimizer.param_groups[0]["lr"] == SMALL_SR.lr_at(500)


def test_the_psnr_loss_is_the_mean_of_the_images_psnr() -> None:
    target = torch.zeros(2, 3, 4, 4)
    output = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    (name, loss), *rest = reconstruction(PAPER["nafnet-student"], output, target).items()
    assert (name, rest) == ("psnr_loss", [])
    assert loss.item() == pytest.approx(-30.0, abs=1e-3)  # 20 dB and 40 dB
    assert reconstruction(SMALL_SR, output, target)["l1"].item() == pytest.approx(0.055)


def test_the_average_has_a_closed_form() -> None:
    model = Brightness()
    average = average_of(replace(SMALL_SR, ema=0.9), model)
    assert average is not None
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.factor, value)
        average.update_parameters(model)
    assert average.module.factor.item() == pytest.approx(0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4)
    assert average_of(SMALL_SR, model) is None


@pytest.fixture
def tiny_steps() -> Iterator[Recipe]:
    yield Recipe(iterations=3, batch_size=4, crop=16, ema=0.5)


def test_the_average_is_what_a_run_yields(
    tiny_steps: Recipe, image: np.ndarray, tmp_path: Path
) -> None:
    values: list[float] = []
    crops = RandomCrops.of(tiny_steps, [Pair("a", image, image // 2)], scale=1, seed=0)
    run = Run(tmp_path, tiny_steps, crops, Brightness())
    run.validate = lambda model: values.append(model.factor.item()) or 0.0
    raw: list[float] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *rest: raw.append(optimizer.param_groups[0]["params"][0].item())
    )
    loop.train(run, Accelerator(), resume=False)
    handle.remove()
    last = 2 * (values[2] - 0.5 * values[1])  # undo the last average
    after = [*raw[1:], last]
    assert values == pytest.approx(
        [after[0], 0.5 * (after[0] + after[1]), 0.25 * (after[0] + after[1]) + 0.5 * after[2]]
    )
    assert run.student.factor.item() == values[2] != pytest.approx(last)
    again = Run(tmp_path, tiny_steps, crops, Brightness())
    loop.train(again, Accelerator(), resume=True)
    assert again.student.factor.item() == values[2]
