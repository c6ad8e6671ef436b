"""What the benchmarks share: provenance, and how time and memory of a loss are measured."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dckd_losses.network import VQGANNetwork
from dckd_losses.weights import F16

ROOT = Path(__file__).parents[1]
COMMIT = "DCKD_COMMIT"  # environment variable that names the commit where there is no clone
Row = dict[str, Any]
Key = TypeVar("Key")
Way = Callable[[Tensor], Tensor]  # from the student's images to the loss


# Provenance: what a number was measured with


def command(module: str = "benchmarks.tables") -> str:
    """The command line, as it can be typed again."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def facts(module: str, device: torch.device) -> dict[str, Any]:
    """What a module's numbers were measured with."""
    return {"command": command(module), **machine(device)}


def machine(device: torch.device) -> dict[str, Any]:
    """Commit, device, versions and threads; of a GPU also its software and settings."""
    cuda = device.type == "cuda"
    facts = {
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {_processor()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if cuda:
        facts |= {
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": _version("triton"),
            "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9,
            "tf32": {
                "convolutions": torch.backends.cudnn.allow_tf32,
                "products": torch.backends.cuda.matmul.allow_tf32,
            },
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    return facts


def commit() -> str:
    """The commit, with `-dirty` where files differ from it; DCKD_COMMIT where there is no clone."""
    found = _output("git", "describe", "--always", "--dirty", "--exclude=*")
    return found if found != "unknown" else os.environ.get(COMMIT, found)


@cache
def _output(*arguments: str) -> str:
    """What a program prints; "unknown" where it is missing or fails."""
    try:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_json(path: Path, content: object) -> None:
    """Write JSON, at once or not at all; null for numbers that are not finite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may write it, too
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is no JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def _finite(content: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


# Time and memory of a loss, and how far its gradient is from the true one


def clock(way: Way, student: Tensor) -> float:
    """Milliseconds of forward and backward."""
    x = student.clone().requires_grad_()
    wait(x.device)
    start = time.perf_counter()
    way(x).backward()
    wait(x.device)
    return 1e3 * (time.perf_counter() - start)


def graphed(way: Way, student: Tensor) -> Callable[[], float]:
    """Capture forward and backward as one CUDA graph.

    Returns:
        what replays it once and says how many milliseconds that took.
    """
    x = student.clone().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch's notes on CUDA graphs: warm up beside the main stream
        for _ in range(3):
            x.grad = None
            way(x).backward()
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        way(x).backward()

    def replay() -> float:
        wait(x.device)
        start = time.perf_counter()
        graph.replay()
        wait(x.device)
        return 1e3 * (time.perf_counter() - start)

    return replay


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let a GPU's convolutions and products use TF32, or not, for a while."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = allowed
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def in_turns(jobs: Mapping[Key, Callable[[], float]], rounds: int) -> dict[Key, list[float]]:
    """Do all jobs, warmed up, in each round: what else a machine does meets all of them."""
    times: dict[Key, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(job())
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and interquartile range, in milliseconds."""
    quarters = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"ms_median": statistics.median(times), "ms_iqr": quarters[2] - quarters[0]}


def gradient(way: Way, student: Tensor) -> Tensor:
    """The loss's gradient by the student's images."""
    x = student.clone().requires_grad_()
    way(x).backward()
    assert x.grad is not None
    return x.grad


def distance(seen: Tensor, truth: Tensor) -> dict[str, float]:
    """Cosine and relative L2 distance of a gradient to the true one."""
    seen, truth = seen.double().flatten(), truth.double().flatten()
    return {
        "grad_cos": F.cosine_similarity(seen, truth, dim=0).item(),
        "grad_rel_l2": ((seen - truth).norm() / truth.norm()).item(),
    }


class _Held:
    """A tensor that the graph keeps for backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved(way: Way, student: Tensor) -> int:
    """Bytes that the graph holds between forward and backward, the weights left out."""
    x = student.clone().requires_grad_()
    alive: WeakSet[_Held] = WeakSet()

    def pack(tensor: Tensor) -> _Held:
        held = _Held(tensor if isinstance(tensor, nn.Parameter) else tensor.detach())
        alive.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        loss = way(x)
    tensors = [held.tensor for held in alive if not isinstance(held.tensor, nn.Parameter)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    del loss  # until here it keeps the graph
    return sum(storages.values())


def peak(job: Callable[[], object], device: torch.device) -> int:
    """Bytes allocated at most while a job runs, beyond what was there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        job()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def random_f16(seed: int = 0) -> VQGANNetwork:
    """A network of the paper's f16-1024 architecture with random weights."""
    torch.manual_seed(seed)
    return VQGANNetwork(F16).requires_grad_(False).eval()
