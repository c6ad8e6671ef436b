"""Time and memory of the loss: the released way and this library's paths, side by side.

    python -m benchmarks.speed --sizes 2x64 1x192 4x128 --json benchmarks/results/speed_cpu.json
    python -m benchmarks.speed --tuned-malloc ...      # glibc keeps freed memory, on every side

All ways run in one process, taking turns; the first round warms up. Times are medians with
interquartile ranges. The encoder has the architecture of the paper's f16-1024 with random weights,
the images are smooth noise. Also written: a Markdown table beside the JSON.
"""

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import released
from dckd_losses import DCKDLoss, VQGANEncoder
from dckd_losses.architecture import Architecture
from dckd_losses.network import VQGANNetwork

F16 = Architecture(
    stem=128,
    channels=(128, 128, 256, 256, 512),
    blocks=2,
    attention=(False, False, False, False, True),
    z_channels=256,
    code_channels=256,
    codes=1024,
)
PATHS: dict[str, dict[str, object]] = {
    "plain": {"impl": "plain"},
    "stream": {},
    "stream, chunk 1": {"chunk": 1},
    "twopass, chunk 1": {"mode": "twopass", "chunk": 1},
}
WEIGHTS = {"dcr_weight": 0.1, "dmm_weight": 1e-3}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
Way = Callable[[Tensor], Tensor]
Row = dict[str, object]


