"""The training loop: it calls a script's step, and does everything around it."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..data.crops import Batches, RandomCrops
from ..data.images import Image
from ..networks.own import check_crops
from ..recipe import Recipe
from ..results.metrics import NotFiniteError
from . import checkpoint, trackers
from .console import (
    DivergedError,
    Progress,
    RefusedError,
    StoppedError,
    claim,
    refusing,
    stop_signals,
)

LOG_EVERY = 20  # steps
VALIDATIONS = 10  # a run
CHECKPOINTS = 20  # a run, but no further apart than
CHECKPOINT_EVERY = 1000  # steps
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

# (lq, hq) to the loss of a batch, and what the log is to say of it
Step: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(eq=False)
class Run:
    """A student in training: its devices, optimizer, moving average, log and checkpoint."""

    folder: Path  # of the checkpoint; it is made, and other processes are kept out of it
    recipe: Recipe
    student: nn.Module  # trained in place
    crops: RandomCrops  # of which the recipe says what a step takes
    accelerator: Accelerator  # each step's crops in `gradient_accumulation_steps` parts
    _: KW_ONLY
    validate: Callable[[nn.Module], float] | None = None  # PSNR, called in every process
    sample: Callable[[nn.Module], Image] | None = None  # a picture for the trackers
    save: Callable[..., None] | None = None  # writes the student, or `tensors` of it, to a path
    settings: dict[str, Any] = field(default_factory=dict)  # all that the weights follow from
    workers: int = 0  # processes that read ahead, each process its own; 0 reads between steps
    val_every: int | None = None  # steps between validations; None for a tenth of the run
    save_every: int | None = None  # between checkpoints; None for a twentieth, 1,000 at most
    keeps: bool = True  # whether checkpoints are written
    step: int = field(default=0, init=False)  # optimizer steps done
    log_due: bool = field(default=False, init=False)  # whether the present step is logged
    # each logged step's `step`, losses and, now and then, PSNR
    records: list[dict[str, Any]] = field(default_factory=list, init=False)
    # the highest PSNR of a validation, its step, and the tensors of what was validated
    best: dict[str, Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        recipe, student = self.recipe, self.student
        check_crops(student, (stage.crop for stage in recipe.all_stages), trained=True)
        self.val_every = self.val_every or max(1, recipe.iterations // VALIDATIONS)
        usual = min(CHECKPOINT_EVERY, recipe.iterations // CHECKPOINTS)
        self.save_every = self.save_every or max(1, usual)
        student.to(self.accelerator.device).train()
        self.average: AveragedModel | None = None
        if recipe.ema is not None:
            update = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(student, multi_avg_fn=update)
        # `model` is the student as a step calls it: wrapped where processes train together
        optimizer = optimizer_of(recipe, student)
        self.model, self.optimizer = self.accelerator.prepare(student, optimizer)
        if self.accelerator.is_main_process:
            self.lock = claim(self.folder / ".run.lock")

    @property
    def checkpoint(self) -> Path:
        """The one file that a run is continued from."""
        return self.folder / "checkpoint.pt"

    @property
    def best_file(self) -> Path:
        """The student of the highest PSNR."""
        return self.folder / "best.safetensors"

    @property
    def result(self) -> nn.Module:
        """What the run yields at its present step: the moving average where there is one."""
        return self.student if self.average is None else self.average.module

    def check(self, loss: Any, student_out: Tensor, teacher_out: Tensor, lq: Tensor) -> None:
        """Where a step is logged, refuse images that no loss should see, by the loss's `check`."""
        if not self.log_due:
            return
        if not student_out.isfinite().all():
            raise DivergedError(f"step {self.step}: the student's output is not finite")
        with refusing():
            loss.check(student_out, teacher_out, lq)


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer for those parameters of a model that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[recipe.optimizer](
        trained, lr=recipe.lr_at(0), betas=recipe.betas, weight_decay=recipe.weight_decay
    )


