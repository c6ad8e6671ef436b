"""What each table compares and how large its runs are, as data.

Budgets, from the paper's scale to a test's:

**paper** is the paper's networks and recipes (`examples/restoration/recipe.py`) on its images,
with trained teachers, each method with the encoder that its authors have, and one seed, as there.
DMM is the released code's, to which the paper's weight of 1e-3 belongs.

**small** is one fixed recipe for every table, whatever networks the paper has there: the student is
`tiny` (9,492 parameters for x2), the teacher `small` (152,332), which is trained first, once, on
the same training images for 10,000 steps of 16 crops; 5,000 steps of Adam, 1e-3 with 50 steps of
warm-up and a cosine to 1e-5, 8 crops of 24x24 LR pixels (48x48 where sizes stay), three seeds, the
history's interval scaled to the run. All contrastive methods look through `compact`, with which
published weights mean something else than with each one's own encoder: the gradient of every one is
balanced to 0.3 of an L1's, unless weights are given, and not in Table 7, which is about them.
`--balance 0` trains with the published weights. Images: see `data`.

**smoke** is the same for a few steps of tiny crops, on scikit-image's photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dckd_losses.history import INTERVAL
from examples.restoration.recipe import PAPER, Cosine, Recipe


@dataclass(frozen=True)
class Arm:
    """One row of a table."""

    name: str  # in the table
    method: str  # of `baselines.METHODS`
    # of its losses, where they are not the defaults; see `runs.settings_of`
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: str | None = None  # its name in the paper's table, if another
    encoder: str | None = None  # name or file, where the arm has one of its own
    average: bool = False  # whether the student's moving average is scored, where the table has it


@dataclass(frozen=True)
class Block:
    """Which networks a table trains on what."""

    label: str  # as the paper's numbers name it
    task: str  # "sr", "deblur" or "derain"
    scale: int  # output size over input size
    student: str  # of `networks.NAMES`
    teacher: str  # likewise
    sets: tuple[str, ...]  # the paper's test sets


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    title: str  # what it shows
    arms: tuple[Arm, ...]  # its rows
    reference: str  # the arm that gains are counted from
    blocks: tuple[Block, ...]  # the paper's
    x: str | None = None  # what an arm's name is a number of, where the paper plots
    note: str = ""  # what a reader has to know before he compares
    students: tuple[str, ...] = ()  # of the small budgets, where it is not the usual one
    sets: tuple[str, ...] = ()  # what the small budget tests on, where it is not the usual
    average: bool = False  # whether all runs keep a moving average, which changes no weights
    comparisons: tuple[tuple[str, str], ...] = ()  # of arms with others than the reference


def _block(network: str, task: str, scale: int, *sets: str) -> Block:
    family = network.lower()
    label = f"{network} x{scale}" if scale > 1 else network
    student = family if "-" in family else f"{family}-student"
    return Block(label, task, scale, student, f"{family.partition('-')[0]}-teacher", sets)


def _dckd(name: str, paper: str | None = None, **settings: Any) -> Arm:
    return Arm(name, "dckd", settings, paper)


SR_SETS = ("Set5", "Set14", "BSD100", "Urban100")
RAIN_SETS = ("Test100", "Rain100H", "Rain100L", "Test2800", "Test1200")
ABLATION = (_block("RCAN", "sr", 2, "Set14", "Urban100"),)
SCRATCH, LOGITS, DCKD = Arm("Scratch", "scratch"), Arm("Logits", "logits"), _dckd("DCKD")
RIVALS = tuple(Arm(name, name.lower()) for name in ("FAKD", "DUKD", "CSD", "AECR", "MCLIR"))
DEGRADATIONS = ("blur", "noise", "resize", "mix")
BALANCES = (0.1, 0.3, 1)
DCR_WEIGHTS = ("0.01", "0.1", "1")
DMM_WEIGHTS = ("0.0001", "0.001", "0.01")
FORMS = {"DMM": "cross_entropy", "released DMM": "released"}
UPDATE_STEPS = (100, 500, 1000, 2000, 3000)  # the paper names 1000 only
COUNTS = (1, 3, 5, 7, 9)  # the paper names 5 only
EVIDENCE_NOTE = """Every arm is Logits with one change. *consistency* adds DUKD's label consistency;
*average* scores the moving average of the same runs, whose decay is 0.999 or, in shorter runs, over
a tenth of the steps; *mixture* is DCKD, label consistency and the moving average together, as in
the released code: beside *consistency, average* it is what DCKD itself adds there. DCKD, DCR and
DMM are balanced. *DCR, fixed weight* has the paper's 0.1 and, as the released code, a history that
follows the moving average, here that of the step before. DMM is Eq. 9's cross-entropy; at the
paper's weight of 1e-3 it would have a hundredth of an L1's gradient. *every 2nd step*, *every 4th
step*, *two negatives* and *half of each crop* are DCKD for less."""

TABLES = {
    "table2": Table(
        "Super-resolution",
        (SCRATCH, LOGITS, *RIVALS, DCKD, Arm("DCKD*", "dckd_star")),
        "Logits",
        tuple(_block(name, "sr", x, *SR_SETS) for name in ("SwinIR", "RCAN") for x in (2, 3, 4)),
        note="CSD's authors train a slice of the teacher together with it; here the teacher is "
        "given and fixed. AECR and MCLIR learn from no teacher, and their authors published no "
        "settings for super-resolution; `benchmarks/baselines` says what these are.",
    ),
    "table3": Table(
        "Deblurring",
        (SCRATCH, LOGITS, DCKD),
        "Logits",
        tuple(_block(name, "deblur", 1, "GoPro") for name in ("NAFNet", "Restormer")),
    ),
    "table4": Table(
        "Deraining",
        (SCRATCH, LOGITS, DCKD),
        "Logits",
        (_block("Restormer", "derain", 1, *RAIN_SETS),),
    ),
    "table5": Table(
        "DCKD's two losses",
        (
            Arm("neither", "logits"),
            _dckd("DCR", dmm_weight=0.0),
            _dckd("DMM", dcr_weight=0.0),
            _dckd("DCR+DMM"),
        ),
        "neither",
        ABLATION,
    ),
    "table6": Table(
        "Degradations of the negatives' inputs",
        tuple(_dckd(name, degradation=name) for name in DEGRADATIONS),
        "noise",
        ABLATION,
    ),
    "table7": Table(
        "Weights; the released code's DMM is a softmax of a softmax",
        (
            *(_dckd(f"DCR {w}", balance=0, dcr_weight=float(w)) for w in DCR_WEIGHTS),
            *(
                _dckd(f"{title} {w}", f"DMM {w}", balance=0, dmm_weight=float(w), form=form)
                for title, form in FORMS.items()
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
        (_block("SwinIR-light", "sr", 4, "Set14", "BSD100", "Urban100", "Manga109"),),
        note="Neither MCLIR's settings for super-resolution nor DCKD's recipe for SwinIR-light are "
        "published: these are MCLIR's of dehazing and SwinIR's, not the authors'.",
    ),
    "study": Table(
        "What helps, one thing changed at a time (not in the paper)",
        (
            SCRATCH,
            LOGITS,
            _dckd("fixed weights", balance=0),
            _dckd("fixed, a tenth", balance=0, dcr_weight=0.01, dmm_weight=1e-4),
            *(_dckd(f"balance {b}", balance=float(b)) for b in BALANCES),
            _dckd("finest level", level_weights=[1.0, 0.0, 0.0, 0.0, 0.0]),
            _dckd("equal levels", level_weights=[1.0] * 5),
            _dckd("blurred negatives", degradation="blur"),
            _dckd("resized negatives", degradation="resize"),
            _dckd("mixed negatives", degradation="mix"),
            _dckd("history 5 times as often", interval_factor=0.2),
            _dckd("history 10 times as rare", interval_factor=10),
        ),
        "Logits",
        ABLATION,
    ),
    "evidence": Table(
        "Where a gain comes from (not in the paper)",
        (
            LOGITS,
            DCKD,
            Arm("mixture", "dckd_star", average=True),
            Arm("consistency", "consistency"),
            Arm("consistency, average", "consistency", average=True),
            Arm("average", "logits", average=True),
            Arm("DCKD, average", "dckd", average=True),
            _dckd("DCR", dmm_weight=0.0),
            _dckd("every 4th step", every=4),
            _dckd("DCR, fixed weight", balance=0, dmm_weight=0.0, history="average"),
            _dckd("DMM", dcr_weight=0.0),
            SCRATCH,
            _dckd("every 2nd step", every=2),
            _dckd("two negatives", num_negatives=2),
            _dckd("half of each crop", half=True),
        ),
        "Logits",
        ABLATION,
        note=EVIDENCE_NOTE,
        students=("small", "medium"),
        sets=("Set5", "Urban100_dev", "BSDS30"),
        average=True,
        comparisons=(("DCKD, average", "average"), ("mixture", "consistency, average")),
    ),
    "figure8a": Table(
        "Number of negatives",
        tuple(_dckd(str(n), num_negatives=n) for n in COUNTS),
        "5",
        ABLATION,
        x="negatives",
    ),
    "figure8b": Table(
        "Initial update step of the history",
        tuple(_dckd(str(s), interval_factor=s / INTERVAL) for s in UPDATE_STEPS),
        "1000",
        ABLATION,
        x="initial update step, of a run of 250,000",
    ),
}


def encoder_study(encoders: Sequence[str]) -> Table:
    """DCKD through several encoders beside plain distillation; a kind of `study`.

    Args:
        encoders: Names or files; an arm is named after its file.

    Raises:
        ValueError: Two have one name.
    """
    names = [Path(encoder).stem for encoder in encoders]
    if len(set(names)) < len(names):
        raise ValueError(f"got encoders {', '.join(names)}; expected different names")
    arms = (Arm(name, "dckd", encoder=e) for name, e in zip(names, encoders, strict=True))
    title = "Encoders: cost and gain (not in the paper)"
    return Table(title, (LOGITS, *arms), "Logits", ABLATION)


# How large the runs are

STUDENT, TEACHER, ENCODER = "tiny", "small", "compact"


@dataclass(frozen=True)
class Budget:
    """What all tables of a size have in common."""

    students: Mapping[str, Recipe]  # recipes, by network or else by task
    teachers: Mapping[str, Recipe]  # likewise, by task; none where trained teachers are taken
    seeds: tuple[int, ...]  # by default
    encoder: str | None  # of all contrastive methods; None for each one's own
    # of DCKD, where neither an arm nor the command line says it; `balance` is of all contrastive
    # methods
    losses: Mapping[str, Any]

    def recipes(self, block: Block, changes: Mapping[str, Any]) -> tuple[Recipe, Recipe | None]:
        """The student's recipe with changes, and the teacher's, which they leave alone.

        Raises:
            ValueError: There is no recipe for such a student, or a change is out of range.
        """
        known, found = dict(changes), self.students.get(block.student)
        student = found or self.students.get(block.task)
        if student is None:
            raise ValueError(f"got --student {block.student}; expected {', '.join(self.students)}")
        if "iterations" in known:
            student = student.shortened(known.pop("iterations"))
        student = replace(student, **known)
        for size in SIZES:
            student = student.with_constant(size) if size in known else student
        return student, self.teachers.get(block.task)


def _by_task(recipe: Recipe, same_size_crop: int) -> dict[str, Recipe]:
    """A recipe for super-resolution, and for the tasks whose inputs and outputs have one size."""
    same_size = replace(recipe, crop=same_size_crop)
    return {"sr": recipe, "deblur": same_size, "derain": same_size}


SMALL = Recipe(iterations=5_000, batch_size=8, crop=24)
SMALL_TEACHER = replace(SMALL, iterations=10_000, batch_size=16)
BALANCED = {"balance": 0.3}
EMA, EMA_SHARE = 0.999, 0.1  # the released code's decay, over that share of a run at most
SIZES: tuple[Literal["batch_size", "crop"], ...] = ("batch_size", "crop")  # of all a run's stages
SMOKE = _by_task(Recipe(iterations=2, batch_size=2, crop=8, schedule=Cosine(end=1e-5)), 16)
BUDGETS = {
    "paper": Budget(PAPER, {}, seeds=(0,), encoder=None, losses={"form": "released"}),
    "small": Budget(_by_task(SMALL, 48), _by_task(SMALL_TEACHER, 48), (0, 1, 2), ENCODER, BALANCED),
    "smoke": Budget(SMOKE, SMOKE, (0, 1), ENCODER, BALANCED),
}


def reduced(table: Table) -> Block:
    """The one block of a small table: the paper's last, at x2 where it has that."""
    block = next((b for b in reversed(table.blocks) if b.scale == 2), table.blocks[-1])
    return replace(block, student=STUDENT, teacher=TEACHER)


def small_blocks(table: Table, student: str | None) -> tuple[Block, ...]:
    """The blocks of a small table, one a student, named after it where the table says which."""
    block = reduced(table)
    if not table.students:
        return (replace(block, student=student or block.student),)
    students = (student,) if student else table.students
    return tuple(replace(block, student=each, label=each) for each in students)


def averaging(recipe: Recipe) -> Recipe:
    """The same with a moving average of the student."""
    return replace(recipe, ema=min(EMA, max(0.0, 1 - 1 / (EMA_SHARE * recipe.iterations))))
