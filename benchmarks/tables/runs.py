"""What a table trains: its runs, and what determines each of them.

`parts` makes of a command line each block's runs; a `Job` is one run; and `build` makes a run's
losses of its settings, which are numbers and names.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.tables.data import Images, ImageSet, images, mean_psnr, named
from benchmarks.tables.specs import BUDGETS, Arm, Block, Table, averaging, small_blocks
from dckd_losses import HistoryModel, NegativeGenerator
from dckd_losses.checks import MIN_SIZE
from dckd_losses.dckd import DCR_WEIGHT, DMM_WEIGHT
from dckd_losses.dcr import LEVEL_WEIGHTS
from dckd_losses.negatives import NUM_NEGATIVES
from dckd_losses.weights import COMPACT
from examples.restoration import networks
from examples.restoration.data.crops import RandomCrops
from examples.restoration.data.datasets import lq_sizes
from examples.restoration.networks import KNOWN, SPECIFICATIONS, teacher_of
from examples.restoration.recipe import Recipe
from examples.restoration.training import checkpoint as checkpoints
from examples.restoration.training.loop import Run, Step

CONTRASTIVE = ("csd", "aecr", "mclir", "dckd", "dckd_star")  # they look through an encoder
DCKD = ("dckd", "dckd_star")
DEFAULTS: Mapping[str, Any] = {  # of DCKD, in full, so that equal runs have equal settings
    "dcr_weight": DCR_WEIGHT,
    "dmm_weight": DMM_WEIGHT,
    "form": "cross_entropy",
    "level_weights": list(LEVEL_WEIGHTS),
    "balance": None,
    "num_negatives": NUM_NEGATIVES,
    "degradation": "noise",
}
# The history's interval grows by its first value every so many of the paper's steps, or their share
# of a shorter run, up to so many times its first value (released code)
GROWTH_EVERY, LENGTH, GROWTHS = 100_000, 250_000, 3
DUKD = {  # its released configurations, against an L1 to the ground truth of 1
    ("rcan-student", 2): {"probability": 0.0},
    ("rcan-student", 3): {"weight": 0.5, "logits_weight": 0.5, "zoom_out": True},
    ("rcan-student", 4): {"probability": 0.0},
    **{
        (network, scale): {"weight": 0.2, "logits_weight": 0.2}
        for network in ("swinir-student", "swinir-light")
        for scale in (2, 3, 4)
    },
}
FAKD_LAYERS = {  # RCAN's as its authors took them; SwinIR's, unpublished, the ends of the thirds
    "rcan-student": ["body.1", "body.5", "body.10"],
    "rcan-teacher": ["body.1", "body.5", "body.10"],
    "swinir-student": ["layers.0", "layers.2", "layers.3"],
    "swinir-teacher": ["layers.1", "layers.3", "layers.5"],
}
# of a recipe, whose place a table's arms take
RECIPE_LOSSES = ("dcr_weight", "dmm_weight", "form", "balance")
WEIGHTS = {"dcr_weight", "dmm_weight"}


@dataclass(frozen=True)
class Given:
    """A trained teacher from a file, a URL or, of the paper's, a name of `networks.KNOWN`."""

    source: str  # which
    scale: int  # output size over input size
    code: Sequence[str] = ()  # its network and `key=value` options; none where the file says it
    raw: ClassVar[bool] = False

    def network(self) -> nn.Module:
        """The network, in eval mode; raises as `networks.open_network`."""
        return networks.open_network(self.source, self.scale, self.code)

    @cached_property
    def identity(self) -> str:
        """Of its weights and of the user's code, wherever they lie."""
        weights = checkpoints.checksum(self.network().state_dict().values())
        if not self.code or self.code[0] in SPECIFICATIONS:
            return weights
        (name, *options), code = self.code, b""
        place, _, attribute = name.rpartition(":")
        if place.endswith(".py"):
            name, code = attribute, Path(place).read_bytes()
        said = json.dumps([name, *options]).encode()
        return f"{weights}, code {hashlib.sha256(said + code).hexdigest()[:12]}"


