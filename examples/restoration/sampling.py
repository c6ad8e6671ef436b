"""Which crops each step of each process takes."""

from collections.abc import Iterator
from typing import NamedTuple

from torch.utils.data import Sampler

from .recipes import Recipe


class Crop(NamedTuple):
    """An item of `RandomCrops`: its number, and LQ pixels a side."""

    number: int
    size: int


class Batches(Sampler[list[Crop]]):
    """The batches of one process, in the order of training.

    Each step takes the recipe's next crops. Processes share them in equal blocks, and each goes
    through its block in equal parts, so neither number changes what a step sees.

    Args:
        recipe: how many crops a step, and of what size.
        first: the step to begin with.
        processes: that train together.
        rank: of this one.
        parts: of its block, one batch each: gradient accumulation.

    Raises:
        ValueError: a step's crops cannot be shared out equally.
    """

    def __init__(
        self, recipe: Recipe, *, first: int = 0, processes: int = 1, rank: int = 0, parts: int = 1
    ) -> None:
        check_shares(recipe, processes, parts)
        self.recipe, self.first = recipe, first
        self.processes, self.rank, self.parts = processes, rank, parts

    def __len__(self) -> int:
        return max(0, self.recipe.iterations - self.first) * self.parts

    def __iter__(self) -> Iterator[list[Crop]]:
        start = self.recipe.crops_before(self.first)
        for step in range(self.first, self.recipe.iterations):
            stage = self.recipe.stage_at(step)
            size = stage.batch_size // (self.processes * self.parts)
            block = start + self.rank * self.parts * size
            for begin in range(block, block + self.parts * size, size):
                yield [Crop(number, stage.crop) for number in range(begin, begin + size)]
            start += stage.batch_size


def check_shares(recipe: Recipe, processes: int, parts: int) -> None:
    """Require that every batch of a recipe divides into equal shares."""
    for stage in recipe.all_stages:
        if stage.batch_size % (processes * parts):
            raise ValueError(
                f"got a batch of {stage.batch_size} crops from step {stage.step:,} on; expected "
                f"a multiple of {processes * parts}, the processes ({processes}) times the parts "
                f"that gradients are accumulated over ({parts})"
            )
