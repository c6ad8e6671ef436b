"""Where runs are kept: each is trained once, and continued where it was stopped; and their cost."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks import common
from benchmarks.tables.data import ImageSet, score
from benchmarks.tables.runs import Given, Job, Trained
from examples.restoration import networks
from examples.restoration.training import checkpoint as checkpoints
from examples.restoration.training.console import DivergedError, RefusedError
from examples.restoration.training.loop import train

FILES = ("student.safetensors", "student_raw.safetensors")  # the latter beside a moving average
STEPS = 3  # that measure a step's cost, of which the first warms up


@dataclass(frozen=True)
class Store:
    """A folder of runs, each under its identity; two processes may share it."""

    root: Path  # the folder
    accelerator: Accelerator  # where runs are trained
    workers: int = 0  # processes that read crops ahead; the crops do not depend on it

    def folder(self, trained: Trained) -> Path:
        """Where a run's files lie, or the scores of a given teacher."""
        if isinstance(trained, Given):
            return self.root / f"given_{re.sub(r'[^0-9a-z]+', '_', trained.identity)}"
        return self.root / trained.identity

    def result(self, job: Trained) -> dict[str, Any] | None:
        """What a finished run says of itself; None before."""
        path = self.folder(job) / "result.json"
        if not path.is_file():
            return None
        found: dict[str, Any] = common.read_json(path)
        if not isinstance(found, dict) or "records" not in found:
            raise ValueError(f"{path}: no run's result; remove it, and the run is trained again")
        return found

    def steps_left(self, job: Job) -> int:
        """Steps that are still to be done, by the last checkpoint."""
        if self.result(job) is not None:
            return 0
        checkpoint = self.folder(job) / "checkpoint.pt"
        if not checkpoint.is_file():
            return job.recipe.iterations
        done: int = checkpoints.load(checkpoint, job.determined)["step"]
        return job.recipe.iterations - done

    def network(self, trained: Trained) -> nn.Module:
        """A finished run's network, or a given one, on the device."""
        if isinstance(trained, Given):
            return trained.network().to(self.accelerator.device)
        diverged = (self.result(trained) or {}).get("diverged")
        if diverged:
            raise RefusedError(f"{trained.identity} cannot be learned from: {diverged}")
        model = networks.load(self.folder(trained) / FILES[trained.raw])
        return model.to(self.accelerator.device)

    def complete(self, jobs: Iterable[Job]) -> None:
        """Train what is not trained yet, in this order; what another process does comes last."""
        left = [job for job in jobs if self.result(job) is None]
        busy = [job for job in left if not self._train(job, wait=False)]
        for job in busy:
            self._train(job, wait=True)

    def scores(self, trained: Trained, images: ImageSet, task: str, scale: int) -> dict[str, float]:
        """A network's scores on a set, computed once; nan for a run that diverged."""
        if "diverged" in (self.result(trained) or {}):
            return {"psnr": nan, "ssim": nan}
        kind = "raw_" if trained.raw else ""
        path = self.folder(trained) / f"scores_{kind}{images.name}_{images.fingerprint}.json"
        if not path.is_file():
            common.write_json(path, score(self.network(trained), images, task, scale))
        known: dict[str, float] = common.read_json(path)
        return known

    def _train(self, job: Job, wait: bool) -> bool:
        """Train a run to its end; False where another process has it and we do not wait."""
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=-1 if wait else 0):
                if self.result(job) is None:
                    self._train_here(job, folder)
        except Timeout:
            return False
        return True

    def _train_here(self, job: Job, folder: Path) -> None:
        print(f"training {job.identity}", flush=True)
        teacher = None if job.teacher is None else self.network(job.teacher)
        run, step, arm = job.start(folder, self.accelerator, teacher, self.workers)
        left, start = self.steps_left(job), time.perf_counter()
        try:
            train(run, step, dckd=arm, resume=True)
            end: dict[str, str] = {}
            networks.save(run.student, folder / FILES[False], task=job.block.task)
            if run.average is not None:  # which the student is now; the last checkpoint has both
                raw = checkpoints.load(run.checkpoint, job.determined)["student"]
                run.student.load_state_dict(raw)
                networks.save(run.student, folder / FILES[True], task=job.block.task)
        except DivergedError as error:  # a result as others; it would end there on each try
            print(f"diverged: {error}", flush=True)
            end = {"diverged": str(error)}
        seconds, device = time.perf_counter() - start, self.accelerator.device
        self.accelerator.free_memory()
        peak = None
        if device.type == "cuda":  # since the run before
            peak = torch.cuda.max_memory_allocated(device) / 1e6
            torch.cuda.reset_peak_memory_stats(device)
        facts = {
            **end,
            "settings": job.determined,
            **common.machine(device),
            "seconds_per_step": seconds / max(1, left),
            "peak_mb": peak,
            "records": run.records,
        }
        common.write_json(folder / "result.json", facts)
        run.checkpoint.unlink(missing_ok=True)


# What is still to be done, and how long it will take


def plan(jobs: Mapping[str, list[Job]], store: Store) -> str:
    """A line for each arm, whose runs are one a seed, and the sum."""
    lines, total = [], 0.0
    unit = "GPU-hours" if store.accelerator.device.type == "cuda" else "hours on the CPU"
    counted: set[str] = set()
    for name, runs in jobs.items():
        done = sum(store.steps_left(job) == 0 for job in runs)
        text = f"  {name}: {len(runs)} to have, {done} there"
        # a run that two arms share is trained once
        left = [store.steps_left(job) for job in runs if job.identity not in counted]
        counted |= {job.identity for job in runs}
        if sum(left):
            seconds = step_seconds(runs[0], store)
            hours = sum(left) * seconds / 3600
            total += hours
            text += f", {sum(left):,} steps left of {1e3 * seconds:.0f} ms: {hours:.3g} {unit}"
        elif done < len(runs):
            text += ", the rest being another arm's"
        lines.append(text)
    return "\n".join(["plan:", *lines, f"  in all: {total:.3g} {unit}"])


def step_seconds(job: Job, store: Store) -> float:
    """How long a step of a run takes, crops and optimizer included, by a few steps of it."""
    cycle = job.settings.get("every", 1)  # of its steps, they do not cost alike
    short = replace(job, recipe=replace(job.recipe, iterations=max(STEPS, cycle + 1)))
    device, times = store.accelerator.device, []

    def note(*_: Any) -> None:
        common.wait(device)
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run, step, arm = short.start(Path(folder), store.accelerator, teacher_of(job, store))
        run.validate, run.keeps = None, False
        handle = register_optimizer_step_post_hook(note)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(DivergedError):
                train(run, step, dckd=arm, resume=False)
        finally:
            handle.remove()
            store.accelerator.free_memory()
    spans = zip(times, times[cycle:], strict=False)
    return min(((after - before) / cycle for before, after in spans), default=0.0)


def teacher_of(job: Job, store: Store) -> nn.Module | None:
    """A run's teacher, or where that is not trained yet an untrained one, which costs as much."""
    teacher = job.teacher
    if teacher is None:
        return None
    if isinstance(teacher, Given) or store.result(teacher) is not None:
        return store.network(teacher)
    with torch.random.fork_rng():
        return networks.build(teacher.network, teacher.block.scale)
