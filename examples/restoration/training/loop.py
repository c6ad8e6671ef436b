"""The training loop of the examples: two lines of it are DCKD."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from dckd_losses import gradient_ratio

from ..data.crops import Batches, RandomCrops
from ..recipe import Recipe
from ..results.metrics import NotFiniteError
from . import checkpoint
from .console import (
    DivergedError,
    Progress,
    RefusedError,
    StoppedError,
    refusing,
    stop_signals,
)

LOG_EVERY = 20  # steps between records of the losses and looks at the values
VALIDATIONS = 10  # a run
CHECKPOINTS = 20  # a run, but no further apart than
CHECKPOINT_EVERY = 1000  # steps
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
MSE_FLOOR = 1e-8  # NAFNet's; at 80 dB


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


def train(run: Run, accelerator: Accelerator, *, resume: bool) -> None:
    """Train the student of a run to the recipe's end.

    Args:
        run: what to train; its student is trained in place, at the end holds the run's result, and
            its records are filled.
        accelerator: the devices, see `accelerate launch`; each step's crops are gone through in as
            many parts as its `gradient_accumulation_steps` say.
        resume: continue from the run's checkpoint where there is one, bit for bit.

    Raises:
        RefusedError: the checkpoint is unreadable or of other settings.
        DivergedError: the student's output or a loss is not finite.
        StoppedError: SIGINT or SIGTERM came; the checkpoint is written.
    """
    recipe, main = run.recipe, accelerator.is_main_process
    run.student.to(accelerator.device)
    run.average = average_of(recipe, run.student)
    inner = optimizer_of(recipe, run.student)
    student, optimizer = accelerator.prepare(run.student.train(), inner)
    begin(run, inner, accelerator, resume)
    if run.teacher is not None:
        run.teacher.to(accelerator.device).eval().requires_grad_(False)
    if run.dckd is not None:
        run.dckd.to(accelerator.device).attach(optimizer)  # the first of DCKD's two lines
    first = run.step
    checkpoint_every = min(CHECKPOINT_EVERY, recipe.iterations // CHECKPOINTS)
    with stop_signals() as signals, Progress(recipe.iterations, first, not main) as progress:
        batches = loaded(run, accelerator)
        while run.step < recipe.iterations:
            set_lr(inner, recipe, run.step)
            seed_draws(run, accelerator.process_index)
            look = run.step == first or run.step % LOG_EVERY == 0
            parts = _step(run, student, optimizer, accelerator, batches, look)
            run.step += 1
            progress.step()
            stop = _agreed(bool(signals), accelerator)
            due = run.keeps and (stop or run.due(checkpoint_every))
            if look or due or run.due(LOG_EVERY):
                _record(run, parts, progress)
            if due and main:
                keep(run, inner, accelerator)
            if stop:
                accelerator.wait_for_everyone()  # launchers end the others once one has left
                raise StoppedError(f"stopped after step {run.step} of {recipe.iterations}")
    if run.dckd is not None:
        run.dckd.detach()
    accelerator.unwrap_model(student, keep_fp32_wrapper=False).eval()
    run.student.load_state_dict(run.result.state_dict())


def loaded(run: Run, accelerator: Accelerator) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of this process's batches, on its device.

    Raises:
        RefusedError: an image that is read now, of a set too large for memory, is at fault.
    """
    device = accelerator.device
    batches = Batches(
        run.recipe,
        first=run.step,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
        parts=accelerator.gradient_accumulation_steps,
    )
    loader = DataLoader(
        run.crops,
        batch_sampler=batches,
        num_workers=run.workers,
        generator=torch.Generator(),  # the loader draws a number, and not from the steps'
        pin_memory=device.type == "cuda",
    )
    try:
        for lq, target in loader:
            yield lq.to(device, non_blocking=True), target.to(device, non_blocking=True)
    except ValueError as error:  # an image; a reading process sends it with its traceback
        last = str(error).strip().splitlines()[-1]
        raise RefusedError(last.rpartition("Error: ")[2]) from error


def seed_draws(run: Run, rank: int) -> None:
    """Let what a step draws from torch (SwinIR's stochastic depth) follow from its number."""
    numbers = np.random.default_rng((run.crops.seed, rank, run.step))
    torch.manual_seed(int(numbers.integers(2**63)))


