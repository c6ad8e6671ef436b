"""Time and memory of a loss, and how far its gradient is from the true one."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

Way = Callable[[Tensor], Tensor]  # from the student's images to the loss


class Times(NamedTuple):
    """Milliseconds of forward, of backward, and of both."""

    forward: float
    backward: float
    both: float


def clock(way: Way, student: Tensor) -> Times:
    """Run forward and backward once."""
    x = student.clone().requires_grad_()
    wait(x.device)
    start = time.perf_counter()
    loss = way(x)
    wait(x.device)
    middle = time.perf_counter()
    loss.backward()
    wait(x.device)
    end = time.perf_counter()
    return Times(1e3 * (middle - start), 1e3 * (end - middle), 1e3 * (end - start))


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(jobs: dict[str, Callable[[], Times]], rounds: int) -> dict[str, list[Times]]:
    """Do all jobs in each round, so that what else a machine does meets all of them.

    Args:
        jobs: by name.
        rounds: how many, after one that warms up.
    """
    times: dict[str, list[Times]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            times[name].append(job())
    return {name: found[1:] for name, found in times.items()}


def summary(times: list[Times]) -> dict[str, float]:
    """Medians, and the interquartile range of the whole, in milliseconds."""
    forward, backward, both = zip(*times, strict=True)
    quarters = statistics.quantiles(both, n=4) if len(both) > 1 else [both[0]] * 3
    return {
        "ms_median": statistics.median(both),
        "ms_iqr": quarters[2] - quarters[0],
        "ms_forward": statistics.median(forward),
        "ms_backward": statistics.median(backward),
    }


def gradient(way: Way, student: Tensor) -> Tensor:
    """The loss's gradient by the student's images."""
    x = student.clone().requires_grad_()
    way(x).backward()
    assert x.grad is not None
    return x.grad


def distance(seen: Tensor, truth: Tensor) -> dict[str, float]:
    """Cosine and relative L2 distance of a gradient to the true one."""
    seen, truth = seen.double().cpu(), truth.double().cpu()
    return {
        "grad_cos": F.cosine_similarity(seen.flatten(), truth.flatten(), dim=0).item(),
        "grad_rel_l2": ((seen - truth).norm() / truth.norm()).item(),
    }


def saved(way: Way, student: Tensor) -> int:
    """Bytes that the graph holds between forward and backward, the weights left out."""
    x = student.clone().requires_grad_()
    loss, found, seen = way(x), {}, set()
    todo = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        for tensor in _held_by(node):
            if not isinstance(tensor, nn.Parameter):
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _held_by(node: object) -> list[Tensor]:
    """The tensors that a node of autograd's graph saved, the hidden ones too."""
    values = [
        getattr(node, name)
        for name in dir(node)
        if name.startswith("_saved") or name == "saved_tensors"
    ]
    flat = [x for value in values for x in (value if isinstance(value, tuple) else (value,))]
    return [x for x in flat if isinstance(x, Tensor)]


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
