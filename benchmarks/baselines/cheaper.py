"""DCKD for less: on every k-th step only, or on a half of each crop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines.contrastive import Encoder
from dckd_losses import DCKDLoss
from dckd_losses.checks import MIN_SIZE, as_loss
from dckd_losses.negatives.draws import Draws, process_rank


class CheaperDCKD(DCKDLoss):
    """`DCKDLoss` that is not computed everywhere; its history follows every step all the same.

    Args:
        student: as of `DCKDLoss`.
        encoder: likewise.
        every: only each step of this number has the loss, times the number.
        half: whether it sees half of each output only: left, right, upper or lower, drawn anew in
            each step, one for the whole batch, of at least 16 pixels a side. Negatives are made
            of the whole input, so that they end where the student's output does.
        seed: of the halves.
        known: what `DCKDLoss` takes by keyword.

    State:
        `calls`, the number of calls, beside that of `DCKDLoss`.
    """

    calls: Tensor

    def __init__(
        self,
        student: nn.Module,
        encoder: Encoder,
        *,
        every: int = 1,
        half: bool = False,
        seed: int = 1,
        **known: Any,
    ) -> None:
        super().__init__(student, encoder, **known)
        self.every, self.half, self.seed = every, half, seed
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        if half:
            assert isinstance(self.negatives, nn.Module)
            self.negatives.register_forward_hook(lambda module, inputs, made: self.cut(made))

    def forward(self, student_out: Tensor, teacher_out: Tensor, *args: Any, **known: Any) -> Tensor:
        """See `DCKDLoss.forward`."""
        self.calls.add_(1)
        if int(self.calls) % self.every:
            self.last = {}
            return as_loss(0 * student_out.sum(), student_out)
        seen = self.cut(student_out), self.cut(teacher_out)
        return self.every * super().forward(*seen, *args, **known)

    def cut(self, images: Tensor) -> Tensor:
        """This step's half of images (..., H, W), or all of them."""
        if not self.half:
            return images
        drawn = int(Draws(self.seed, process_rank(), self.calls).integers(4, 1))
        axis, side = -1 - drawn // 2, images.shape[-1 - drawn // 2]
        size = max(MIN_SIZE, side // 2)
        return images.narrow(axis, drawn % 2 * (side - size), size)
