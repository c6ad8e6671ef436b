"""A table made concrete: which runs, with which teacher, on which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.tables import losses
from benchmarks.tables.arms import Block, Table
from benchmarks.tables.budgets import BUDGETS, reduced
from benchmarks.tables.images import Images, images
from benchmarks.tables.job import Job
from benchmarks.tables.sets import ImageSet
from benchmarks.tables.store import Given, Trained
from examples.restoration.sources import KNOWN


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
        losses: What is not as by default in DCKD, where an arm does not say it itself.
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
    if options.budget not in BUDGETS:
        raise ValueError(f"got --budget {options.budget}; expected one of {', '.join(BUDGETS)}")
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
    block = replace(block, student=options.student or block.student)
    recipe, teacher_recipe = budget.recipes(block, options.recipe)
    found = images(options.budget, block.task, block.scale, recipe.crop, block.sets)

    def job(network: str, method: str, **known: Any) -> Job:
        facts = {"block": block, "images": found, "device": device, "recipe": recipe}
        return Job(network=network, method=method, **{**facts, **known})

    teacher: Trained
    if teacher_recipe is None or options.teacher:
        teacher = Given(options.teacher or _known(block), block.student, block.scale)
    else:
        teacher = job(
            block.teacher, "scratch", settings={}, seed=0, teacher=None, encoder=None,
            recipe=teacher_recipe,
        )  # fmt: skip
    arms: dict[str, list[Trained]] = {}
    for arm in table.arms:
        if options.arms is not None and arm.name not in options.arms:
            continue
        if arm.name in options.given:
            given = Given(options.given[arm.name], None, block.scale)
            given.network()  # refused now, not after hours of training
            arms[arm.name] = [given]
            continue
        is_dckd = arm.method in losses.DCKD
        settings = {**(options.losses if is_dckd else {}), **arm.settings}
        arms[arm.name] = [
            job(
                block.student,
                arm.method,
                settings=losses.settings_of(arm.method, settings, recipe),
                seed=seed,
                teacher=None if arm.method == "scratch" else teacher,
                encoder=options.encoder or budget.encoder,
            )
            for seed in options.seeds or budget.seeds
        ]
    sets = (found.development,) if options.development else found.tests
    return Part(block, found, teacher, arms, sets)


def _known(block: Block) -> str:
    """The name under which a teacher of the paper can be had."""
    data = {"deblur": "gopro", "derain": "rain13k", "sr": f"x{block.scale}"}[block.task]
    name = f"{block.teacher.partition('-')[0]}-{data}"
    if name not in KNOWN:
        raise ValueError(f"{block.teacher} cannot be fetched by a name: pass its file by --teacher")
    return name