@dataclass(frozen=True)
class Job:
    """One run.

    Runs of one seed have the same initial weights, the same crops in the same order and the same
    random numbers of torch in each step, whatever their method.
    """

    block: Block  # the networks and their task
    network: str  # which of `networks.NAMES` is trained
    method: str  # of `baselines.METHODS`
    settings: Mapping[str, Any]  # of its losses, in full
    recipe: Recipe  # the training's numbers
    seed: int  # of initial weights, crops and negatives
    images: Images  # what is trained on
    teacher: Job | Given | None  # none for a network that learns from the ground truth alone
    encoder: str | None  # of the contrastive methods
    device: str  # "cpu" or "cuda"; the last digits depend on it
    raw: bool = False  # whether its student is meant where a moving average is kept beside it

    @cached_property
    def determined(self) -> dict[str, Any]:
        """All that the trained weights follow from, as JSON holds it."""
        block, contrastive = self.block, self.method in CONTRASTIVE
        facts = {
            "task": block.task,
            "scale": block.scale,
            "network": self.network,
            "method": self.method,
            "losses": dict(self.settings),
            "recipe": {k: v for k, v in asdict(self.recipe).items() if k not in RECIPE_LOSSES},
            "seed": self.seed,
            "images": self.images.train.fingerprint,
            "teacher": self.teacher and self.teacher.identity,
            "encoder": _fingerprint(self.encoder) if contrastive else None,
            "device": self.device,
        }
        if self.images.own_development:  # a run has one curve
            facts["development"] = self.images.development.fingerprint
        content: dict[str, Any] = json.loads(json.dumps(facts))
        return content

    @cached_property
    def identity(self) -> str:
        """The method, the seed, and a hash of all that determines the run."""
        digest = hashlib.sha256(json.dumps(self.determined, sort_keys=True).encode()).hexdigest()
        return f"{self.block.task}_x{self.block.scale}_{self.method}_{self.seed}_{digest[:10]}"

    def start(
        self, folder: Path, accelerator: Accelerator, teacher: nn.Module | None, workers: int = 0
    ) -> tuple[Run, Step, baselines.Arm | None]:
        """The run at its beginning, its step, and its losses, of which checkpoints keep the state.

        `train` continues it where the folder has a checkpoint.
        """
        recipe, block = self.recipe, self.block
        pairs = self.images.train.pairs
        if not recipe.mirror:  # smaller ones are left out
            crop = max(stage.crop for stage in recipe.all_stages)
            large = [i for i, size in enumerate(lq_sizes(pairs)) if min(size) >= crop]
            if not large:
                raise ValueError(f"no training image is {crop}x{crop} LQ pixels or larger")
            if len(large) < len(pairs):
                pairs = [pairs[i] for i in large]
        crops = RandomCrops.of(recipe, pairs, scale=block.scale, seed=self.seed)
        set_seed(self.seed)
        student = networks.build(self.network, block.scale)
        run = Run(folder, recipe, student, crops, accelerator, workers=workers)
        development = self.images.development
        run.validate = partial(mean_psnr, images=development, task=block.task, scale=block.scale)
        run.settings = self.determined
        arm = None
        if teacher is not None:
            teacher.to(accelerator.device).eval().requires_grad_(False)
            arm = build(self.method, self.settings, student, teacher, self.encoder, self.seed)
            source = run.result if self.settings.get("history") == "average" else None
            arm.to(accelerator.device).attach(run.optimizer, source)
        pixel = "l1" if recipe.reconstruction == "l1" else "psnr_loss"

        def step(lq: Tensor, hq: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            student_out = run.model(lq).float()
            loss = recipe.pixel_loss(student_out, hq)
            terms = {pixel: loss}
            if teacher is None or arm is None:
                return loss, terms
            with torch.no_grad(), accelerator.autocast():
                teacher_out = teacher(lq).float()
            run.check(arm, student_out, teacher_out, lq)
            loss = loss + arm(student_out, teacher_out, lq, target=hq)
            return loss, terms | arm.last

        return run, step, arm


def _fingerprint(encoder: str | None) -> str | None:
    """An encoder's content; of those that are fetched, which never change, the name."""
    path = COMPACT if encoder == "compact" else Path(encoder or "")
    if not path.is_file():
        return encoder
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


Trained = Job | Given


# From the command line to runs


@dataclass(frozen=True)
class Part:
    """One block of a table."""

    block: Block  # its networks
    images: Images  # what they are trained and tested on
    teacher: Trained  # what they learn from
    arms: Mapping[str, Sequence[Job]]  # the runs of each arm, one a seed
    sets: tuple[ImageSet, ...]  # what the scores are of

    @property
    def jobs(self) -> dict[str, Sequence[Job]]:
        """What has to be trained, by arm, the teacher first."""
        teacher = {"Teacher": [self.teacher]} if isinstance(self.teacher, Job) else {}
        return {**teacher, **self.arms}


def parts(table: Table, options: Namespace, device: str) -> list[Part]:
    """Every block that is asked for.

    Args:
        table: Its arms and blocks.
        options: What the command line says, as `__main__.options` makes it.
        device: "cpu" or "cuda".

    Raises:
        ValueError: What is asked for is not there, or does not fit.
    """
    paper = options.budget == "paper"
    blocks = table.blocks if paper else small_blocks(table, options.student)
    labels = [block.label for block in blocks]
    if options.block is not None and options.block not in labels:
        raise ValueError(f"got --block {options.block!r}; expected one of {', '.join(labels)}")
    chosen = [block for block in blocks if options.block in (None, block.label)]
    if options.teacher_network and not options.teacher:
        raise ValueError("got --teacher-network alone; expected --teacher with its weights, too")
    if paper and len(chosen) > 1 and options.teacher:
        raise ValueError(
            f"got --teacher for several networks; expected --block with one of {', '.join(labels)}"
        )
    names = [arm.name for arm in table.arms]
    for name in options.arms or ():
        if name not in names:
            raise ValueError(f"got arm {name!r}; expected one of {', '.join(map(repr, names))}")
    return [_part(table, options, device, block) for block in chosen]


def _part(table: Table, options: Namespace, device: str, block: Block) -> Part:
    budget = BUDGETS[options.budget]
    fixed = {"balance": 0} if options.losses.keys() & WEIGHTS else {}  # they mean themselves
    losses = {**budget.losses, **fixed, **options.losses}
    block = replace(block, student=options.student or block.student)
    recipe, teacher_recipe = budget.recipes(block, options.recipe)
    if table.average and recipe.ema is None:
        recipe = averaging(recipe)
    side = block.scale * min(stage.crop for stage in recipe.all_stages)
    if side < MIN_SIZE:
        raise ValueError(
            f"got --crop {recipe.crop}, outputs of {side}x{side} pixels; expected {MIN_SIZE}"
        )
    source = options.teacher
    if source is None and teacher_recipe is None:  # the name under which the paper's can be had
        data = {"deblur": "gopro", "derain": "rain13k", "sr": f"x{block.scale}"}[block.task]
        source = f"{block.teacher.partition('-')[0]}-{data}"
        if source not in KNOWN:
            raise ValueError(
                f"{block.teacher} cannot be fetched by a name: pass its file by --teacher"
            )
    found = images(options.budget, block.task, block.scale, block.sets)
    sets = options.sets or (table.sets if options.budget == "small" else ())
    found = named(found, sets, options.development_set, block.task, block.scale)
    encoder = options.encoder or budget.encoder
    scratch = Job(block, block.student, "scratch", {}, recipe, 0, found, None, encoder, device)
    teacher: Trained
    if source is None:
        assert teacher_recipe is not None
        teacher = replace(scratch, network=block.teacher, recipe=teacher_recipe)
    else:
        paper = [teacher_of(block.student)] if block.student in SPECIFICATIONS else []
        teacher = Given(source, block.scale, tuple(options.teacher_network or paper))
        teacher.network()  # refused now, not after hours of training
    like = replace(scratch, teacher=teacher, raw=table.average)
    arms = {
        arm.name: _runs(arm, losses, like, options.seeds or budget.seeds)
        for arm in table.arms
        if options.arms is None or arm.name in options.arms
    }
    scored = (found.development,) if options.development else found.tests
    return Part(block, found, teacher, arms, scored)


def _runs(arm: Arm, losses: Mapping[str, Any], like: Job, seeds: Sequence[int]) -> list[Job]:
    """An arm's runs, one a seed; the losses' settings are those that it does not say itself."""
    settings = {**meant_for(arm.method, losses), **arm.settings}
    job = replace(
        like,
        method=arm.method,
        settings=settings_of(arm.method, settings, like.recipe, like.network, like.block.scale),
        teacher=None if arm.method == "scratch" else like.teacher,
        encoder=arm.encoder or like.encoder,
        raw=like.raw and not arm.average,
    )
    return [replace(job, seed=seed) for seed in seeds]


# From settings to losses


def meant_for(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of DCKD's settings that a method has, too: contrastive rivals have a balance."""
    if method in DCKD:
        return dict(settings)
    return {k: v for k, v in settings.items() if k == "balance" and method in CONTRASTIVE}


def settings_of(
    method: str, settings: Mapping[str, Any], recipe: Recipe, network: str, scale: int
) -> dict[str, Any]:
    """An arm's settings in full.

    Args:
        method: Of `baselines.METHODS`.
        settings: What is not as by default; a `balance` of 0 is none. Of DCKD those of
            `DEFAULTS`, `interval`, the steps between the history's first updates, and
            `interval_factor`, which multiplies them.
        recipe: By default it says the interval.
        network: The student.
        scale: The student's.
    """
    if method not in DCKD:
        published = DUKD.get((network, scale), {}) if method == "dukd" else {}
        found = {**published, **settings}
        return {name: value for name, value in found.items() if name != "balance" or value}
    growth_every = max(1, round(GROWTH_EVERY * min(1, recipe.iterations / LENGTH)))
    schedule = {"interval": recipe.history_interval, "growth_every": growth_every}
    full = {**schedule, **DEFAULTS, **settings}
    full["balance"] = full["balance"] or None
    factor = full.pop("interval_factor", 1)
    full["interval"] = max(1, round(factor * full["interval"]))
    return full


def build(
    method: str,
    settings: Mapping[str, Any],
    student: nn.Module,
    teacher: nn.Module,
    encoder: str | None,
    seed: int,
) -> baselines.Arm:
    """The losses of one run, from the settings of `settings_of`; no encoder: each one's own."""
    known = dict(settings)
    if method in DCKD:
        known["level_weights"] = tuple(known["level_weights"])
        known["negatives"] = _negatives(known, student, seed)
        known.pop("history", None)  # that is where it is attached
    odd = 2 * seed + 1  # the seeds of negatives are even
    if method in ("dukd", "consistency") or known.get("half"):
        known["seed"] = odd
    if method == "dckd_star":
        known["consistency"] = {"seed": odd}
    if method == "fakd":
        layers = [FAKD_LAYERS.get(str(getattr(net, "backbone", ""))) for net in (student, teacher)]
        known |= dict(zip(("student_layers", "teacher_layers"), layers, strict=True))
    return baselines.build(method, student, teacher, encoder, **known)


def _negatives(known: dict[str, Any], student: nn.Module, seed: int) -> NegativeGenerator:
    """History and negatives, whose settings are taken out."""
    interval = known.pop("interval")
    history = HistoryModel(
        student,
        interval=interval,
        interval_growth=interval,
        growth_every=known.pop("growth_every"),
        max_interval=GROWTHS * interval,
    )
    return NegativeGenerator(
        history,
        num_negatives=known.pop("num_negatives"),
        degradation=known.pop("degradation"),
        seed=2 * seed,
    )
