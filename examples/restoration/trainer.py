"""The training loop of the examples: two lines of it are DCKD."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dckd_losses import DCKDLoss, gradient_ratio

from . import checkpoints
from .console import Progress, RefusedError, StoppedError, refusing, stop_signals
from .data import RandomCrops
from .recipes import Recipe

LOG_EVERY = 20  # steps between records of the losses and looks at the values
VALIDATIONS = 10  # a run
CHECKPOINTS = 20  # a run, but no further apart than
CHECKPOINT_EVERY = 1000  # steps


@dataclass
class Run:
    """One training run: what is trained on what, and where it is kept.

    Attributes:
        folder: where the checkpoint goes.
        recipe: the numbers.
        crops: training data, one item a crop, in the order of training.
        student: the network in training.
        teacher: its outputs are distilled; None to train on the ground truth alone.
        dckd: DCKD's losses; None to leave them out.
        validate: PSNR of the student, or None to skip.
        settings: whatever determines the weights; a checkpoint of other settings is refused.
        records: losses and now and then the PSNR, each with its `step`.
        step: optimizer steps done.
        ratio: of DCKD's gradient to the other losses', at the student's output, when last looked.
    """

    folder: Path
    recipe: Recipe
    crops: RandomCrops
    student: nn.Module
    teacher: nn.Module | None = None
    dckd: DCKDLoss | None = None
    validate: Callable[[nn.Module], float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, float]] = field(default_factory=list)
    step: int = 0
    ratio: Tensor | None = None

    @property
    def checkpoint(self) -> Path:
        """The one file that a run is continued from."""
        return self.folder / "checkpoint.pt"

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.step == self.recipe.iterations or self.step % max(1, every) == 0


def train(run: Run, accelerator: Accelerator, *, resume: bool) -> None:
    """Train the student of a run to the recipe's end.

    Args:
        run: what to train; its student is trained in place and its records are filled.
        accelerator: the devices; see `accelerate launch`.
        resume: continue from the run's checkpoint where there is one, bit for bit.

    Raises:
        RefusedError: the checkpoint is unreadable or of other settings, or a value is not finite.
        StoppedError: SIGINT or SIGTERM came; the checkpoint is written.
    """
    recipe, main = run.recipe, accelerator.is_main_process
    adam = torch.optim.Adam(run.student.parameters(), lr=recipe.lr, betas=recipe.betas)
    student, optimizer = accelerator.prepare(run.student.train(), adam)
    _begin(run, adam, accelerator, resume)
    if run.teacher is not None:
        run.teacher.to(accelerator.device).eval().requires_grad_(False)
    if run.dckd is not None:
        run.dckd.to(accelerator.device).attach(optimizer)  # the first of DCKD's two lines
    first = run.step
    checkpoint_every = min(CHECKPOINT_EVERY, recipe.iterations // CHECKPOINTS)
    with stop_signals() as signals, Progress(recipe.iterations, first, not main) as progress:
        for lq, target in _batches(run, accelerator):
            for group in adam.param_groups:
                group["lr"] = recipe.lr_at(run.step)
            look = run.step == first or run.step % LOG_EVERY == 0
            seed_draws(run, accelerator.process_index)
            parts = _step(run, student, optimizer, accelerator, lq, target, look)
            run.step += 1
            progress.step()
            stop = _agreed(bool(signals), accelerator)
            save = stop or run.due(checkpoint_every)
            if look or save or run.due(LOG_EVERY):
                _record(run, parts, progress, main)
            if save and main:
                _save(run, adam, accelerator)
            if stop:
                accelerator.wait_for_everyone()  # launchers end the others once one has left
                raise StoppedError(f"stopped after step {run.step} of {recipe.iterations}")
    if run.dckd is not None:
        run.dckd.detach()
    accelerator.unwrap_model(student, keep_fp32_wrapper=False).eval()


def _batches(run: Run, accelerator: Accelerator) -> Iterable[tuple[Tensor, Tensor]]:
    """What is left of the crops; of n processes' batches, each step takes the next n."""
    size = run.recipe.batch_size
    rest = range(run.step * size * accelerator.num_processes, len(run.crops))
    loader = DataLoader(Subset(run.crops, rest), batch_size=size)
    batches: Iterable[tuple[Tensor, Tensor]] = accelerator.prepare(loader)
    return batches


