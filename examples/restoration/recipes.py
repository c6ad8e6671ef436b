"""How long and how fast to train, as data."""

import math
from dataclasses import dataclass

HISTORY_UPDATES = 250  # of a run: the paper's history moves every 1000 of 250,000 steps
MIN_HISTORY_INTERVAL = 50  # steps; a short run's history would otherwise be the student itself


@dataclass(frozen=True)
class Recipe:
    """One training run's numbers.

    Attributes:
        iterations: optimizer steps.
        batch_size: crops a step and process.
        crop: LR pixels a side.
        lr: Adam's step size at its highest.
        lr_end: and at the end of the cosine.
        warm_up: steps over which lr rises from zero.
        betas: Adam's.

    Raises:
        ValueError: iterations, batch_size or crop is below 1.
    """

    iterations: int
    batch_size: int
    crop: int
    lr: float = 1e-3
    lr_end: float = 1e-5
    warm_up: int = 50
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"got {name} {getattr(self, name)}; expected 1 or more")

    @property
    def history_interval(self) -> int:
        """Steps between the first updates of DCKD's history."""
        return max(MIN_HISTORY_INTERVAL, self.iterations // HISTORY_UPDATES)

    def lr_at(self, step: int) -> float:
        """Step size of optimizer step `step`, counted from 0: a ramp, then half a cosine."""
        if step < self.warm_up:
            return self.lr * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.iterations - self.warm_up)
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * done)) / 2


SMALL_SR = Recipe(iterations=1000, batch_size=8, crop=24)  # minutes on two CPU cores
