"""How long, how fast and on what to train, as data: the paper's recipes and small ones.

Steps are optimizer steps, counted from 0, of all processes together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dckd_losses.checks import check_number
from dckd_losses.dckd import DCR_WEIGHT, DMM_WEIGHT


@dataclass(frozen=True)
class Cosine:
    """A ramp from zero, then constant, then half a cosine down to the end of the run."""

    end: float  # the last step's learning rate
    warm_up: int = 0  # steps of the ramp
    hold: int = 0  # steps before the cosine begins, the ramp's among them

    def at(self, step: int, lr: float, iterations: int) -> float:
        """Learning rate of a step of a run whose highest is lr."""
        if step < self.warm_up:
            return lr * (step + 1) / self.warm_up
        start = max(self.warm_up, self.hold)
        done = max(0, step - start) / max(1, iterations - start)
        return self.end + (lr - self.end) * (1 + math.cos(math.pi * done)) / 2

    def scaled(self, share: float) -> "Cosine":
        """The same shape in a run of another length; the optimizer's ramp is as long as ever."""
        return replace(self, hold=round(self.hold * share))

    def __str__(self) -> str:
        before = f"after a ramp of {self.warm_up:,} steps, " if self.warm_up else ""
        hold = f"constant for {self.hold:,} steps, then " if self.hold else ""
        return f"{before}{hold}by a cosine down to {self.end:g}"


@dataclass(frozen=True)
class Decay:
    """Constant but for a factor from each of some steps on."""

    steps: tuple[int, ...]
    factor: float

    def at(self, step: int, lr: float, iterations: int) -> float:
        """Learning rate of a step of a run whose highest is lr."""
        return lr * self.factor ** sum(step >= each for each in self.steps)

    def scaled(self, share: float) -> "Decay":
        """The same shape in a run of another length."""
        return replace(self, steps=tuple(round(step * share) for step in self.steps))

    def __str__(self) -> str:
        return f"times {self.factor:g} from steps {', '.join(f'{s:,}' for s in self.steps)}"


CHOICES = {
    "optimizer": ("adam", "adamw"),
    "reconstruction": ("l1", "psnr"),
    "form": ("cross_entropy", "released"),
}
# larger ones are mistakes, and exhaust the memory
MOST = {"iterations": 10**9, "batch_size": 2**16, "crop": 2**13}
HISTORY_UPDATES = 200  # that a run aims at: the paper's shortest has so many in 200,000 steps
HISTORY_INTERVAL = 1000  # steps between its first updates (Eq. 6, Figure 8b)
MIN_HISTORY_INTERVAL = 50  # steps; a short run's history would otherwise be the student itself
SHORT = Cosine(end=1e-5, warm_up=50)  # of runs of a thousand steps
MSE_FLOOR = 1e-8  # NAFNet's; at 80 dB


def check_size(name: str, value: object) -> None:
    """Require a whole number that some machine could train with."""
    check_number(name, value, at_least=1, at_most=MOST[name], whole=True)


@dataclass(frozen=True)
class Stage:
    """From a step on, another batch of other crops: Restormer's progressive learning."""

    step: int
    crop: int
    batch_size: int


