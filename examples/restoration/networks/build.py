"""Networks by name: three small ones that train on a laptop, and the paper's teachers and students.

The paper's are those of Table 1, and Table 8's SwinIR-light. Table 1 gives channels and blocks;
where it leaves the rest open, the teacher's other numbers are those of its authors, and the
student's are the teacher's, halved where the table halves the width. NAFNet's and Restormer's
students are the only exact halvings with the table's parameter counts.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .detected import needing_spandrel
from .own import build_own, is_own, parse_options
from .small import BACKBONES, small

SR_SCALES = (2, 3, 4)
SAME_SIZE = (1,)  # deblurring and deraining

SWINIR = {"window_size": 8, "mlp_ratio": 2}
CLASSICAL = {**SWINIR, "img_size": 48, "upsampler": "pixelshuffle"}
LIGHT = {**SWINIR, "img_size": 64, "upsampler": "pixelshuffledirect"}
SWINIR_TEACHER = {"embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6}
SWINIR_STUDENT = {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4}
RCAN = {"n_resgroups": 10, "n_feats": 64, "reduction": 16}
NAFNET = {"middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]}
NAFNET_TEACHER = {"width": 32, "enc_blk_nums": [1, 1, 1, 28]}
NAFNET_STUDENT = {"width": 16, "enc_blk_nums": [1, 1, 1, 14]}
RESTORMER = {"heads": [1, 2, 4, 8], "ffn_expansion_factor": 2.66, "LayerNorm_type": "WithBias"}
RESTORMER_TEACHER = {"dim": 48, "num_blocks": [4, 6, 6, 8], "num_refinement_blocks": 4}
RESTORMER_STUDENT = {"dim": 24, "num_blocks": [2, 3, 3, 4], "num_refinement_blocks": 2}


class Specification(NamedTuple):
    """A class of `paper`, the scales that the paper has, and its arguments besides the scale."""

    architecture: str
    scales: tuple[int, ...]
    settings: Mapping[str, Any]


SPECIFICATIONS = {
    "swinir-teacher": Specification("SwinIR", SR_SCALES, {**CLASSICAL, **SWINIR_TEACHER}),
    "swinir-student": Specification("SwinIR", SR_SCALES, {**CLASSICAL, **SWINIR_STUDENT}),
    "swinir-light": Specification("SwinIR", SR_SCALES, {**LIGHT, **SWINIR_STUDENT}),
    "rcan-teacher": Specification("RCAN", SR_SCALES, {**RCAN, "n_resblocks": 20}),
    "rcan-student": Specification("RCAN", SR_SCALES, {**RCAN, "n_resblocks": 6}),
    "nafnet-teacher": Specification("NAFNet", SAME_SIZE, {**NAFNET, **NAFNET_TEACHER}),
    "nafnet-student": Specification("NAFNet", SAME_SIZE, {**NAFNET, **NAFNET_STUDENT}),
    "restormer-teacher": Specification("Restormer", SAME_SIZE, {**RESTORMER, **RESTORMER_TEACHER}),
    "restormer-student": Specification("Restormer", SAME_SIZE, {**RESTORMER, **RESTORMER_STUDENT}),
}


def teacher_of(name: str) -> str:
    """The teacher of a network of `SPECIFICATIONS`; a teacher's is itself."""
    family, _, _ = name.partition("-")
    return f"{family}-teacher"


NAMES = (*BACKBONES, *SPECIFICATIONS)


def names_for(task: str) -> list[str]:
    """The networks for "sr", or for images of one size: "deblur" and "derain"."""
    scales = SR_SCALES if task == "sr" else SAME_SIZE
    return [*BACKBONES, *(name for name, each in SPECIFICATIONS.items() if each.scales == scales)]


def build(name: str, scale: int, options: Sequence[str] = ()) -> nn.Module:
    """A fresh network, (B, 3, H, W) in [0, 1] to (B, 3, H scale, W scale), not clamped.

    It is one of `NAMES`, whose attributes `backbone` and `scale` say what it is, or made by the
    user's code (see `own`) with these `key=value` options.

    Raises:
        ValueError: Another name than those, or a scale that this network is not for.
        RuntimeError: spandrel, which has the paper's networks, cannot be imported.
    """
    if is_own(name):
        return build_own(name, scale, parse_options(options))
    if name in BACKBONES:
        return small(**BACKBONES[name], scale=scale)
    specification = specified(name, scale)
    with needing_spandrel(f"{name} is built by"):
        from . import paper  # not before one is asked for: torchvision is heavy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spandrel makes torch speak of what it will deprecate
        architecture = getattr(paper, specification.architecture)
        model: nn.Module = architecture(scale=scale, **specification.settings)
    model.backbone = name
    return model


def specified(name: str, scale: int) -> Specification:
    """What one of the paper's networks is made of; ValueError where it is not for this scale."""
    if name not in SPECIFICATIONS:
        raise ValueError(f"got backbone {name!r}; expected one of {', '.join(NAMES)}")
    specification = SPECIFICATIONS[name]
    if scale not in specification.scales:
        scales = " or ".join(map(str, specification.scales))
        raise ValueError(f"got scale {scale} for {name}; expected {scales}")
    return specification


def multiply_adds(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of convolutions and matrix products, for one image of height x width pixels."""
    weight = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype))
    return int(counter.get_total_flops()) // 2
