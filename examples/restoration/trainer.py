"""The training loop of the examples: two lines of it are DCKD."""

import json
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from dckd_losses import DCKDLoss

from .data import RandomCrops
from .recipes import Recipe

LOG_EVERY = 20  # steps between records of the losses and looks at the values
CHECKPOINTS = 20  # checkpoints a run
VALIDATIONS = 10  # validations a run


class InterruptedRunError(Exception):
    """The run was asked to stop and has left a checkpoint."""


@dataclass
class Run:
    """One training run: what is trained on what, and where it is kept.

    Attributes:
        folder: where the checkpoint and the log go.
        settings: whatever determines the result; a checkpoint of other settings is refused.
        recipe: the numbers.
        crops: training data, one item a crop, in the order of training.
        student: the network in training.
        teacher: its outputs are distilled; None to train on the ground truth alone.
        dckd: DCKD's losses; None to leave them out.
        validate: PSNR of the student, or None to skip.
    """

    folder: Path
    settings: dict[str, Any]
    recipe: Recipe
    crops: RandomCrops
    student: nn.Module
    teacher: nn.Module | None = None
    dckd: DCKDLoss | None = None
    validate: Callable[[nn.Module], float] | None = None
    records: list[dict[str, float]] = field(default_factory=list)
    step: int = 0

    @property
    def checkpoint(self) -> Path:
        """The one file that a run is continued from."""
        return self.folder / "checkpoint.pt"


def train(run: Run, accelerator: Accelerator, *, resume: bool) -> None:
    """Train the student of a run to the recipe's end.

    Args:
        run: what to train; its student is trained in place and its records are filled.
        accelerator: the devices; see `accelerate launch`.
        resume: continue from the run's checkpoint where there is one, bit for bit.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM came; the checkpoint is written.
        ValueError: the checkpoint is of a run with other settings.
        RuntimeError: the checkpoint cannot be read.
    """
    recipe = run.recipe
    optimizer = torch.optim.Adam(run.student.parameters(), lr=recipe.lr, betas=recipe.betas)
    if resume and run.checkpoint.exists():
        _load(run, optimizer)
    student, optimizer = accelerator.prepare(run.student, optimizer)
    if run.teacher is not None:
        run.teacher.to(accelerator.device).eval().requires_grad_(False)
    if run.dckd is not None:
        run.dckd.attach(optimizer).to(accelerator.device)  # the first of DCKD's two lines
    per_step = recipe.batch_size * accelerator.num_processes
    rest = Subset(run.crops, range(run.step * per_step, recipe.iterations * per_step))
    loader = accelerator.prepare(DataLoader(rest, batch_size=recipe.batch_size))
    bar = tqdm(
        total=recipe.iterations,
        initial=run.step,
        unit="it",
        disable=not accelerator.is_main_process,
        mininterval=0.5,
    )
    with _stop_signal() as stopped, bar:
        for lq, target in loader:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(run.step)
            parts = _step(run, student, optimizer, accelerator, lq, target)
            run.step += 1
            bar.update()
            _record(run, parts, bar)
            due = run.step % max(1, recipe.iterations // CHECKPOINTS) == 0
            if (due or stopped()) and accelerator.is_main_process:
                _save(run, optimizer)
            if stopped():
                raise InterruptedRunError(f"stopped after step {run.step}; --resume continues")
    run.student.eval()
    if run.dckd is not None:
        run.dckd.detach()


def _step(
    run: Run,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    lq: Tensor,
    target: Tensor,
) -> dict[str, Tensor]:
    """One optimizer step; the parts of its loss."""
    student.train()
    output = student(lq)
    parts = {"l1": F.l1_loss(output.float(), target)}
    loss = parts["l1"]
    if run.teacher is not None:
        with torch.no_grad(), accelerator.autocast():
            teacher_output = run.teacher(lq).float()
        parts["kd"] = F.l1_loss(output.float(), teacher_output)
        loss = loss + parts["kd"]
        if run.dckd is not None:
            if run.step % LOG_EVERY == 0:
                run.dckd.check(output, teacher_output, lq)
            loss = loss + run.dckd(output, teacher_output, lq)  # the second line
            parts |= {k: v for k, v in run.dckd.last.items() if k in ("dcr", "dmm")}
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    return parts


def _record(run: Run, parts: dict[str, Tensor], bar: "tqdm[Any]") -> None:
    """Keep and show the losses now and then, and the validation PSNR more rarely."""
    last = run.step == run.recipe.iterations
    validate = last or run.step % max(1, run.recipe.iterations // VALIDATIONS) == 0
    if not (validate or run.step % LOG_EVERY == 0):
        return
    record = {"step": float(run.step)} | {name: part.item() for name, part in parts.items()}
    if not all(map(torch.isfinite, parts.values())):
        raise ValueError(f"step {run.step}: the loss is not finite: {record}; try a smaller lr")
    if validate and run.validate is not None and not bar.disable:
        record["psnr"] = run.validate(run.student)
    run.records.append(record)
    bar.set_postfix({name: f"{value:.4g}" for name, value in record.items() if name != "step"})


def _save(run: Run, optimizer: Any) -> None:
    """Write the checkpoint, at once or not at all."""
    run.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "settings": json.dumps(run.settings),
        "step": run.step,
        "records": run.records,
        "student": run.student.state_dict(),
        "optimizer": getattr(optimizer, "optimizer", optimizer).state_dict(),
        "dckd": run.dckd.state_dict() if run.dckd is not None else {},
    }
    partial = run.checkpoint.with_suffix(".part")
    torch.save(content, partial)
    partial.replace(run.checkpoint)


def _load(run: Run, optimizer: torch.optim.Optimizer) -> None:
    try:
        content = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
        settings = json.loads(content["settings"])
    except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise RuntimeError(f"{run.checkpoint}: not a checkpoint of this script: {error}") from error
    odd = {k: (settings.get(k), v) for k, v in run.settings.items() if settings.get(k) != v}
    if odd:
        seen = ", ".join(f"{name} {old} then, {new} now" for name, (old, new) in odd.items())
        raise ValueError(f"{run.checkpoint} is of another run: {seen}")
    run.step, run.records = content["step"], content["records"]
    run.student.load_state_dict(content["student"])
    optimizer.load_state_dict(content["optimizer"])
    if run.dckd is not None:
        run.dckd.load_state_dict(content["dckd"])


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, previous[number])

    previous = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if seen:
            print(file=sys.stderr)