def _step(
    run: Run,
    student: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    batches: Iterator[tuple[Tensor, Tensor]],
    look: bool,
) -> dict[str, Tensor]:
    """One optimizer step, where asked to after a look at the values; the last part's losses."""
    parts: dict[str, Tensor] = {}
    optimizer.zero_grad()
    for left in reversed(range(accelerator.gradient_accumulation_steps)):
        lq, target = next(batches)
        # gradients meet those of the other processes once, in the last part
        with accelerator.no_sync(student) if left else nullcontext():
            loss, parts = _loss(run, student(lq).float(), accelerator, lq, target, look)
            accelerator.backward(loss)
    if run.recipe.clip is not None:
        accelerator.clip_grad_norm_(run.student.parameters(), run.recipe.clip)
    optimizer.step()
    if run.average is not None:
        run.average.update_parameters(run.student)
    return parts


def _loss(
    run: Run,
    output: Tensor,
    accelerator: Accelerator,
    lq: Tensor,
    target: Tensor,
    look: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What is minimised (Eq. 10), and its terms before they are weighted."""
    parts = reconstruction(run.recipe, output, target)
    loss = sum(parts.values(), torch.zeros((), device=output.device))
    if run.teacher is not None:
        with torch.no_grad(), accelerator.autocast():
            teacher_output = run.teacher(lq).float()
        if not run.whole:
            parts["kd"] = F.l1_loss(output, teacher_output)
            loss = loss + parts["kd"]
        if run.dckd is not None:
            if look:
                if not output.isfinite().all():
                    raise DivergedError(f"step {run.step}: the student's output is not finite")
                with refusing():
                    run.dckd.check(output, teacher_output, lq)
            known = {"target": target} if run.whole else {}
            dckd_loss = run.dckd(output, teacher_output, lq, **known)  # the second line
            if look and not run.whole:
                run.ratio = gradient_ratio(dckd_loss, loss, output)
            loss = loss + dckd_loss
            parts |= {k: v for k, v in run.dckd.last.items() if v.ndim == 0}
    return loss, parts


def _agreed(stop: bool, accelerator: Accelerator) -> bool:
    """Whether any process is to stop: one that left alone would keep the others waiting."""
    if accelerator.num_processes == 1:
        return stop
    if stop:
        accelerator.set_trigger()
    return bool(accelerator.check_trigger())


def _record(run: Run, parts: dict[str, Tensor], progress: Progress) -> None:
    """Require finite losses; keep and show them now and then, and the PSNR more rarely."""
    losses = {name: part.item() for name, part in parts.items()}
    text = " ".join(f"{name} {value:.3g}" for name, value in losses.items())
    if not all(map(math.isfinite, losses.values())):
        raise DivergedError(f"step {run.step}: got losses {text}; expected finite ones")
    if run.ratio is not None:
        text += f" ratio {run.ratio.item():.3g}"
    validation = run.due(run.recipe.iterations // VALIDATIONS)
    if validation or run.due(LOG_EVERY):
        last = run.dckd.last if run.whole else {}
        distances = {name: value.tolist() for name, value in last.items() if value.ndim}
        run.records.append({"step": float(run.step), **losses, **distances})
    if validation and run.validate is not None:
        try:
            run.records[-1]["psnr"] = run.validate(run.result)
        except NotFiniteError as error:
            raise DivergedError(f"step {run.step}: {error}") from error
    known = [record["psnr"] for record in run.records if "psnr" in record]
    progress.show(f"{text} psnr {known[-1]:.2f}" if known else text, milestone=validation)


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
        content = checkpoint.load(run.checkpoint, run.settings)
    run.step, run.records = content["step"], content["records"]
    for name, part in stateful(run, optimizer, accelerator).items():
        part.load_state_dict(content[name])


def keep(run: Run, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Write the checkpoint."""
    parts = stateful(run, optimizer, accelerator)
    states = {name: part.state_dict() for name, part in parts.items()}
    content = {"step": run.step, "records": run.records, **states}
    checkpoint.save(run.checkpoint, run.settings, content)


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


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer for the parameters of a model that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[recipe.optimizer](
        trained, lr=recipe.lr_at(0), betas=recipe.betas, weight_decay=recipe.weight_decay
    )


def set_lr(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Let the next step, counted from 0, have the recipe's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(step)


def average_of(recipe: Recipe, model: nn.Module) -> AveragedModel | None:
    """The moving average that follows a model, or None where the recipe has none."""
    if recipe.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))


def reconstruction(recipe: Recipe, output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The loss to the ground truth by the name it is logged under; a scalar.

    NAFNet's is the negative PSNR in dB, a mean over the images of a batch.
    """
    if recipe.reconstruction == "l1":
        return {"l1": F.l1_loss(output, target)}
    mse = F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))
    return {"psnr_loss": 10 * torch.log10(mse + MSE_FLOOR).mean()}
