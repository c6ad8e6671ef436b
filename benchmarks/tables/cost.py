"""What is still to be done, and how long it will take, from steps that are really taken."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.measure import wait
from benchmarks.tables.job import Job
from benchmarks.tables.store import Given, Store
from examples.restoration import backbones
from examples.restoration.console import DivergedError
from examples.restoration.trainer import train

STEPS = 3  # of which the first warms up


def plan(jobs: Mapping[str, list[Job]], store: Store) -> str:
    """A line for each arm, and the sum.

    Args:
        jobs: The runs of each arm, one a seed.
        store: Where finished and begun ones are.
    """
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
    short = replace(job, recipe=replace(job.recipe, iterations=STEPS))
    device, times = store.accelerator.device, []

    def note(*_: Any) -> None:
        wait(device)
        times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run = short.run(Path(folder), teacher_of(job, store))
        run.validate, run.keeps = None, False
        handle = register_optimizer_step_post_hook(note)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(DivergedError):
                train(run, store.accelerator, resume=False)
        finally:
            handle.remove()
            store.accelerator.free_memory()
    return min((after - before for before, after in itertools.pairwise(times)), default=0.0)


def teacher_of(job: Job, store: Store) -> nn.Module | None:
    """A run's teacher, or where that is not trained yet an untrained one, which costs as much."""
    teacher = job.teacher
    if teacher is None:
        return None
    if isinstance(teacher, Given) or store.result(teacher) is not None:
        return store.network(teacher)
    with torch.random.fork_rng():
        return backbones.build(teacher.network, teacher.block.scale)