@dataclass(frozen=True)
class Recipe:
    """One training run's numbers; ValueError names one that is out of range."""

    iterations: int  # optimizer steps
    batch_size: int  # crops a step, of all processes together
    crop: int  # LQ pixels a side
    stages: tuple[Stage, ...] = ()  # where batch_size and crop change
    lr: float = 1e-3  # the highest learning rate ...
    schedule: Cosine | Decay = SHORT  # ... and what becomes of it
    optimizer: Literal["adam", "adamw"] = "adam"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    reconstruction: Literal["l1", "psnr"] = "l1"  # loss to the ground truth: Eq. 2's or NAFNet's
    clip: float | None = None  # the gradient's largest norm
    ema: float | None = None  # decay of the student's moving average, which is what a run yields
    dcr_weight: float = DCR_WEIGHT  # in Eq. 10
    dmm_weight: float = DMM_WEIGHT  # in Eq. 10
    form: str = "cross_entropy"  # of DMM: Eq. 9, or "released", the authors' code
    balance: float | None = 0.3  # DCKD's gradient over an L1's, or None for fixed weights
    quarter_turns: bool = True  # whether crops are turned by 90 degrees, besides being flipped
    mirror: bool = False  # whether images smaller than a crop are mirrored up to it, or refused

    def __post_init__(self) -> None:
        check_size("iterations", self.iterations)
        for stage in self.all_stages:
            check_number("a stage's step", stage.step, at_least=0, whole=True)
            check_size("crop", stage.crop)
            check_size("batch_size", stage.batch_size)
        check_number("lr", self.lr, above=0)
        for name in ("weight_decay", "dcr_weight", "dmm_weight"):
            check_number(name, getattr(self, name), at_least=0)
        for beta in self.betas:
            check_number("betas", beta, at_least=0, below=1)
        check_number("clip", self.clip, above=0, or_none=True)
        check_number("ema", self.ema, at_least=0, below=1, or_none=True)
        check_number("balance", self.balance, above=0, or_none=True)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"got {name} {getattr(self, name)!r}; expected {known}")

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages, the one that begins at step 0 included."""
        return Stage(0, self.crop, self.batch_size), *self.stages

    @property
    def history_interval(self) -> int:
        """Steps between the first updates of DCKD's history."""
        share = min(HISTORY_INTERVAL, self.iterations // HISTORY_UPDATES)
        return max(MIN_HISTORY_INTERVAL, share)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        return self.schedule.at(step, self.lr, self.iterations)

    def stage_at(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        return next(s for s in reversed(self.all_stages) if s.step <= step)

    def crops_before(self, step: int) -> int:
        """Crops of all steps before this one; at `iterations`, of the whole run."""
        ends = [*(stage.step for stage in self.stages), self.iterations]
        return sum(
            max(0, min(step, end) - stage.step) * stage.batch_size
            for stage, end in zip(self.all_stages, ends, strict=True)
        )

    def pixel_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss to the ground truth, a scalar; NAFNet's is a mean of the images' -PSNR in dB."""
        if self.reconstruction == "l1":
            return F.l1_loss(output, target)
        mse = F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))
        return 10 * torch.log10(mse + MSE_FLOOR).mean()

    def with_constant(self, name: Literal["crop", "batch_size"]) -> "Recipe":
        """The same with its first crop or batch_size all along."""
        first = getattr(self, name)
        return replace(self, stages=tuple(replace(stage, **{name: first}) for stage in self.stages))

    def shortened(self, iterations: int) -> "Recipe":
        """The same in another number of steps: all switches at the same share of the run."""
        check_size("iterations", iterations)
        share = iterations / self.iterations
        stages = tuple(replace(stage, step=round(stage.step * share)) for stage in self.stages)
        schedule = self.schedule.scaled(share)
        return replace(self, iterations=iterations, stages=stages, schedule=schedule)


# Eq. 10's in the paper; the second was tuned with the released code's DMM
WEIGHTS = {"dcr_weight": 0.1, "dmm_weight": 1e-3, "form": "released", "balance": None}
# "ADAM optimizer with b1 = 0.9, b2 = 0.99 [...] batch size is set to 16 with a total of 2.5 x 10^5
# iterations [...] decayed by a factor of 10 at every 10^5"; the moving average is the released
# code's, which evaluates it.
SR = Recipe(
    iterations=250_000,
    batch_size=16,
    crop=48,
    lr=1e-4,
    schedule=Decay(steps=(100_000, 200_000), factor=0.1),
    ema=0.999,
    **WEIGHTS,
)
# The paper does not say how Table 8's network is trained: this is its authors' recipe.
SR_LIGHT = replace(
    SR,
    iterations=500_000,
    batch_size=64,
    crop=64,
    lr=2e-4,
    schedule=Decay(steps=(250_000, 400_000, 450_000, 475_000), factor=0.5),
    betas=(0.9, 0.999),
)
# Appendix; its "original training configuration" has PSNR as the loss, and clips gradients.
NAFNET = Recipe(
    iterations=200_000,
    batch_size=32,
    crop=256,
    lr=1e-3,
    schedule=Cosine(end=1e-7),
    optimizer="adamw",
    betas=(0.9, 0.9),
    weight_decay=1e-3,
    reconstruction="psnr",
    clip=0.01,
    **WEIGHTS,
)
# Appendix; the constant first part, the clipping and the mirroring are its authors'.
RESTORMER = Recipe(
    iterations=300_000,
    batch_size=64,
    crop=128,
    stages=(
        Stage(92_000, crop=160, batch_size=40),
        Stage(156_000, crop=192, batch_size=32),
        Stage(204_000, crop=256, batch_size=16),
        Stage(240_000, crop=320, batch_size=8),
        Stage(276_000, crop=384, batch_size=8),
    ),
    lr=3e-4,
    schedule=Cosine(end=1e-6, hold=92_000),
    optimizer="adamw",
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    clip=0.01,
    quarter_turns=False,
    mirror=True,
    **WEIGHTS,
)
PAPER: Mapping[str, Recipe] = {  # by student
    "swinir-student": SR,
    "swinir-light": SR_LIGHT,
    "rcan-student": SR,
    "nafnet-student": NAFNET,
    "restormer-student": RESTORMER,
}


def reduced(recipe: Recipe, iterations: int, crop: int, batch_size: int) -> Recipe:
    """One of the paper's recipes for a laptop: shorter, its crops and batches in proportion."""

    def smaller(stage: Stage) -> Stage:
        size = max(1, stage.batch_size * batch_size // recipe.batch_size)
        side = stage.crop * crop // recipe.crop // 8 * 8  # no network pads multiples of 8
        return Stage(stage.step, side, size)

    short = recipe.shortened(iterations)
    stages = tuple(map(smaller, short.stages))
    ema = recipe.ema and min(recipe.ema, 1 - 10 / iterations)  # not over more steps than there are
    return replace(short, batch_size=batch_size, crop=crop, stages=stages, ema=ema)


SMALL_SR = Recipe(iterations=1000, batch_size=3, crop=24)  # three minutes on two CPU cores
SMALL: Mapping[str, Recipe] = {  # by task, for the small networks, and by student
    "sr": SMALL_SR,
    "deblur": replace(SMALL_SR, crop=48),
    "derain": replace(SMALL_SR, crop=48, batch_size=2, iterations=1800),  # gains most by steps
    "swinir-student": reduced(SR, iterations=50, crop=16, batch_size=2),
    "swinir-light": reduced(SR_LIGHT, iterations=50, crop=16, batch_size=2),
    "rcan-student": reduced(SR, iterations=50, crop=16, batch_size=2),
    "nafnet-student": reduced(NAFNET, iterations=60, crop=32, batch_size=2),
    "restormer-student": reduced(RESTORMER, iterations=60, crop=32, batch_size=4),
}
