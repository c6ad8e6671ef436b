"""How large a table's runs are: as in the paper, for a night on a laptop, or for a test.

**small** is one fixed recipe for every table, whatever networks the paper has there: the student is
`tiny` (9,492 parameters for x2), the teacher `small` (152,332), which is trained first, once, on
the same training images for 10,000 steps of 16 crops; 5,000 steps of Adam, 1e-3 with 50 steps of
warm-up and a cosine to 1e-5, 8 crops of 24x24 LR pixels (48x48 where sizes stay), three seeds, the
history's interval scaled to the run. All contrastive methods look through `compact`, with which
published weights mean something else than with each one's own encoder: the gradient of every one is
balanced to 0.3 of an L1's, unless weights are given, and not in Table 7, which is about them.
`--balance 0` trains with the published weights. Images: see `images`.

**smoke** is the same for a few steps of tiny crops, on scikit-image's photographs.

**paper** is the paper's networks and recipes (`examples/restoration/recipes.py`) on its images,
with trained teachers, each method with the encoder that its authors have, and one seed, as there.
DMM is the released code's, to which the paper's weight of 1e-3 belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.tables.arms import Block, Table
from examples.restoration.recipes import PAPER, Recipe
from examples.restoration.schedules import Cosine

STUDENT, TEACHER, ENCODER = "tiny", "small", "compact"


@dataclass(frozen=True)
class Budget:
    """What all tables of a size have in common.

    Attributes:
        students: Recipes, by network or else by task.
        teachers: Likewise, by task; none where trained teachers are taken.
        seeds: By default.
        encoder: Of all contrastive methods; None for each one's own.
        losses: Of DCKD, where neither an arm nor the command line says it; `balance` is of all
            contrastive methods.
    """

    students: Mapping[str, Recipe]
    teachers: Mapping[str, Recipe]
    seeds: tuple[int, ...]
    encoder: str | None
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
