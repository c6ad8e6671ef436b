"""MCLIR: away from what the student's past selves restore (Wu et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmarks.baselines.base import Baseline
from dckd_losses import HistoryModel
from dckd_losses.as_encoder import as_encoder
from dckd_losses.checks import check_negatives
from dckd_losses.features import FeatureEncoder
from dckd_losses.hooks import StepHook, StudentReference
from dckd_losses.ops.feature_path import Images, Terms
from dckd_losses.unwrap import unwrap_module, unwrap_optimizer

WEIGHT = 1e-3  # the one released configuration, of a dehazing network
INTERVALS = (100, 200, 500, 1000)  # steps between updates of each negative model; likewise
DECAY = 0.1  # the share of its old weights that a negative model keeps; likewise
LEVEL_WEIGHTS = (0.2, 0.3, 0.5)  # of VGG16's relu1_2, relu2_2 and relu3_3; likewise


class MCLIR(Baseline):
    """`-1/N sum_n sum_i w_i |S_i - N_in|`: the student moves away from N of its past selves.

    Each negative model restores the undegraded input and follows the student at an interval of its
    own. The loss has no lower bound, hence the small weight. No teacher takes part.

    Departures: the released code starts each negative model a tenth of the way towards a second
    random initialisation; here it starts as the student, so the loss is 0 until the first optimizer
    step. Its settings for super-resolution were not published.

    Args:
        student: the network in training; each negative model is a copy, itself it is only referred
            to.
        encoder: a name, a path or a module; the paper's levels are those of
            `examples.vgg_features.VGG16Features`.
        weight: 1e-3 in the released configuration, of a dehazing network.
        intervals: steps between updates, one for each of at least two negative models.
        decay: the share of its old weights that a negative model keeps at an update.
        level_weights: of the encoder's first levels; further ones are not looked at.
        balance: see `Baseline`; None, as published.

    Shape:
        see `Baseline`; H and W as the encoder wants them.

    Gradient:
        to student_out.

    State:
        `histories.*`, the negative models' weights and counters.

    Raises:
        ValueError: settings as above, or an encoder with fewer levels; in `attach` no optimizer.

    Example:
        >>> student = nn.Conv2d(3, 3, 3, padding=1)
        >>> optimizer = torch.optim.Adam(student.parameters())
        >>> mclir, lq = MCLIR(student, "compact").attach(optimizer), torch.rand(1, 3, 16, 16)
        >>> mclir(student(lq), lq, lq).backward()
    """

    name = "mclir"
    encoder: FeatureEncoder

    def __init__(
        self,
        student: nn.Module,
        encoder: str | PathLike[str] | nn.Module,
        *,
        weight: float = WEIGHT,
        intervals: Sequence[int] = INTERVALS,
        decay: float = DECAY,
        level_weights: Sequence[float] = LEVEL_WEIGHTS,
        balance: float | None = None,
    ) -> None:
        super().__init__(weight, balance)
        if len(intervals) < 2:
            raise ValueError(f"intervals must be at least two, got {tuple(intervals)}")
        self.encoder = as_encoder(encoder)
        self.level_weights = tuple(float(w) for w in level_weights)
        self.histories = nn.ModuleList(
            HistoryModel(student, decay=decay, interval=n, interval_growth=0, max_interval=n)
            for n in intervals
        )
        self._student = StudentReference(unwrap_module(student))

    def _hooks(self, optimizer: object) -> list[RemovableHandle]:
        inner = unwrap_optimizer(optimizer)
        return [
            inner.register_step_post_hook(StepHook(history, self._student))  # type: ignore[arg-type]
            for history in self.histories
        ]

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """See `Baseline.term`."""
        negatives = torch.stack([history(lq) for history in self.histories])
        check_negatives(negatives, student_out)
        # the encoder compares with a teacher and with negatives; here all are negatives
        images = Images(student_out, negatives[0], negatives[1:])
        loss, _ = self.encoder.compare(images, self._pushed)
        return loss

    def _pushed(self, terms: Terms) -> Tensor:
        """Minus the weighted distance, mean over negatives."""
        if len(terms.positive) < len(self.level_weights):
            raise ValueError(
                f"the encoder gives {len(terms.positive)} levels, level_weights has "
                f"{len(self.level_weights)}"
            )
        levels = zip(self.level_weights, terms.positive, terms.negative, strict=False)
        total = torch.stack([w * (first + others) for w, first, others in levels]).sum()
        return -total / len(self.histories)
