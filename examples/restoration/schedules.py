"""What becomes of the learning rate in the course of a run."""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cosine:
    """A ramp from zero, then constant, then half a cosine down to the end of the run.

    Attributes:
        end: the last step's learning rate.
        warm_up: steps of the ramp.
        hold: steps before the cosine begins, the ramp's among them.
    """

    end: float
    warm_up: int = 0
    hold: int = 0

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
