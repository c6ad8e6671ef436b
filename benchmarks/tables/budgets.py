"""How large a table's runs are: as in the paper, for a night on a laptop, or for a test.

**small** is one fixed recipe for every table, whatever networks the paper has there: the student is
`tiny` (9,492 parameters for x2), the teacher `small` (152,332), which is trained first, once, on
the same training images; 10,000 steps of Adam, 1e-3 with 50 steps of warm-up and a cosine to 1e-5,
8 crops of 24x24 LR pixels (48x48 where sizes stay), three seeds, the history's interval scaled to
the run. All contrastive methods look through `compact`. Images: see `images`.

**smoke** is the same for a few steps of tiny crops, on scikit-image's photographs.

**paper** is the paper's networks and recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.tables.arms import Block, Table
from examples.restoration.recipes import Recipe

STUDENT, TEACHER, ENCODER = "tiny", "small", "compact"


@dataclass(frozen=True)
class Budget:
    """What all tables of a size have in common.

    Attributes:
        recipe: Of the students for super-resolution.
        teacher: Of the teacher; None where it is given.
        same_size_crop: Pixels a side where input and output have one size.
        seeds: By default.
        encoder: Of all contrastive methods; None for each one's own.
    """

    recipe: Recipe
    teacher: Recipe | None
    same_size_crop: int
    seeds: tuple[int, ...]
    encoder: str | None

    def recipes(self, block: Block, changes: Mapping[str, Any]) -> tuple[Recipe, Recipe | None]:
        """The student's recipe with changes, and the teacher's, whom they leave alone."""
        crop = {} if block.task == "sr" else {"crop": self.same_size_crop}
        student = replace(self.recipe, **{**crop, **changes})
        return student, self.teacher and replace(self.teacher, **crop)


BUDGETS = {
    "small": Budget(
        Recipe(iterations=10_000, batch_size=8, crop=24),
        Recipe(iterations=10_000, batch_size=16, crop=24),
        same_size_crop=48,
        seeds=(0, 1, 2),
        encoder=ENCODER,
    ),
    "smoke": Budget(
        Recipe(iterations=2, batch_size=2, crop=8, warm_up=1),
        Recipe(iterations=2, batch_size=2, crop=8, warm_up=1),
        same_size_crop=16,
        seeds=(0, 1),
        encoder=ENCODER,
    ),
}


def reduced(table: Table) -> Block:
    """The one block of a small table: the paper's last, at x2 where it has that."""
    block = next((b for b in reversed(table.blocks) if b.scale == 2), table.blocks[-1])
    return replace(block, student=STUDENT, teacher=TEACHER)
