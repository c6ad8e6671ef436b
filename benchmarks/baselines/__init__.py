"""The methods that DCKD is compared with, each as what it adds to the L1 to the ground truth.

    arm = build("fakd", student, teacher, encoder).to(device).attach(optimizer)   # once
    loss = l1_loss(student_out, target) + arm(student_out, teacher_out, lq, target=target)

Of MiPKD no code is public and its encoders, masks and insertion points are not described fully, so
it is not implemented: tables cite its published numbers and say so.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.baselines.base import LOGITS_WEIGHT, Arm, Baseline, Logits
from benchmarks.baselines.cheaper import CheaperDCKD
from benchmarks.baselines.contrastive import AECR, CSD, MCLIR, Encoder
from benchmarks.baselines.dukd import DUKD, LabelConsistency
from benchmarks.baselines.fakd import FAKD
from dckd_losses import DCKDLoss
from examples.vgg_features import VGG16Features, VGG19Features

__all__ = [
    "AECR", "CSD", "DUKD", "FAKD", "MCLIR", "METHODS", "Arm", "Baseline", "CheaperDCKD",
    "LabelConsistency", "Logits", "build",
]  # fmt: skip

METHODS = {  # the weight of the L1 to the teacher, as published; 0 where there is no such term
    "scratch": 0.0, "logits": LOGITS_WEIGHT, "fakd": 1.0, "dukd": 1.0, "csd": 0.0, "aecr": 0.0,
    "mclir": 0.0, "consistency": 1.0, "dckd": 1.0, "dckd_star": 1.0,
}  # fmt: skip


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
        settings: what the method's losses take by keyword; of DCKD* also `consistency`, what
            `LabelConsistency` takes.
    """
    logits = Logits(METHODS[name] if logits_weight is None else logits_weight)
    terms: list[Baseline | DCKDLoss] = []
    match name:
        case "scratch" | "logits" if not settings:
            pass
        case "fakd":
            terms = [FAKD(student, teacher, **settings)]
        case "dukd":
            terms = [DUKD(student, teacher, **settings)]
        case "csd":
            terms = [CSD(encoder or VGG19Features(), **settings)]
        case "aecr":
            terms = [AECR(encoder or VGG19Features(), **settings)]
        case "mclir":
            terms = [MCLIR(student, encoder or VGG16Features(), **settings)]
        case "consistency":
            terms = [LabelConsistency(teacher, **settings)]
        case "dckd":
            kind = CheaperDCKD if {"every", "half"} & settings.keys() else DCKDLoss
            terms = [kind(student, encoder or "vqgan-f16-1024", **settings)]
        case "dckd_star":
            consistency = LabelConsistency(teacher, **settings.pop("consistency", {}))
            _, dckd = build("dckd", student, teacher, encoder, **settings).terms
            terms = [dckd, consistency]
        case _:
            raise TypeError(f"{name} takes no {', '.join(settings)}")
    return Arm(logits, *terms)
