"""One training run: its parts, and its state on disk."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import checkpoints
from .console import refusing
from .data import RandomCrops
from .recipes import Recipe


@dataclass
class Run:
    """One training run: what is trained on what, and where it is kept.

    Attributes:
        folder: where the checkpoint goes.
        recipe: the numbers.
        crops: training data; the recipe says which of them a step takes.
        student: the network in training.
        teacher: its outputs are distilled; None to train on the ground truth alone.
        dckd: DCKD's losses, or another method's with the same methods; None to leave them out.
        whole: `dckd` is all that is added to the reconstruction loss, the L1 to the teacher
            included, and is called with `target=`; its distances, if any, are recorded too.
        validate: PSNR of the student, asked for on every process; or None to skip.
        settings: whatever determines the weights; a checkpoint of other settings is refused.
        keeps: whether checkpoints are written.
        workers: processes that read crops ahead, each process its own; 0 reads between steps.
        records: losses and now and then the PSNR, each with its `step`.
        step: optimizer steps done.
        average: the student's moving average, where the recipe has one; the training fills it.
        ratio: of DCKD's gradient to the other losses', at the student's output, when last looked.
    """

    folder: Path
    recipe: Recipe
    crops: RandomCrops
    student: nn.Module
    teacher: nn.Module | None = None
    dckd: Any = None
    whole: bool = False
    validate: Callable[[nn.Module], float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    keeps: bool = True
    workers: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    average: AveragedModel | None = None
    ratio: Tensor | None = None

    @property
    def checkpoint(self) -> Path:
        """The one file that a run is continued from."""
        return self.folder / "checkpoint.pt"

    @property
    def result(self) -> nn.Module:
        """What the run yields at its present step: the moving average where there is one."""
        return self.student if self.average is None else self.average.module

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step == self.recipe.iterations or self.step % max(1, every) == 0


def begin(
    run: Run, optimizer: torch.optim.Optimizer, accelerator: Accelerator, resume: bool
) -> None:
    """Continue from the checkpoint, or put an old one aside: --resume may have been forgotten."""
    if not run.checkpoint.exists():
        return
    if not resume:
        if accelerator.is_main_process:
            run.checkpoint.replace(run.folder / "checkpoint.old.pt")
        return
    with refusing():
        content = checkpoints.load(run.checkpoint, run.settings)
    run.step, run.records = content["step"], content["records"]
    for name, part in stateful(run, optimizer, accelerator).items():
        part.load_state_dict(content[name])


def save(run: Run, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Write the checkpoint."""
    parts = stateful(run, optimizer, accelerator)
    states = {name: part.state_dict() for name, part in parts.items()}
    content = {"step": run.step, "records": run.records, **states}
    checkpoints.save(run.checkpoint, run.settings, content)


def stateful(
    run: Run, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> dict[str, Any]:
    """All that a step depends on; its crops and learning rate follow from its number."""
    parts = {
        "student": run.student,
        "average": run.average,
        "optimizer": optimizer,
        "dckd": run.dckd,
        "scaler": accelerator.scaler,  # of float16
    }
    return {name: part for name, part in parts.items() if part is not None}
