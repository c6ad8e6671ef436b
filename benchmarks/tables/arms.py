"""What each table compares, as data: its arms, on which networks, and against what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.baselines import METHODS
from dckd_losses.history import INTERVAL


@dataclass(frozen=True)
class Arm:
    """One row of a table.

    Attributes:
        name: In the table.
        method: Of `baselines.METHODS`.
        settings: Of its losses, where they are not the defaults; see `losses`.
        paper: Its name in the paper's table, if another.
    """

    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: str | None = None

    def __post_init__(self) -> None:
        assert self.method in METHODS


@dataclass(frozen=True)
class Block:
    """Which networks a table trains on what.

    Attributes:
        label: As the paper's numbers name it.
        task: "sr", "deblur" or "derain".
        scale: Output size over input size.
        student: Of `backbones.NAMES`.
        teacher: Likewise.
        sets: The paper's test sets.
    """

    label: str
    task: str
    scale: int
    student: str
    teacher: str
    sets: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        title: What it shows.
        arms: Its rows.
        reference: The arm that gains are counted from.
        blocks: The paper's.
        x: What an arm's name is a number of, where the paper plots.
        note: What a reader has to know before he compares.
    """

    title: str
    arms: tuple[Arm, ...]
    reference: str
    blocks: tuple[Block, ...]
    x: str | None = None
    note: str = ""


def _sr(network: str, scale: int, *sets: str) -> Block:
    family = network.lower()
    student = family if "-" in family else f"{family}-student"
    teacher = f"{family.partition('-')[0]}-teacher"
    return Block(f"{network} x{scale}", "sr", scale, student, teacher, sets)


def _same_size(network: str, task: str, *sets: str) -> Block:
    family = network.lower()
    return Block(network, task, 1, f"{family}-student", f"{family}-teacher", sets)


SR_SETS = ("Set5", "Set14", "BSD100", "Urban100")
ABLATION = (_sr("RCAN", 2, "Set14", "Urban100"),)
SCRATCH, LOGITS, DCKD = Arm("Scratch", "scratch"), Arm("Logits", "logits"), Arm("DCKD", "dckd")
RIVALS = (
    Arm("FAKD", "fakd"),
    Arm("DUKD", "dukd"),
    Arm("CSD", "csd"),
    Arm("AECR", "aecr"),
    Arm("MCLIR", "mclir"),
)
FIXED = {"balance": 0}  # weights that mean themselves
BALANCES = ("0.1", "0.3", "1")
DCR_WEIGHTS = ("0.01", "0.1", "1")
DMM_WEIGHTS = ("0.0001", "0.001", "0.01")
UPDATE_STEPS = (100, 500, 1000, 2000, 3000)  # the paper names 1000 only
COUNTS = (1, 3, 5, 7, 9)  # the paper names 5 only

TABLES = {
    "table2": Table(
        "Super-resolution",
        (SCRATCH, LOGITS, *RIVALS, DCKD, Arm("DCKD*", "dckd_star")),
        "Logits",
        tuple(_sr(name, x, *SR_SETS) for name in ("SwinIR", "RCAN") for x in (2, 3, 4)),
        note="CSD's authors train a slice of the teacher together with it; here the teacher is "
        "given and fixed. AECR and MCLIR learn from no teacher, and their authors published no "
        "settings for super-resolution; `benchmarks/baselines` says what these are.",
    ),
    "table3": Table(
        "Deblurring",
        (SCRATCH, LOGITS, DCKD),
        "Logits",
        tuple(_same_size(name, "deblur", "GoPro") for name in ("NAFNet", "Restormer")),
    ),
    "table4": Table(
        "Deraining",
        (SCRATCH, LOGITS, DCKD),
        "Logits",
        (
            _same_size(
                "Restormer", "derain", "Test100", "Rain100H", "Rain100L", "Test2800", "Test1200"
            ),
        ),
    ),
    "table5": Table(
        "DCKD's two losses",
        (
            Arm("neither", "logits"),
            Arm("DCR", "dckd", {"dmm_weight": 0.0}),
            Arm("DMM", "dckd", {"dcr_weight": 0.0}),
            Arm("DCR+DMM", "dckd"),
        ),
        "neither",
        ABLATION,
    ),
    "table6": Table(
        "Degradations of the negatives' inputs",
        tuple(
            Arm(name, "dckd", {"degradation": name}) for name in ("blur", "noise", "resize", "mix")
        ),
        "noise",
        ABLATION,
    ),
    "table7": Table(
        "Weights; the released code's DMM is a softmax of a softmax",
        (
            *(Arm(f"DCR {w}", "dckd", {**FIXED, "dcr_weight": float(w)}) for w in DCR_WEIGHTS),
            *(
                Arm(
                    f"{title} {w}",
                    "dckd",
                    {**FIXED, "dmm_weight": float(w), "form": form},
                    paper=f"DMM {w}",
                )
                for title, form in (("DMM", "cross_entropy"), ("released DMM", "released"))
                for w in DMM_WEIGHTS
            ),
        ),
        "DCR 0.1",
        ABLATION,
    ),
    "table8": Table(
        "Contrastive learning",
        (SCRATCH, Arm("MCLIR", "mclir"), DCKD),
        "Scratch",
        (_sr("SwinIR-light", 4, "Set14", "BSD100", "Urban100", "Manga109"),),
        note="Neither MCLIR's settings for super-resolution nor DCKD's recipe for SwinIR-light are "
        "published: these are MCLIR's of dehazing and SwinIR's, not the authors'.",
    ),
    "study": Table(
        "What helps, one thing changed at a time (not in the paper)",
        (
            SCRATCH,
            LOGITS,
            Arm("fixed weights", "dckd", FIXED),
            Arm("fixed, a tenth", "dckd", {**FIXED, "dcr_weight": 0.01, "dmm_weight": 1e-4}),
            *(Arm(f"balance {b}", "dckd", {"balance": float(b)}) for b in BALANCES),
            Arm("finest level", "dckd", {"level_weights": [1.0, 0.0, 0.0, 0.0, 0.0]}),
            Arm("equal levels", "dckd", {"level_weights": [1.0] * 5}),
            *(
                Arm(f"{title} negatives", "dckd", {"degradation": name})
                for title, name in (("blurred", "blur"), ("resized", "resize"), ("mixed", "mix"))
            ),
            Arm("history 5 times as often", "dckd", {"interval_factor": 0.2}),
            Arm("history 10 times as rare", "dckd", {"interval_factor": 10}),
        ),
        "Logits",
        ABLATION,
    ),
    "figure8a": Table(
        "Number of negatives",
        tuple(Arm(str(n), "dckd", {"num_negatives": n}) for n in COUNTS),
        "5",
        ABLATION,
        x="negatives",
    ),
    "figure8b": Table(
        "Initial update step of the history",
        tuple(Arm(str(s), "dckd", {"interval_factor": s / INTERVAL}) for s in UPDATE_STEPS),
        "1000",
        ABLATION,
        x="initial update step, of a run of 250,000",
    ),
}
