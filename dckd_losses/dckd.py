"""Dynamic contrastive knowledge distillation: both losses over one pass of the encoder (Eq. 10)."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import cast

import torch
from torch import Tensor, nn

from dckd_losses.attach import Attachable
from dckd_losses.balance import BALANCE, normalize_gradient, restore_scale
from dckd_losses.checks import (
    as_loss,
    check_batch,
    check_negatives,
    check_number,
    check_step_values,
    is_compiling_or_capturing,
)
from dckd_losses.dcr import LEVEL_WEIGHTS, DCRLoss, contrastive_ratio
from dckd_losses.dmm import DMMLoss
from dckd_losses.encoder import FeatureEncoder, VQGANEncoder, as_encoder
from dckd_losses.history import HistoryModel
from dckd_losses.negatives import NegativeGenerator

# Paper, Table 7, for its encoder. With "compact" DCR's gradient is 27 to 29 times that of both L1
# terms before weights, Eq. 9's 6 to 11 times (benchmarks/results/gradients.json).
DCR_WEIGHT = 0.1
DMM_WEIGHT = 1e-3  # tuned with the released code's doubled softmax


class DCKDLoss(Attachable):
    """What DCKD adds to a training step: `dcr_weight * DCR + dmm_weight * DMM` (Eq. 10).

    The reconstruction loss and the plain distillation loss stay the trainer's. The student's output
    passes the encoder once with gradient, the teacher's and the negatives together without. By
    default the gradient is balanced, which the paper does not do; `DCKDLoss.paper` has its fixed
    weights.

    Args:
        student: the network in training, all of lq to image. Its history is a copy; of itself the
            loss keeps a weak reference.
        encoder: a name, a path or a module; see `VQGANEncoder`.
        dcr_weight: weight of `DCRLoss`; at 0 it and the negatives are not computed.
        dmm_weight: weight of `DMMLoss`; at 0 it is not computed.
        history: the student's past; made with its defaults where None.
        negatives: a `NegativeGenerator` or any callable from lq to (N, B, 3, H, W); made with its
            defaults where None. With a plain callable no history is made.
        form: "cross_entropy" or "released", as in `DMMLoss`.
        level_weights: one for each level, from fine to coarse, as in `DCRLoss`.
        balance: the gradient's norm at student_out as a fraction of a mean L1's there, which the
            two weights then only share; None for fixed weights. See `balance.py`.

    Shape:
        student_out and teacher_out (B, 3, H, W), lq (B, C, h, w), all in [0, 1] nominally, H and W
        at least 16, to a scalar, float32 (float64 if the loss was moved there and student_out is).

    Gradient:
        to student_out only.

    State:
        `history.model.*`, `history.iteration`, `negatives.counter`: enough to continue bit for bit.

    Attributes:
        last: of the last call, detached: the scalars `dcr` and `dmm`, and for each level the
            distances `positive` (to the teacher) and `negative` (to all negatives, summed). A term
            with weight 0 is not there.

    Raises:
        ValueError: arguments, shapes, dtypes or devices do not fit. In the first call after
            construction, `attach` or `load_state_dict` also where values are not finite, or those
            of teacher_out or lq do not look like [0, 1].

    Example:
        >>> student = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3), torch.nn.PixelShuffle(2))
        >>> optimizer = torch.optim.Adam(student.parameters())
        >>> dckd = DCKDLoss(student, "compact").attach(optimizer)
        >>> lq, teacher_out = torch.rand(1, 3, 18, 18), torch.rand(1, 3, 32, 32)
        >>> dckd(student(lq), teacher_out, lq).backward()
    """

    encoder: FeatureEncoder
    negatives: Callable[[Tensor], Tensor]

    def __init__(
        self,
        student: nn.Module,
        encoder: str | PathLike[str] | nn.Module,
        *,
        dcr_weight: float = DCR_WEIGHT,
        dmm_weight: float = DMM_WEIGHT,
        history: HistoryModel | None = None,
        negatives: Callable[[Tensor], Tensor] | None = None,
        form: str = "cross_entropy",
        level_weights: tuple[float, ...] = LEVEL_WEIGHTS,
        balance: float | None = BALANCE,
    ) -> None:
        super().__init__(student)
        for name, weight in (("dcr_weight", dcr_weight), ("dmm_weight", dmm_weight)):
            check_number(name, weight, at_least=0)
        if not (history is None or isinstance(history, HistoryModel)):
            raise ValueError(f"history must be a HistoryModel, got {history!r}")
        if isinstance(negatives, NegativeGenerator):
            if history is not None and history is not negatives.history:
                raise ValueError("negatives has a history of its own: pass one of the two")
            history = negatives.history
        elif negatives is None:
            history = HistoryModel(student) if history is None else history
            negatives = NegativeGenerator(history)
        elif not callable(negatives):
            raise ValueError(
                f"negatives must be a NegativeGenerator or a callable of lq, got {negatives!r}"
            )
        check_number("balance", balance, above=0, or_none=True)
        self.encoder = as_encoder(encoder)
        self.dcr = DCRLoss(self.encoder, level_weights=level_weights)
        self.dmm = DMMLoss(self.encoder, form=form)
        self.dcr_weight = float(dcr_weight)
        self.dmm_weight = float(dmm_weight)
        self.balance = balance
        self.history = history
        self.negatives = negatives
        self.last: dict[str, Tensor] = {}

    @classmethod
    def paper(
        cls,
        student: nn.Module,
        encoder: str | PathLike[str] | nn.Module,
        *,
        history: HistoryModel | None = None,
        negatives: Callable[[Tensor], Tensor] | None = None,
    ) -> DCKDLoss:
        """The paper's fixed weights, 0.1 for DCR and 1e-3 for DMM, and no balance.

        They belong to the paper's encoder, "vqgan-f16-1024": with "compact" every measured student
        was behind plain distillation. Arguments are as in `DCKDLoss`.
        """
        return cls(student, encoder, history=history, negatives=negatives, balance=None)

    @classmethod
    def released(
        cls,
        student: nn.Module,
        encoder: str | PathLike[str],
        *,
        history: HistoryModel | None = None,
        seed: int = 0,
    ) -> DCKDLoss:
        """The settings of DCKD's released code, where they differ from its paper.

        Weights are fixed, the encoder sees raw [0, 1] images, DMM is the doubled softmax, one of
        five negatives is made from the undegraded input. For the release's history, pass
        `source=ema_model` to `attach`.
        Arguments are as in `DCKDLoss` and `NegativeGenerator`; encoder is a name or a path.
        """
        history = HistoryModel(student) if history is None else history
        return cls(
            student,
            VQGANEncoder.from_pretrained(encoder, input_range=(0.0, 1.0)),
            negatives=NegativeGenerator(history, include_clean=True, seed=seed),
            form="released",
            balance=None,
        )

    def forward(
        self,
        student_out: Tensor,
        teacher_out: Tensor,
        lq: Tensor | None = None,
        *,
        pixel_loss: Tensor | None = None,
    ) -> Tensor:
        """The loss of one step.

        Args:
            student_out: what the student made of lq.
            teacher_out: what the teacher made of lq.
            lq: the degraded input; may be left out after `watch`.
            pixel_loss: the step's other losses, computed from student_out; `balance` is a fraction
                of their gradient's norm then, and not of a mean L1's. For losses unlike L1, such
                as NAFNet's PSNR loss, whose gradient is far larger.
        """
        lq = self._input(lq)
        self._check_batch(student_out, teacher_out, lq)
        if not self._values_checked and not is_compiling_or_capturing():
            check_step_values(student_out, teacher_out, lq)
            self._values_checked = True
        if not (self.dcr_weight or self.dmm_weight):
            self.last = {}
            return as_loss(0 * student_out.sum(), student_out)
        negatives = None
        if self.dcr_weight and lq is not None:
            self._check_history(student_out, teacher_out, lq)
            with torch.no_grad():
                negatives = self.negatives(lq.clone())  # whatever a callable does to it
            check_negatives(negatives, student_out)
        # Through balance.py, encoder/vqgan.py, encoder/stream.py, network.py and layers.py to
        # ops/distances.py, where levels are compared; gradients come back the same way.
        student, unit = normalize_gradient(student_out, self.balance, teacher_out, pixel_loss)
        found = self.encoder.compare(
            student, teacher_out.detach(), negatives, codes=self.dmm_weight != 0
        )
        terms, self.last = [], {}
        if self.dcr_weight:
            dcr = contrastive_ratio(
                found.positive, found.negative, self.dcr.level_weights, self.dcr.eps
            )
            terms.append(self.dcr_weight * dcr)
            self.last["dcr"] = dcr.detach()
            self.last["positive"] = torch.stack(found.positive).detach()
            self.last["negative"] = torch.stack(found.negative).detach()
        if self.dmm_weight:
            dmm = self.dmm.from_logits(found.student_logits, found.teacher_logits)
            terms.append(self.dmm_weight * dmm)
            self.last["dmm"] = dmm.detach()
        loss = torch.stack(terms).sum()  # Eq. 10
        return as_loss(restore_scale(loss, unit), student_out)

    def graphed(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Capture the loss and its gradient as one CUDA graph for images of these shapes.

        A replay costs two launches in place of a thousand. Nothing random is used up here, `last`
        is right after each replay, and the history moves as ever, outside the graph. Call it under
        the autocast that the steps run in, and again after the loss was moved.

        Args:
            student_out: as in a call; its values serve to warm up.
            teacher_out: as in a call.
            lq: as in a call.

        Returns:
            A function of the same three tensors, of these shapes and dtypes, to the loss. The next
            call overwrites what the last one returned.

        Raises:
            ValueError: as in a first call.
            RuntimeError: no CUDA device, or a degradation or encoder that cannot be captured.
        """
        self.check(student_out, teacher_out, lq)
        self._values_checked = True
        samples = student_out.detach().requires_grad_(), teacher_out.detach(), lq.detach()
        saved = [(buffer, buffer.clone()) for buffer in self.buffers()]
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", autocast[1], enabled=autocast[0], cache_enabled=False):
            try:
                replay = torch.cuda.make_graphed_callables(self.forward, samples)
            except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
                raise RuntimeError(
                    f"the loss cannot be captured as a CUDA graph (student_out is on "
                    f"{student_out.device}): {str(error).splitlines()[0]}"
                ) from error
        for drawn, before in saved:  # warming up has drawn random numbers
            drawn.copy_(before)
        last = self.last

        def step(student_out: Tensor, teacher_out: Tensor, lq: Tensor) -> Tensor:
            loss = replay(student_out, teacher_out, lq)
            self.last = last
            return cast(Tensor, loss)

        return step

    def check(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor | None = None) -> None:
        """Check types, shapes, devices and values now; reads from the device.

        Args:
            student_out: as in a call.
            teacher_out: as in a call.
            lq: as in a call; by default what `watch` holds for the next one, if anything.

        Raises:
            ValueError: with what was seen and what is expected.
        """
        if lq is None and self._watch is not None:
            lq = self._watch.input
        self._check_batch(student_out, teacher_out, lq)
        check_step_values(student_out, teacher_out, lq)

    def _check_batch(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor | None) -> None:
        check_batch(student_out=student_out, teacher_out=teacher_out, lq=lq)
        if lq is None and self.dcr_weight > 0 and self._watch is None:
            raise ValueError("lq is missing: pass it, or let watch(student) fetch it")

    def extra_repr(self) -> str:
        return f"dcr_weight={self.dcr_weight}, dmm_weight={self.dmm_weight}, balance={self.balance}"