def seed_draws(run: Run, rank: int) -> None:
    """Let what a step draws from torch (SwinIR's stochastic depth) follow from its number."""
    numbers = np.random.default_rng((run.crops.seed, rank, run.step))
    torch.manual_seed(int(numbers.integers(2**63)))


def _step(
    run: Run,
    student: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    lq: Tensor,
    target: Tensor,
    look: bool,
) -> dict[str, Tensor]:
    """One optimizer step, where asked to after a look at the values; the parts of its loss."""
    output = student(lq).float()
    parts = {"l1": F.l1_loss(output, target)}
    loss = parts["l1"]
    if run.teacher is not None:
        with torch.no_grad(), accelerator.autocast():
            teacher_output = run.teacher(lq).float()
        parts["kd"] = F.l1_loss(output, teacher_output)
        loss = loss + parts["kd"]
        if run.dckd is not None:
            if look:
                with refusing():
                    run.dckd.check(output, teacher_output, lq)
            dckd_loss = run.dckd(output, teacher_output, lq)  # the second line
            if look:
                run.ratio = gradient_ratio(dckd_loss, loss, output)
            loss = loss + dckd_loss
            parts |= {k: v for k, v in run.dckd.last.items() if k in ("dcr", "dmm")}
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    return parts


def _agreed(stop: bool, accelerator: Accelerator) -> bool:
    """Whether any process is to stop: one that left alone would keep the others waiting."""
    if accelerator.num_processes == 1:
        return stop
    if stop:
        accelerator.set_trigger()
    return bool(accelerator.check_trigger())


def _record(run: Run, parts: dict[str, Tensor], progress: Progress, main: bool) -> None:
    """Require finite losses; keep and show them now and then, and the PSNR more rarely."""
    losses = {name: part.item() for name, part in parts.items()}
    text = " ".join(f"{name} {value:.3g}" for name, value in losses.items())
    if not all(map(math.isfinite, losses.values())):
        raise RefusedError(f"step {run.step}: got losses {text}; expected finite ones")
    if run.ratio is not None:
        text += f" ratio {run.ratio.item():.3g}"
    validation = run.due(run.recipe.iterations // VALIDATIONS)
    if validation or run.due(LOG_EVERY):
        run.records.append({"step": float(run.step), **losses})
    if validation and run.validate is not None and main:
        run.records[-1]["psnr"] = run.validate(run.student)
    known = [record["psnr"] for record in run.records if "psnr" in record]
    progress.show(f"{text} psnr {known[-1]:.2f}" if known else text, milestone=validation)


def _begin(run: Run, adam: torch.optim.Optimizer, accelerator: Accelerator, resume: bool) -> None:
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
    for name, part in _stateful(run, adam, accelerator).items():
        part.load_state_dict(content[name])


def _save(run: Run, adam: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    stateful = _stateful(run, adam, accelerator)
    states = {name: part.state_dict() for name, part in stateful.items()}
    content = {"step": run.step, "records": run.records, **states}
    checkpoints.save(run.checkpoint, run.settings, content)


def _stateful(run: Run, adam: torch.optim.Optimizer, accelerator: Accelerator) -> dict[str, Any]:
    """All that a step depends on; its crops and learning rate follow from its number."""
    parts = {"student": run.student, "optimizer": adam, "dckd": run.dckd}
    parts["scaler"] = accelerator.scaler  # of float16
    return {name: part for name, part in parts.items() if part is not None}