def train(run: Run, step: Step, *, dckd: Any = None, resume: bool) -> None:
    """Train the student of a run to the recipe's end.

    Args:
        run: Its student holds the result at the end, in eval mode, and its records are filled.
        step: Called for each batch. What it gives for the log is recorded in those steps in which
            `run.log_due` was true.
        dckd: A loss with a state that belongs to the checkpoint; it is detached at the end.
        resume: Continue from the run's checkpoint where there is one, bit for bit.

    Raises:
        RefusedError: The checkpoint is unreadable or of other settings.
        DivergedError: The student's output or a loss is not finite.
        StoppedError: SIGINT or SIGTERM came; the checkpoint is written.
    """
    recipe, accelerator = run.recipe, run.accelerator
    main, states = accelerator.is_main_process, _with_state(run, dckd)
    _begin(run, states, resume)
    trackers.start(accelerator, run.folder, run.step)
    first = run.step
    log_steps = (LOG_EVERY, run.val_every)
    with stop_signals() as signals, Progress(recipe.iterations, first, not main) as progress:
        batches = _batches(run)
        while run.step < recipe.iterations:
            for group in run.optimizer.param_groups:
                group["lr"] = recipe.lr_at(run.step)
            seed_draws(run)
            run.log_due = run.step == first or _due(run, run.step + 1, *log_steps)
            terms = _optimizer_step(run, step, batches)
            run.step += 1
            progress.update()
            stop = _any_process(bool(signals), accelerator)
            keep = run.keeps and (stop or _due(run, run.step, run.save_every))
            if run.log_due or keep:
                _log(run, terms, progress, record=_due(run, run.step, *log_steps))
            if keep and main:
                content = {name: part.state_dict() for name, part in states.items()}
                content |= {"step": run.step, "records": run.records, "images": run.crops.drawn}
                content["best"] = run.best
                checkpoint.save(run.checkpoint, run.settings, content)
            if stop:
                accelerator.wait_for_everyone()  # launchers end the others once one has left
                raise StoppedError(f"stopped after step {run.step} of {recipe.iterations}")
    if dckd is not None:
        dckd.detach()
    accelerator.unwrap_model(run.model, keep_fp32_wrapper=False).eval()
    run.student.load_state_dict(run.result.state_dict())


def _with_state(run: Run, dckd: Any) -> dict[str, Any]:
    """All that a step depends on; its crops and learning rate follow from its number."""
    parts = {
        "student": run.student,
        "average": run.average,
        "optimizer": run.optimizer,
        "dckd": dckd,
        "scaler": run.accelerator.scaler,  # of float16
    }
    return {name: part for name, part in parts.items() if part is not None}


def _begin(run: Run, states: dict[str, Any], resume: bool) -> None:
    """Continue from the checkpoint, or put an old one aside: --resume may have been forgotten."""
    if not run.checkpoint.exists():
        return
    if not resume:
        if run.accelerator.is_main_process:
            checkpoint.put_aside(run.checkpoint)
        return
    with refusing():
        content = checkpoint.load(run.checkpoint, run.settings)
        try:
            changes = run.crops.continue_from(content.get("images", run.crops.drawn))
        except ValueError as error:
            raise ValueError(f"{run.checkpoint} is of a run with other data: {error}") from error
    if changes and run.accelerator.is_main_process:
        print(f"data since the checkpoint: {changes}", flush=True)
    run.step, run.records, run.best = (content.get(n) for n in ("step", "records", "best"))
    for name, part in states.items():
        part.load_state_dict(content[name])


def _due(run: Run, step: int, *intervals: int) -> bool:
    """Whether a step ends one of the intervals, or the run."""
    return step == run.recipe.iterations or any(step % each == 0 for each in intervals)


