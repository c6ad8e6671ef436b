"""Negatives: what the student's past self makes of degraded inputs (Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dckd_losses.checks import check_choice, check_device, check_images, check_match, check_number
from dckd_losses.history import HistoryModel
from dckd_losses.negatives.degradations import DEGRADATIONS, Degradation
from dckd_losses.negatives.draws import Draws, process_rank

NUM_NEGATIVES = 5  # paper, implementation details; Figure 8a
MOST = 2**16  # larger numbers are mistakes


class NegativeGenerator(nn.Module):
    """N images that the student should leave behind: history's output for degraded inputs (Eq. 4).

    Args:
        history: the network that restores them. It is used, not owned: this module's `state_dict`
            does not hold it, but moves reach it.
        num_negatives: N, all of them counted; up to 65,536.
        include_clean: make the first negative from the undegraded input, as the released code does.
        degradation: "noise" (the paper's best, Table 6), "blur", "resize", "mix", a
            `dckd_losses.negatives.Degradation`, or a callable from lq to an image batch of the
            same shape, called once for each degraded negative.
        seed: with the process's rank and the number of calls it determines every random number.

    Shape:
        lq (B, C, h, w) to (N, B, 3, H, W), without gradient.

    State:
        `counter`, the number of calls, int64.

    Raises:
        ValueError: an argument is not as said above, or the degradation changes the shape.

    Example:
        >>> history = HistoryModel(torch.nn.Upsample(scale_factor=2))
        >>> NegativeGenerator(history, num_negatives=3)(torch.rand(2, 3, 8, 8)).shape
        torch.Size([3, 2, 3, 16, 16])
    """

    counter: Tensor
    history: HistoryModel
    degradation: Degradation | Callable[[Tensor], Tensor]

    def __init__(
        self,
        history: HistoryModel,
        *,
        num_negatives: int = NUM_NEGATIVES,
        include_clean: bool = False,
        degradation: str | Degradation | Callable[[Tensor], Tensor] = "noise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(history, HistoryModel):
            raise ValueError(f"history must be a HistoryModel, got {type(history).__name__}")
        check_number("num_negatives", num_negatives, at_most=MOST, whole=True)
        check_number("seed", seed, whole=True)
        if not isinstance(include_clean, bool):
            raise ValueError(f"include_clean must be True or False, got {include_clean!r}")
        if num_negatives < 1 + include_clean:
            raise ValueError(
                f"num_negatives must leave at least one degraded, got {num_negatives} with "
                f"include_clean={include_clean}: history equals the student at first, so a clean "
                "negative alone would divide by zero"
            )
        if isinstance(degradation, str):
            check_choice("degradation", degradation, DEGRADATIONS, " or a callable")
            degradation = DEGRADATIONS[degradation]()
        elif isinstance(degradation, type):
            name = degradation.__name__
            raise ValueError(f"degradation must be an instance: write {name}(), got {name} itself")
        elif not callable(degradation):
            raise ValueError(f"degradation must be a name or a callable, got {degradation!r}")
        object.__setattr__(self, "history", history)
        object.__setattr__(self, "degradation", degradation)
        self.num_negatives = int(num_negatives)
        self.include_clean = include_clean
        self.seed = seed
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def forward(self, lq: Tensor) -> Tensor:
        """Make the negatives of one step; the next call makes others."""
        check_images("lq", lq, min_size=1, channels=None)
        check_device("lq", lq, "the negatives' counter", self.counter)
        degraded = self._degrade(lq, self.num_negatives - self.include_clean)
        inputs = torch.cat([lq, degraded]) if self.include_clean else degraded
        self.counter.add_(1)
        restored: Tensor = self.history(inputs)
        return restored.view(self.num_negatives, len(lq), *restored.shape[1:])

    def _degrade(self, lq: Tensor, copies: int) -> Tensor:
        """Degraded copies of each image, (copies * B, 3, h, w)."""
        if isinstance(self.degradation, Degradation):
            draws = Draws(self.seed, process_rank(), self.counter)
            return self.degradation(lq.repeat(copies, 1, 1, 1), draws)
        images = [self.degradation(lq.clone()) for _ in range(copies)]
        for image in images:
            check_images("a degraded lq", image, min_size=1, channels=None)
            check_match("a degraded lq", image, "lq", lq)
        return torch.cat(images)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NegativeGenerator:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.history._apply(fn, recurse)
        return self
