"""A table made concrete: which runs, with which teacher, on which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.tables import losses
from benchmarks.tables.arms import Arm, Block, Table
from benchmarks.tables.budgets import BUDGETS, reduced
from benchmarks.tables.images import Images, images
from benchmarks.tables.job import Job
from benchmarks.tables.sets import ImageSet
from benchmarks.tables.store import Given, Trained
from examples.restoration.sources import KNOWN

WEIGHTS = {"dcr_weight", "dmm_weight"}


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        table: Its name.
        budget: "paper", "small" or "smoke".
        block: Label of the one block to do, None for all.
        arms: Names of the arms to do, None for all.
        seeds: None for the budget's.
        recipe: What is not as in the budget's recipe.
        losses: What is not as by default in DCKD, where an arm does not say it itself; of them
            `balance` is of all contrastive methods.
        encoder: Of all contrastive methods, None for the budget's.
        student: Network to train, None for the budget's.
        teacher: File of the teacher, None for the budget's.
        given: Files of trained students by arm.
        development: Scores are of development images.
    """

    table: str
    budget: str
    block: str | None = None
    arms: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    student: str | None = None
    teacher: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    development: bool = False


@dataclass(frozen=True)
class Part:
    """One block of a table.

    Attributes:
        block: Its networks.
        images: What they are trained and tested on.
        teacher: What they learn from.
        arms: The networks of each arm, one a seed.
        sets: What the scores are of.
    """

    block: Block
    images: Images
    teacher: Trained
    arms: Mapping[str, Sequence[Trained]]
    sets: tuple[ImageSet, ...]

    @property
    def jobs(self) -> dict[str, list[Job]]:
        """What has to be trained, by arm, the teacher first."""
        found = {
            name: [run for run in runs if isinstance(run, Job)] for name, runs in self.arms.items()
        }
        if isinstance(self.teacher, Job):
            found = {"Teacher": [self.teacher], **found}
        return {name: runs for name, runs in found.items() if runs}


def parts(table: Table, options: Options, device: str) -> list[Part]:
    """Every block that is asked for.

    Raises:
        ValueError: What is asked for is not there, or does not fit.
    """
    blocks = table.blocks if options.budget == "paper" else (reduced(table),)
    labels = [block.label for block in blocks]
    if options.block is not None and options.block not in labels:
        raise ValueError(f"got --block {options.block!r}; expected one of {', '.join(labels)}")
    chosen = [block for block in blocks if options.block in (None, block.label)]
    if len(chosen) > 1 and (options.teacher or options.given):
        raise ValueError(f"files fit one network: name it by --block, one of {', '.join(labels)}")
    names = [arm.name for arm in table.arms]
    for name in [*(options.arms or ()), *options.given]:
        if name not in names:
            raise ValueError(f"got arm {name!r}; expected one of {', '.join(names)}")
    return [_part(table, options, device, block) for block in chosen]


def _part(table: Table, options: Options, device: str, block: Block) -> Part:
    budget = BUDGETS[options.budget]
    fixed = {"balance": 0} if options.losses.keys() & WEIGHTS else {}  # they mean themselves
    options = replace(options, losses={**budget.losses, **fixed, **options.losses})
    block = replace(block, student=options.student or block.student)
    recipe, teacher_recipe = budget.recipes(block, options.recipe)
    source = options.teacher or (None if teacher_recipe else _known(block))
    found = images(options.budget, block.task, block.scale, block.sets)
    encoder = options.encoder or budget.encoder
    scratch = Job(block, block.student, "scratch", {}, recipe, 0, found, None, encoder, device)
    teacher: Trained
    if source is None:
        assert teacher_recipe is not None
        teacher = replace(scratch, network=block.teacher, recipe=teacher_recipe)
    else:
        teacher = _given(source, block.student, block.scale)
    seeds = options.seeds or budget.seeds
    arms = {
        arm.name: _runs(arm, options, replace(scratch, teacher=teacher), seeds)
        for arm in table.arms
        if options.arms is None or arm.name in options.arms
    }
    sets = (found.development,) if options.development else found.tests
    return Part(block, found, teacher, arms, sets)


def _runs(arm: Arm, options: Options, like: Job, seeds: Sequence[int]) -> list[Trained]:
    """An arm's networks: one a seed, or the file that is given."""
    if arm.name in options.given:
        return [_given(options.given[arm.name], None, like.block.scale)]
    settings = {**losses.meant_for(arm.method, options.losses), **arm.settings}
    job = replace(
        like,
        method=arm.method,
        settings=losses.settings_of(
            arm.method, settings, like.recipe, like.network, like.block.scale
        ),
        teacher=None if arm.method == "scratch" else like.teacher,
    )
    return [replace(job, seed=seed) for seed in seeds]


def _given(source: str, student: str | None, scale: int) -> Given:
    """A file's network, read once so that it is refused now, not after hours of training."""
    given = Given(source, student, scale)
    given.network()
    return given


def _known(block: Block) -> str:
    """The name under which a teacher of the paper can be had."""
    data = {"deblur": "gopro", "derain": "rain13k", "sr": f"x{block.scale}"}[block.task]
    name = f"{block.teacher.partition('-')[0]}-{data}"
    if name not in KNOWN:
        raise ValueError(f"{block.teacher} cannot be fetched by a name: pass its file by --teacher")
    return name