def _batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """What is left of this process's batches, on its device.

    Raises:
        RefusedError: An image that is read now, of a set too large for memory, is at fault.
    """
    device = run.accelerator.device
    batches = Batches(
        run.recipe,
        first=run.step,
        processes=run.accelerator.num_processes,
        rank=run.accelerator.process_index,
        parts=run.accelerator.gradient_accumulation_steps,
    )
    loader = DataLoader(
        run.crops,
        batch_sampler=batches,
        num_workers=run.workers,
        generator=torch.Generator(),  # the loader draws a number, and not from the steps'
        pin_memory=device.type == "cuda",
    )
    try:
        for lq, hq in loader:
            yield lq.to(device, non_blocking=True), hq.to(device, non_blocking=True)
    except (ValueError, RuntimeError) as error:  # an image, with its traceback, or a dead process
        last = str(error).strip().splitlines()[-1]
        raise RefusedError(last.rpartition("Error: ")[2]) from error


def seed_draws(run: Run) -> None:
    """Let what a step draws from torch (SwinIR's stochastic depth) follow from its number."""
    numbers = np.random.default_rng((run.crops.seed, run.accelerator.process_index, run.step))
    torch.manual_seed(int(numbers.integers(2**63)))


def _optimizer_step(
    run: Run, step: Step, batches: Iterator[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """One step of the optimizer, of one batch or more; the last one's terms for the log."""
    accelerator, terms = run.accelerator, {}
    run.optimizer.zero_grad()
    for left in reversed(range(accelerator.gradient_accumulation_steps)):
        lq, hq = next(batches)
        # gradients meet those of the other processes once, in the last part
        with accelerator.no_sync(run.model) if left else nullcontext():
            loss, terms = step(lq, hq)
            accelerator.backward(loss)
    if run.recipe.clip is not None:
        accelerator.clip_grad_norm_(run.student.parameters(), run.recipe.clip)
    run.optimizer.step()
    if run.average is not None:
        run.average.update_parameters(run.student)
    return terms


def _any_process(stop: bool, accelerator: Accelerator) -> bool:
    """Whether any process is to stop: one that left alone would keep the others waiting."""
    if accelerator.num_processes == 1:
        return stop
    if stop:
        accelerator.set_trigger()
    return bool(accelerator.check_trigger())


def _log(run: Run, terms: dict[str, Tensor], progress: Progress, record: bool) -> None:
    """Require finite terms; show them, record them, and more rarely the PSNR."""
    numbers = {name: term.item() for name, term in terms.items() if term.ndim == 0}
    text = " ".join(f"{name} {value:.3g}" for name, value in numbers.items())
    losses = [value for name, value in numbers.items() if name != "ratio"]  # of a zero, perhaps
    if not all(map(math.isfinite, losses)):
        raise DivergedError(f"step {run.step}: got losses {text}; expected finite ones")
    validation = _due(run, run.step, run.val_every)
    if record:
        levels = {name: term.tolist() for name, term in terms.items() if term.ndim}
        run.records.append({"step": float(run.step), **numbers, **levels})
    if validation and run.validate is not None:
        try:
            psnr = run.records[-1]["psnr"] = run.validate(run.result)
        except NotFiniteError as error:
            raise DivergedError(f"step {run.step}: {error}") from error
        if run.best is None or psnr > run.best["psnr"]:
            tensors = {name: t.to("cpu", copy=True) for name, t in run.result.state_dict().items()}
            run.best = {"step": run.step, "psnr": psnr, "student": tensors}
            if run.save is not None and run.accelerator.is_main_process:
                run.save(run.best_file, tensors=tensors)
    if record:
        lr = run.optimizer.param_groups[0]["lr"]
        trackers.log(run.accelerator, run.records[-1], lr=lr)
    if validation and run.sample and run.accelerator.trackers and run.accelerator.is_main_process:
        trackers.log_image(run.accelerator, "sample", run.sample(run.result), run.step)
    known = [record["psnr"] for record in run.records if "psnr" in record]
    progress.show(f"{text} psnr {known[-1]:.2f}" if known else text, milestone=validation)
