"""The paper's teachers and students (Table 1, and Table 8's SwinIR-light), as data.

Table 1 gives channels and blocks; where it leaves the rest open, the teacher's other numbers are
those of its authors, and the student's are the teacher's, halved where the table halves the width.
NAFNet's and Restormer's students are the only exact halvings with the table's parameter counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SR_SCALES = (2, 3, 4)
SAME_SIZE = (1,)  # deblurring and deraining

SWINIR = {"window_size": 8, "mlp_ratio": 2}
CLASSICAL = {**SWINIR, "img_size": 48, "upsampler": "pixelshuffle"}
LIGHT = {**SWINIR, "img_size": 64, "upsampler": "pixelshuffledirect"}
SWINIR_TEACHER = {"embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6}
SWINIR_STUDENT = {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4}
RCAN = {"n_resgroups": 10, "n_feats": 64, "reduction": 16}
NAFNET = {"middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]}
RESTORMER = {"heads": [1, 2, 4, 8], "ffn_expansion_factor": 2.66, "LayerNorm_type": "WithBias"}


@dataclass(frozen=True)
class Specification:
    """What a network is made of.

    Attributes:
        architecture: The class in `architectures`.
        scales: Output sizes over input size that the paper has.
        settings: Its arguments besides the scale.
    """

    architecture: str
    scales: tuple[int, ...]
    settings: Mapping[str, Any]


SPECIFICATIONS = {
    "swinir-teacher": Specification("SwinIR", SR_SCALES, {**CLASSICAL, **SWINIR_TEACHER}),
    "swinir-student": Specification("SwinIR", SR_SCALES, {**CLASSICAL, **SWINIR_STUDENT}),
    "swinir-light": Specification("SwinIR", SR_SCALES, {**LIGHT, **SWINIR_STUDENT}),
    "rcan-teacher": Specification("RCAN", SR_SCALES, {**RCAN, "n_resblocks": 20}),
    "rcan-student": Specification("RCAN", SR_SCALES, {**RCAN, "n_resblocks": 6}),
    "nafnet-teacher": Specification(
        "NAFNet", SAME_SIZE, {**NAFNET, "width": 32, "enc_blk_nums": [1, 1, 1, 28]}
    ),
    "nafnet-student": Specification(
        "NAFNet", SAME_SIZE, {**NAFNET, "width": 16, "enc_blk_nums": [1, 1, 1, 14]}
    ),
    "restormer-teacher": Specification(
        "Restormer",
        SAME_SIZE,
        {**RESTORMER, "dim": 48, "num_blocks": [4, 6, 6, 8], "num_refinement_blocks": 4},
    ),
    "restormer-student": Specification(
        "Restormer",
        SAME_SIZE,
        {**RESTORMER, "dim": 24, "num_blocks": [2, 3, 3, 4], "num_refinement_blocks": 2},
    ),
}


def teacher_of(name: str) -> str:
    """The teacher of a network of `SPECIFICATIONS`; a teacher's is itself."""
    family, _, _ = name.partition("-")
    return f"{family}-teacher"
