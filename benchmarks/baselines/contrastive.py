"""The contrastive methods: CSD, AECR-Net's regularisation and MCLIR.

All look through an encoder: a name, a path or a module. CSD and AECR take five levels of images of
at least 16 pixels a side; the papers' are those of `examples.vgg_features`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmarks.baselines.base import Baseline
from dckd_losses import DCRLoss, HistoryModel
from dckd_losses.attach import unwrap_optimizer
from dckd_losses.encoder import FeatureEncoder, as_encoder

Encoder = str | PathLike[str] | nn.Module
CSD_WEIGHT = 200 / 255  # released command: 200 for images in [0, 255]; the ratio has no unit
CSD_NEGATIVES = 10  # released command
AECR_WEIGHT = 0.1  # what the paper is said to use, unverified; the released code has 0 by default
MCLIR_WEIGHT = 1e-3  # the one released configuration, of a dehazing network
MCLIR_INTERVALS = (100, 200, 500, 1000)  # likewise: steps between a negative model's updates
MCLIR_DECAY = 0.1  # likewise: the share of its old weights that a negative model keeps
MCLIR_LEVEL_WEIGHTS = (0.2, 0.3, 0.5)  # likewise: of VGG16's relu1_2, relu2_2 and relu3_3


class CSD(Baseline):
    """`sum_i w_i |S_i - T_i| / (sum_k |S_i - N_ik| + eps)`, negatives being other inputs.

    Contrastive self-distillation (Wang et al., IJCAI 2021), the ancestor of DCKD's Eq. 5, which has
    the same form, weights and eps, so `DCRLoss` computes it. Here the negatives are the inputs of
    the K images that follow in the batch (the first follows the last), enlarged to the output's
    size by bicubic interpolation: no image is its own negative. A batch has at least 2 images; in
    a small one there are one less negatives than images.

    Departures: the paper's student is a slice of the teacher and both train together; here the
    teacher is given and fixed, so its own reconstruction loss is left out. The released code draws
    the negatives from the global generator and may pair an image with itself.
    """

    name = "csd"

    def __init__(
        self,
        encoder: Encoder,
        *,
        weight: float = CSD_WEIGHT,
        num_negatives: int = CSD_NEGATIVES,
        balance: float | None = None,
    ) -> None:
        super().__init__(weight, balance)
        self.contrast = DCRLoss(encoder)
        self.num_negatives = num_negatives

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        size = student_out.shape[2:]
        same = lq.shape[2:] == size
        enlarged = lq if same else F.interpolate(lq, size=size, mode="bicubic")
        count = min(self.num_negatives, len(lq) - 1)
        negatives = torch.stack([enlarged.roll(-shift, 0) for shift in range(1, count + 1)])
        return self.contrast(student_out, teacher_out, negatives)


class AECR(Baseline):
    """`sum_i w_i |S_i - Y_i| / (|S_i - X_i| + eps)`: to the ground truth, away from the input.

    AECR-Net's contrastive regularisation (Wu et al., CVPR 2021); no teacher takes part. Eq. 5 has
    the same form, weights and eps, so `DCRLoss` computes it with the ground truth for its teacher
    and the input for its only negative.

    Departure: the paper restores at the input's size. Where the output is larger, the input's
    pixels are repeated; bicubic interpolation would give exactly what residual networks start
    from, hence a ratio over eps.
    """

    name = "aecr"

    def __init__(
        self, encoder: Encoder, *, weight: float = AECR_WEIGHT, balance: float | None = None
    ) -> None:
        super().__init__(weight, balance)
        self.contrast = DCRLoss(encoder)

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        size = student_out.shape[2:]
        negative = lq if lq.shape[2:] == size else F.interpolate(lq, size=size, mode="nearest")
        return self.contrast(student_out, target, negative[None])


class MCLIR(Baseline):
    """`-1/N sum_n sum_i w_i |S_i - N_in|`: the student moves away from N of its past selves.

    Wu et al., AAAI 2024. Each negative model restores the undegraded input and follows the student
    at an interval of its own. The loss has no lower bound, hence the small weight. No teacher takes
    part. State: `histories.*`, the negative models' weights and counters.

    Departures: the released code starts each negative model a tenth of the way towards a second
    random initialisation; here it starts as the student, so the loss is 0 until the first optimizer
    step. Its settings for super-resolution were not published.

    Args:
        student: the network in training; each negative model begins as a copy.
        encoder: see the module.
        weight: see `Baseline`.
        intervals: steps between updates, one for each of at least two negative models.
        decay: the share of its old weights that a negative model keeps at an update.
        level_weights: of the encoder's first levels; further ones are not looked at.
        balance: see `Baseline`.
    """

    name = "mclir"
    student: nn.Module
    encoder: FeatureEncoder

    def __init__(
        self,
        student: nn.Module,
        encoder: Encoder,
        *,
        weight: float = MCLIR_WEIGHT,
        intervals: Sequence[int] = MCLIR_INTERVALS,
        decay: float = MCLIR_DECAY,
        level_weights: Sequence[float] = MCLIR_LEVEL_WEIGHTS,
        balance: float | None = None,
    ) -> None:
        super().__init__(weight, balance, student=student)
        self.encoder = as_encoder(encoder)
        self.level_weights = tuple(float(w) for w in level_weights)
        self.histories = nn.ModuleList(
            HistoryModel(student, decay=decay, interval=n, interval_growth=0, max_interval=n)
            for n in intervals
        )

    def hooks(self, optimizer: torch.optim.Optimizer) -> Iterator[RemovableHandle]:
        yield unwrap_optimizer(optimizer).register_step_post_hook(self._step)

    def _step(self, *_: object) -> None:
        for history in self.histories:
            history.step(self.student)

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        negatives = torch.stack([history(lq) for history in self.histories])
        # the encoder compares with a teacher and with negatives; here all are negatives
        found = self.encoder.compare(student_out, negatives[0], negatives[1:])
        levels = zip(self.level_weights, found.positive, found.negative, strict=False)
        total = torch.stack([w * (first + others) for w, first, others in levels]).sum()
        return -total / len(self.histories)