def main() -> None:
    args = arguments()
    if args.tuned_malloc and not MALLOC.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:]],
                  {**os.environ, **MALLOC})  # fmt: skip
    rows: list[Row] = []
    for size in args.sizes:
        batch, side = map(int, size.split("x"))
        rows += measure(batch, side, args.negatives, args.rounds, torch.device(args.device))
        print(table(rows), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts(args), "rows": rows}, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(table(rows) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["2x64"], metavar="BxS", help="batch, pixels")
    parser.add_argument("--negatives", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tuned-malloc", action="store_true", help="glibc keeps freed memory")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(batch: int, side: int, negatives: int, rounds: int, device: torch.device) -> list[Row]:
    """One row for each way, all on the same images and weights."""
    torch.manual_seed(0)
    network = VQGANNetwork(F16).requires_grad_(False).eval()
    images = make_images(batch, side, negatives)
    truth = gradient(ways(copy.deepcopy(network).double(), images, torch.float64)["plain"],
                     images[0].double())  # fmt: skip
    student = images[0].to(device)
    found = ways(network.to(device), [x.to(device) for x in images], torch.float32)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, way in found.items():
            times[name].append(clock(way, student))
    return [
        row(name, way, times[name][1:], student, truth, negatives) for name, way in found.items()
    ]


def make_images(batch: int, side: int, negatives: int) -> list[Tensor]:
    """Smooth images, and student, teacher and negatives at growing distances from them."""
    smooth = F.interpolate(torch.rand(batch, 3, side // 8, side // 8), (side, side), mode="bicubic")

    def near(sigma: float) -> Tensor:
        return (smooth + sigma * torch.randn_like(smooth)).clamp(0, 1)

    return [near(0.03), near(0.02), torch.stack([near(0.06) for _ in range(negatives)])]


def ways(network: VQGANNetwork, images: list[Tensor], dtype: torch.dtype) -> dict[str, Way]:
    """From the student's images to the loss, by name."""
    _, teacher, negatives = (x.to(dtype) for x in images)
    found: dict[str, Way] = {
        "released": lambda x: released.loss(
            network, 2 * x - 1, 2 * teacher - 1, 2 * negatives - 1, **WEIGHTS
        )
    }
    for name, settings in PATHS.items():
        encoder = VQGANEncoder(copy.deepcopy(network), **settings)  # type: ignore[arg-type]
        dckd = DCKDLoss(nn.Identity(), encoder, negatives=lambda lq: negatives, **WEIGHTS)
        found[name] = lambda x, dckd=dckd: dckd(x, teacher, teacher)
    return found


def clock(way: Way, student: Tensor) -> tuple[float, float]:
    """Milliseconds of forward and of backward."""
    x = student.clone().requires_grad_()
    wait(x.device)
    start = time.perf_counter()
    loss = way(x)
    wait(x.device)
    middle = time.perf_counter()
    loss.backward()
    wait(x.device)
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gradient(way: Way, student: Tensor) -> Tensor:
    x = student.clone().requires_grad_()
    way(x).backward()
    assert x.grad is not None
    return x.grad


def row(
    name: str,
    way: Way,
    times: list[tuple[float, float]],
    student: Tensor,
    truth: Tensor,
    negatives: int,
) -> Row:
    """Everything of one way."""
    impl, _, chunk = name.partition(", ")
    forward, backward, both = zip(*((f, b, f + b) for f, b in times), strict=True)
    quarters = statistics.quantiles(both, n=4) if len(both) > 1 else [both[0]] * 3
    found = gradient(way, student).cpu().double()
    return {
        "way": "released" if name == "released" else "dckd-losses",
        "impl": "fused" if impl in ("stream", "twopass") else impl,
        "mode": f"{impl}, {chunk}" if chunk else impl,
        "precision": "float32",
        "batch": len(student),
        "size": student.shape[-1],
        "negatives": negatives,
        "ms_median": statistics.median(both),
        "ms_iqr": quarters[2] - quarters[0],
        "ms_forward": statistics.median(forward),
        "ms_backward": statistics.median(backward),
        "saved_mb": saved(way, student) / 1e6,
        "peak_mb": peak(way, student) / 1e6,
        "grad_cos": F.cosine_similarity(found.flatten(), truth.flatten(), dim=0).item(),
        "grad_rel_l2": ((found - truth).norm() / truth.norm()).item(),
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
        for tensor in held_by(node):
            if not isinstance(tensor, nn.Parameter):
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def held_by(node: object) -> list[Tensor]:
    """The tensors that a node of autograd's graph saved, the hidden ones too."""
    values = [
        getattr(node, name)
        for name in dir(node)
        if name.startswith("_saved") or name == "saved_tensors"
    ]
    flat = [x for value in values for x in (value if isinstance(value, tuple) else (value,))]
    return [x for x in flat if isinstance(x, Tensor)]


def peak(way: Way, student: Tensor) -> int:
    """Bytes allocated at most in forward and backward, beyond what was there before."""
    x = student.clone().requires_grad_()
    gc.collect()
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way(x).backward()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        way(x).backward()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def table(rows: list[Row]) -> str:
    """Markdown; the ratios are the released way's over this row's."""
    lines = [
        "| batch, size | way | ms (IQR) | faster | saved MB | less | peak MB | less | gradient |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base: Row = {}
    for r in rows:
        base = r if r["way"] == "released" else base
        ratio = {k: base[k] / r[k] for k in ("ms_median", "saved_mb", "peak_mb")}  # type: ignore[operator]
        lines.append(
            f"| {r['batch']}x{r['size']}x{r['size']} | {r['mode']} | {r['ms_median']:.0f} "
            f"({r['ms_iqr']:.0f}) | {ratio['ms_median']:.2f} | {r['saved_mb']:.1f} | "
            f"{ratio['saved_mb']:.1f} | {r['peak_mb']:.0f} | {ratio['peak_mb']:.1f} | "
            f"{r['grad_rel_l2']:.0e} |"
        )
    return "\n".join(lines)


def facts(args: argparse.Namespace) -> dict[str, object]:
    """What the numbers were measured with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent, capture_output=True, text=True,
    )  # fmt: skip
    cuda = args.device.startswith("cuda")
    return {
        "command": "python -m benchmarks.speed " + " ".join(sys.argv[1:]),
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tuned_malloc": args.tuned_malloc,
    }


if __name__ == "__main__":
    main()
