"""Time and memory of the loss: the released way and this library's paths, side by side.

    python -m benchmarks.speed --sizes 2x64 1x192 4x128 --json benchmarks/results/speed_cpu.json
    python -m benchmarks.speed --tuned-malloc ...      # glibc keeps freed memory, on every side
    python -m benchmarks.speed --negatives 5 1 20 ...  # the first for all sizes, the rest for one
    python -m benchmarks.speed --students tiny swinir-student rcan-student ...  # whole steps
    python -m benchmarks.speed --rivals tiny ...       # the same with each method

All ways run in one process, taking turns; the first round warms up. Times are medians with
interquartile ranges. The encoder has the architecture of the paper's f16-1024 with random weights,
the images are smooth noise. Beside the JSON a Markdown table and a plot are written from it.
"""

import argparse
import copy
import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import provenance, released, steps
from benchmarks.figures import plot, table
from benchmarks.measure import Way, clock, distance, gradient, in_turns, peak, saved, summary
from dckd_losses import DCKDLoss, VQGANEncoder
from dckd_losses.network import VQGANNetwork
from dckd_losses.weights.places import F16

PATHS: dict[str, dict[str, object]] = {
    "plain": {"impl": "plain"},
    "stream": {},
    "stream, chunk 1": {"chunk": 1},
    "twopass, chunk 1": {"mode": "twopass", "chunk": 1},
}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
PRECISIONS = {"cpu": ["float32", "bfloat16"], "cuda": ["float32", "float16", "bfloat16"]}
Row = dict[str, object]


def main() -> None:
    args = arguments()
    if args.tuned_malloc and not MALLOC.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:]],
                  {**os.environ, **MALLOC})  # fmt: skip
    device, rows = torch.device(args.device), []
    precisions = args.precisions or PRECISIONS.get(device.type, ["float32"])
    usual, *others = args.negatives
    settings = [(size, usual) for size in args.sizes] + [(args.sizes[0], n) for n in others]
    for size, negatives in settings:
        batch, side = map(int, size.split("x"))
        found = measure(batch, side, negatives, args.rounds, device, precisions)
        print(table(found), flush=True)
        rows += found
    for student in args.students:
        found = steps.measure(student, args.step_size, args.rounds, device)
        print(table(found), flush=True)
        rows += found
    if args.rivals:
        found = steps.measure(args.rivals, args.step_size, args.rounds, device, rivals=True)
        print(table(found), flush=True)
        rows += found
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts(args), "rows": rows}, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(table(rows) + "\n")
        plot(rows, args.json.with_suffix(".png"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--sizes", nargs="+", default=["2x64"], metavar="BxS", help="batch, pixels a side")
    add("--negatives", nargs="+", type=int, default=[5], metavar="N")
    add("--precisions", nargs="+", metavar="P", help="default: those the device is good at")
    add("--students", nargs="*", default=[], metavar="NAME", help="for whole training steps")
    add("--rivals", metavar="NAME", help="a student to compare all methods' steps with")
    add("--step-size", default="2x96", metavar="BxS", help="of their output")
    add("--rounds", type=int, default=5, help="after one that warms up")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--tuned-malloc", action="store_true", help="glibc keeps freed memory")
    add("--json", type=Path)
    return parser.parse_args()


def measure(
    batch: int, side: int, negatives: int, rounds: int, device: torch.device, precisions: list[str]
) -> list[Row]:
    """One row for each way, all on the same images and weights."""
    torch.manual_seed(0)
    network = VQGANNetwork(F16).requires_grad_(False).eval()
    images = make_images(batch, side, negatives)
    exact = ways(copy.deepcopy(network).double(), images, torch.float64, ["float32"])
    truth = gradient(exact[("plain", "float32")], images[0].double())
    student = images[0].to(device)
    found = ways(network.to(device), [x.to(device) for x in images], torch.float32, precisions)
    times = in_turns({str(k): partial(clock, way, student) for k, way in found.items()}, rounds)
    rows = []
    for (name, precision), way in found.items():
        impl = name.partition(",")[0]
        rows.append({
            "way": "released" if name == "released" else "dckd-losses",
            "impl": "fused" if impl in ("stream", "twopass") else impl,
            "mode": name,
            "precision": precision,
            "student": None,
            "batch": batch,
            "size": side,
            "negatives": negatives,
            **summary(times[str((name, precision))]),
            "saved_mb": saved(way, student) / 1e6,
            "peak_mb": peak(partial(clock, way, student), device) / 1e6,
            **distance(gradient(way, student), truth),
        })  # fmt: skip
    return rows


def make_images(batch: int, side: int, negatives: int) -> list[Tensor]:
    """Smooth images, and student, teacher and negatives at growing distances from them."""
    smooth = F.interpolate(torch.rand(batch, 3, side // 8, side // 8), (side, side), mode="bicubic")

    def near(sigma: float) -> Tensor:
        return (smooth + sigma * torch.randn_like(smooth)).clamp(0, 1)

    return [near(0.03), near(0.02), torch.stack([near(0.06) for _ in range(negatives)])]


def ways(
    network: VQGANNetwork, images: list[Tensor], dtype: torch.dtype, precisions: list[str]
) -> dict[tuple[str, str], Way]:
    """From the student's images to the loss, by name and precision."""
    _, teacher, negatives = (x.to(dtype) for x in images)
    found: dict[tuple[str, str], Way] = {
        ("released", "float32"): lambda x: released.loss(
            network, 2 * x - 1, 2 * teacher - 1, 2 * negatives - 1, **released.WEIGHTS
        )
    }
    settings = {(name, "float32"): path for name, path in PATHS.items()}
    settings |= {("stream", p): {"precision": p} for p in precisions}
    for key, path in settings.items():
        encoder = VQGANEncoder(copy.deepcopy(network), **path)  # type: ignore[arg-type]
        dckd = DCKDLoss(nn.Identity(), encoder, negatives=lambda lq: negatives, **released.WEIGHTS)
        found[key] = lambda x, dckd=dckd: dckd(x, teacher, teacher)
    return found


def facts(args: argparse.Namespace) -> dict[str, object]:
    """What the numbers were measured with."""
    device = torch.device(args.device)
    return {
        "command": provenance.command("benchmarks.speed"),
        **provenance.machine(device),
        "tuned_malloc": args.tuned_malloc,
    }


if __name__ == "__main__":
    main()
