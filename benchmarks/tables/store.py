"""Where runs are kept: each is trained once, and continued where it was stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from benchmarks import provenance
from benchmarks.tables.job import Job, Teacher
from benchmarks.tables.scoring import score
from benchmarks.tables.sets import ImageSet
from examples.restoration import backbones, checkpoints, teachers
from examples.restoration.console import DivergedError, RefusedError
from examples.restoration.evaluation import Score
from examples.restoration.specifications import SPECIFICATIONS
from examples.restoration.trainer import train


@dataclass(frozen=True)
class Given:
    """A trained network from a file, a URL or, of the paper's, a name of `sources.KNOWN`.

    Attributes:
        source: Which.
        student: For a teacher of the paper's networks, whose; None where the file says what it is.
        scale: Output size over input size.
    """

    source: str
    student: str | None
    scale: int

    def network(self) -> nn.Module:
        """The network, in eval mode.

        Raises:
            ValueError: It is another network, or for another scale.
            RuntimeError: It cannot be read.
        """
        if self.student in SPECIFICATIONS:
            return teachers.load_for(self.student, self.source, self.scale)
        model = backbones.load(self.source)
        if model.scale != self.scale:
            raise ValueError(f"{self.source}: a network for x{model.scale}; expected x{self.scale}")
        return model

    @cached_property
    def identity(self) -> str:
        """Of its weights, wherever they lie."""
        return checkpoints.checksum(self.network().state_dict().values())


Trained = Job | Given


@dataclass(frozen=True)
class Store:
    """A folder of runs, each under its identity; two processes may share it.

    Attributes:
        root: The folder.
        accelerator: Where runs are trained.
        workers: Processes that read crops ahead; the crops do not depend on it.
    """

    root: Path
    accelerator: Accelerator
    workers: int = 0

    def folder(self, job: Job) -> Path:
        """Where a run's files lie."""
        return self.root / job.identity

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a finished run says of itself; None before."""
        path = self.folder(job) / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def diverged(self, trained: Trained) -> bool:
        """Whether a run ended with numbers that are not finite."""
        return isinstance(trained, Job) and "diverged" in (self.result(trained) or {})

    def steps_left(self, job: Job) -> int:
        """Steps that are still to be done, by the last checkpoint."""
        if self.result(job) is not None:
            return 0
        checkpoint = self.folder(job) / "checkpoint.pt"
        if not checkpoint.is_file():
            return job.recipe.iterations
        done: int = checkpoints.load(checkpoint, job.determined)["step"]
        return job.recipe.iterations - done

    def network(self, trained: Teacher) -> nn.Module:
        """A finished run's network, or a given one, on the device."""
        if isinstance(trained, Given):
            return trained.network().to(self.accelerator.device)
        assert isinstance(trained, Job)
        diverged = (self.result(trained) or {}).get("diverged")
        if diverged:
            raise RefusedError(f"{trained.identity} cannot be learned from: {diverged}")
        model = backbones.load(self.folder(trained) / "student.safetensors")
        return model.to(self.accelerator.device)

    def complete(self, jobs: Iterable[Job]) -> None:
        """Train what is not trained yet, in this order; what another process does comes last."""
        left = [job for job in jobs if self.result(job) is None]
        busy = [job for job in left if not self._train(job, wait=False)]
        for job in busy:
            self._train(job, wait=True)

    def scores(self, trained: Trained, images: ImageSet, task: str, scale: int) -> Score:
        """A network's scores on a set, computed once for a run; nan for one that diverged."""
        if isinstance(trained, Given):
            return score(self.network(trained), images, task, scale)
        if self.diverged(trained):
            return {"psnr": nan, "ssim": nan}
        path = self.folder(trained) / f"scores_{images.name}_{images.fingerprint}.json"
        if not path.is_file():
            found = score(self.network(trained), images, task, scale)
            write(path, found)
        known: Score = json.loads(path.read_text())
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
        run = job.run(folder, teacher)
        run.workers = self.workers
        first, start = self.steps_left(job), time.perf_counter()
        try:
            train(run, self.accelerator, resume=True)
            end: dict[str, str] = {}
            backbones.save(run.student, folder / "student.safetensors", task=job.block.task)
        except DivergedError as error:  # a result as others; it would end there on each try
            print(f"diverged: {error}", flush=True)
            end = {"diverged": str(error)}
        seconds = time.perf_counter() - start
        self.accelerator.free_memory()
        facts = {
            **end,
            "settings": job.determined,
            **provenance.machine(self.accelerator.device),
            "seconds_per_step": seconds / max(1, first),
            "peak_mb": _peak_mb(self.accelerator.device),
            "records": run.records,
        }
        write(folder / "result.json", facts)
        run.checkpoint.unlink(missing_ok=True)


def write(path: Path, content: object) -> None:
    """Write JSON, at once or not at all; null for numbers that are not finite."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write it, too
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _finite(content: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content


def _peak_mb(device: torch.device) -> float | None:
    """Memory at most, of a GPU, since the last time that this was asked."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 1e6
    torch.cuda.reset_peak_memory_stats(device)
    return peak
