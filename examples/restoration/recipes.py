"""How long and how fast to train, as data."""

import math
from dataclasses import dataclass


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
        history_interval: steps between the history's first updates; the paper's 1000 of 250,000
            steps, in proportion but not below 20.
    """

    iterations: int
    batch_size: int
    crop: int
    lr: float = 1e-3
    lr_end: float = 1e-5
    warm_up: int = 50
    betas: tuple[float, float] = (0.9, 0.99)
    history_interval: int = 50

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size, self.crop) < 1:
            raise ValueError(
                f"got {self.iterations} iterations, batch size {self.batch_size}, crop "
                f"{self.crop}; expected 1 or more each"
            )

    def lr_at(self, step: int) -> float:
        """Step size of optimizer step `step`, counted from 0: a ramp, then half a cosine."""
        if step < self.warm_up:
            return self.lr * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.iterations - self.warm_up)
        return self.lr_end + (self.lr - self.lr_end) * (1 + math.cos(math.pi * done)) / 2


SMALL_SR = Recipe(iterations=1000, batch_size=8, crop=24)  # minutes on two CPU cores
