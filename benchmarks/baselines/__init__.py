"""The methods that DCKD is compared with, each as what it adds to the L1 to the ground truth.

    arm = build("fakd", student, teacher, encoder).to(device).attach(optimizer)   # once
    loss = l1_loss(student_out, target) + arm(student_out, teacher_out, lq, target=target)

Of MiPKD no code is public and its encoders, masks and insertion points are not described fully, so
it is not implemented: tables cite its published numbers and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from benchmarks.baselines.base import LOGITS_WEIGHT, Arm, Baseline, Logits
from benchmarks.baselines.cheaper import CheaperDCKD
from benchmarks.baselines.contrastive import AECR, CSD, MCLIR, Encoder
from benchmarks.baselines.dukd import CONSISTENCY_WEIGHT, DUKD, SEED, LabelConsistency
from benchmarks.baselines.fakd import FAKD
from dckd_losses import DCKDLoss
from examples.vgg_features import VGG16Features, VGG19Features

__all__ = [
    "AECR", "CSD", "DUKD", "FAKD", "MCLIR", "METHODS", "Arm", "Baseline", "CheaperDCKD",
    "LabelConsistency", "Logits", "Method", "build",
]  # fmt: skip

Term: TypeAlias = Baseline | DCKDLoss


class Method(NamedTuple):
    """What a method adds to the L1 to the ground truth.

    Attributes:
        logits_weight: of the L1 to the teacher, as published; 0 where no such term is.
        terms: from student, teacher, encoder (None for the method's own) and what the method's
            losses take by keyword to its further terms.
    """

    logits_weight: float
    terms: Callable[..., tuple[Term, ...]]


def dckd(
    student: nn.Module, teacher: nn.Module, encoder: Encoder | None, **settings: Any
) -> tuple[Term, ...]:
    """DCKD (Eq. 10); `CheaperDCKD` where the settings have one of its own."""
    kind = CheaperDCKD if {"every", "half"} & settings.keys() else DCKDLoss
    return (kind(student, encoder or "vqgan-f16-1024", **settings),)


def consistency(
    student: nn.Module,
    teacher: nn.Module,
    encoder: Encoder | None,
    *,
    consistency_weight: float = CONSISTENCY_WEIGHT,
    consistency_seed: int = SEED,
) -> tuple[Term, ...]:
    """DUKD's label consistency."""
    return (LabelConsistency(teacher, weight=consistency_weight, seed=consistency_seed),)


def dckd_star(
    student: nn.Module,
    teacher: nn.Module,
    encoder: Encoder | None,
    *,
    consistency_weight: float = CONSISTENCY_WEIGHT,
    consistency_seed: int = SEED,
    **settings: Any,
) -> tuple[Term, ...]:
    """DCKD*: DCKD and DUKD's label consistency."""
    known = {"consistency_weight": consistency_weight, "consistency_seed": consistency_seed}
    return (
        *dckd(student, teacher, encoder, **settings),
        *consistency(student, teacher, encoder, **known),
    )


METHODS = {
    "scratch": Method(0.0, lambda student, teacher, encoder: ()),
    "logits": Method(LOGITS_WEIGHT, lambda student, teacher, encoder: ()),
    "fakd": Method(1.0, lambda student, teacher, encoder, **k: (FAKD(student, teacher, **k),)),
    "dukd": Method(1.0, lambda student, teacher, encoder, **k: (DUKD(student, teacher, **k),)),
    "csd": Method(
        0.0, lambda student, teacher, encoder, **k: (CSD(encoder or VGG19Features(), **k),)
    ),
    "aecr": Method(
        0.0, lambda student, teacher, encoder, **k: (AECR(encoder or VGG19Features(), **k),)
    ),
    "mclir": Method(
        0.0,
        lambda student, teacher, encoder, **k: (MCLIR(student, encoder or VGG16Features(), **k),),
    ),
    "consistency": Method(1.0, consistency),
    "dckd": Method(1.0, dckd),
    "dckd_star": Method(1.0, dckd_star),
}


def build(
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    encoder: Encoder | None = None,
    *,
    logits_weight: float | None = None,
    **settings: Any,
) -> Arm:
    """A method's arm.

    Args:
        name: one of `METHODS`.
        student: the network to be trained.
        teacher: the network whose outputs are distilled, frozen, in eval mode.
        encoder: of the contrastive methods: a name, a path or a module, one for all in a fair
            comparison; by default each method's own (VGG19, VGG16, `vqgan-f16-1024`).
        logits_weight: of the L1 to the teacher; as published by default.
        settings: what the method's losses take by keyword; of DCKD* also `consistency_weight`
            and `consistency_seed`.
    """
    method = METHODS[name]
    weight = method.logits_weight if logits_weight is None else logits_weight
    return Arm(Logits(weight), *method.terms(student, teacher, encoder, **settings))
