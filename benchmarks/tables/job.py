"""One training run of a table: what determines it, and how it is built from that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import set_seed
from torch import nn

from benchmarks.tables import losses
from benchmarks.tables.arms import Block
from benchmarks.tables.images import Images
from benchmarks.tables.scoring import mean_psnr
from dckd_losses.weights import COMPACT
from examples.restoration import backbones
from examples.restoration.data import Pair, RandomCrops, lq_sizes
from examples.restoration.recipes import Recipe
from examples.restoration.run import Run

LOSSES = (
    "dcr_weight",
    "dmm_weight",
    "form",
    "balance",
)  # of a recipe; a table's arms have their own


class Teacher(Protocol):
    """A network to learn from: a run of its own, or a file."""

    @property
    def identity(self) -> str:
        """What tells it from other teachers."""


@dataclass(frozen=True)
class Job:
    """One run.

    Runs of one seed have the same initial weights, the same crops in the same order and the same
    random numbers of torch in each step, whatever their method.

    Attributes:
        block: The networks and their task.
        network: Which of `backbones.NAMES` is trained.
        method: Of `baselines.METHODS`.
        settings: Of its losses, in full.
        recipe: The training's numbers.
        seed: Of initial weights, crops and negatives.
        images: What is trained on.
        teacher: None for a network that learns from the ground truth alone.
        encoder: Of the contrastive methods.
        device: "cpu" or "cuda"; the last digits depend on it.
    """

    block: Block
    network: str
    method: str
    settings: Mapping[str, Any]
    recipe: Recipe
    seed: int
    images: Images
    teacher: Teacher | None
    encoder: str | None
    device: str

    @cached_property
    def determined(self) -> dict[str, Any]:
        """All that the trained weights follow from, as JSON holds it."""
        block, contrastive = self.block, self.method in losses.CONTRASTIVE
        facts = {
            "task": block.task,
            "scale": block.scale,
            "network": self.network,
            "method": self.method,
            "losses": dict(self.settings),
            "recipe": {k: v for k, v in asdict(self.recipe).items() if k not in LOSSES},
            "seed": self.seed,
            "images": self.images.train.fingerprint,
            "teacher": self.teacher and self.teacher.identity,
            "encoder": _fingerprint(self.encoder) if contrastive else None,
            "device": self.device,
        }
        content: dict[str, Any] = json.loads(json.dumps(facts))
        return content

    @cached_property
    def identity(self) -> str:
        """The method, the seed, and a hash of all that determines the run."""
        digest = hashlib.sha256(json.dumps(self.determined, sort_keys=True).encode()).hexdigest()
        return f"{self.block.task}_x{self.block.scale}_{self.method}_{self.seed}_{digest[:10]}"

    def run(self, folder: Path, teacher: nn.Module | None) -> Run:
        """The run, at its beginning; `train` continues it where the folder has a checkpoint."""
        recipe, block = self.recipe, self.block
        crop = max(stage.crop for stage in recipe.all_stages)
        pairs = self.images.train.pairs
        crops = RandomCrops(
            pairs if recipe.mirror else _large(pairs, crop),
            crop=crop,
            scale=block.scale,
            length=recipe.crops_before(recipe.iterations),
            seed=self.seed,
            quarter_turns=recipe.quarter_turns,
            mirror=recipe.mirror,
        )
        set_seed(self.seed)
        run = Run(folder, recipe, crops, backbones.build(self.network, block.scale))
        if teacher is not None:
            run.teacher, run.whole = teacher, True
            run.dckd = losses.build(
                self.method, self.settings, run.student, teacher, self.encoder, self.seed
            )
        development = self.images.development
        run.validate = partial(mean_psnr, images=development, task=block.task, scale=block.scale)
        run.settings = self.determined
        return run


def _large(pairs: Sequence[Pair], crop: int) -> Sequence[Pair]:
    """Those of at least a crop's size."""
    large = [index for index, size in enumerate(lq_sizes(pairs)) if min(size) >= crop]
    if not large:
        raise ValueError(f"no training image is {crop}x{crop} LQ pixels or larger, as --crop is")
    return pairs if len(large) == len(pairs) else [pairs[index] for index in large]


def _fingerprint(encoder: str | None) -> str | None:
    """An encoder's content; of those that are fetched, which never change, the name."""
    path = COMPACT if encoder == "compact" else Path(encoder or "")
    if not path.is_file():
        return encoder
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
