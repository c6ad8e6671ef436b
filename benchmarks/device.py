"""Everything that is worth knowing of a GPU, by one command.

    python -m benchmarks.device --out DIR --seconds 540
    python -m benchmarks.device --out DIR --seconds 60 --device cpu --tiny  # the same, in miniature
    python -m benchmarks.device --out DIR --seconds 540 --tables            # trains; call it again

Each part is a command of its own with a limit, and leaves the time that it does not need to the
parts after it. Its file is there as soon as it ends, also where it was stopped; whatever fails is
told in `summary.md`, which is printed last. Without a clone, DCKD_COMMIT names the commit.

`--tables` trains the small tables, and first `evidence` at 30,000 steps and five seeds, beside
--teacher where that is given. It prints each plan beforehand and stops in time. `--store` (default:
runs/device, which git ignores) holds the runs. All of it also lies packed in DIR, as
`store_*.tar.gz`; a call unpacks what it finds of these in its store. DCKD_DATA names the images
(benchmarks/tables/data.py); without it, or with `--tiny`, the smoke budget is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.common import ROOT, Row
from benchmarks.speed import Bench, Spec, table

START = 4  # seconds that a command may take to import what it needs
SUMMARY_SECONDS = 4  # of the whole, kept for the summary
DTYPES = {
    "float32": torch.float32, "tf32": torch.float32, "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}  # fmt: skip
CONVOLUTIONS = ((128, 192), (128, 96), (256, 48), (512, 12))  # channels, pixels a side
CHUNKS = (16, 96, 32, 64, 8, 4, 2, 1)  # the likely ones first: each new size is tuned anew
CONSTANTS: Sequence[tuple[str, Sequence[Any]]] = (  # of the Triton kernels; the first is the usual
    ("dckd_losses.ops.triton_norm.TILE_ROWS", ((4, 16), (4, 32), (4, 64), (8, 8))),
    ("dckd_losses.ops.triton_norm.PROGRAMS", (4096, 1024, 2048, 8192)),
    ("dckd_losses.ops.triton_distances.BLOCK", (1024, 512, 2048, 4096)),
)
SEEDS = ("--seeds", "0", "1", "2", "3", "4")
LARGER = ("--student", "small")
SMALL_TABLES = (  # arguments of benchmarks.tables, the most wanted first
    ("evidence", "--name", "evidence_long", "--iterations", "30000", *SEEDS),
    ("table5", "--name", "table5_larger_student", *LARGER, *SEEDS),
    ("table7", "--name", "table7_larger_student", *LARGER),
    ("table2", "--name", "table2_larger_student", *LARGER),
    ("table6", "--name", "table6_larger_student", *LARGER),
)
NO_TESTS = 5  # pytest's code where it ran none
TAR_BYTES = 15 << 20  # of a packed part of the store


class Part(NamedTuple):
    """One thing that is measured."""

    name: str
    seconds: int  # of 540
    file: str
    command: list[str]  # a module and its arguments


def parts(device: str, tiny: bool, work: Path) -> list[Part]:
    """What is measured, in this order, with files in a working folder."""
    mine = ["benchmarks.device", "--out", str(work), "--device", device, *["--tiny"] * tiny]
    speed = ["benchmarks.speed", "--device", device, "--json", str(work / "speed.json")]
    speed += ["--encoder", "compact", "--rounds", "1"] if tiny else []
    speed += ["--compiled", "--sizes", *(["1x32"] if tiny else ["16x192", "4x64", "32x256"])]
    precision = ["benchmarks.precision", "--device", device]
    precision += ["--json", str(work / "precision.json")]
    if tiny:
        precision += ["--encoders", "compact", "--crops", "1", "--side", "32", "--steps", "2"]
    files = (p for p in (ROOT / "tests").rglob("test_*.py") if "mark.cuda" in p.read_text("utf-8"))
    tests = sorted(map(str, files))[: 1 if tiny else None]
    return [
        Part("facts", 12, "facts.json", [*mine, "--part", "facts"]),
        Part("ceilings", 30, "ceilings.json", [*mine, "--part", "ceilings"]),
        Part(
            "tests",
            130,
            "tests.txt",
            ["pytest", "-q", "-o", "addopts=", "-m", "cuda", "--maxfail=30", *tests],
        ),
        Part("speed", 170, "speed.json", speed),
        Part("sweep", 50, "sweep.json", [*mine, "--part", "sweep"]),
        Part("profile", 30, "profile.json", [*mine, "--part", "profile"]),
        Part("precision", 100, "precision.json", precision),
    ]


# What only this module measures


def bench(device: torch.device, tiny: bool) -> Bench:
    """Images and weights to measure on; in miniature small ones, through `compact`."""
    size, encoder = ("1x32", "compact") if tiny else ("16x192", None)
    return Bench(size, 5, device, truth=False, encoder=encoder)


def facts(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Whether the library runs there at all, and what is installed."""
    row = Bench("1x32", 5, device, truth=False, encoder="compact").rows([Spec("stream")], 1)[0]
    installed = sorted(f"{d.metadata['Name']} {d.version}" for d in metadata.distributions())
    yield {"first_call": row, "packages": installed}


def ceilings(device: torch.device, tiny: bool) -> Iterator[Row]:
    """What the device reaches at best: copies, products, convolutions as the encoder has them."""
    gigabytes, side, batch = (0.01, 128, 1) if tiny else (4.0, 8192, 16)
    source = torch.randn(int(gigabytes * 1e9 / 4), device=device)
    target = torch.empty_like(source)
    seconds = _seconds(partial(target.copy_, source), device)
    yield {"what": f"copy of {gigabytes:g} GB", "gb_per_s": 2 * gigabytes / seconds}
    del source, target
    for precision, dtype in DTYPES.items():
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        with common.tf32(precision == "tf32"):
            seconds = _seconds(partial(torch.mm, a, b), device)
        label = {"what": f"product of {side}", "precision": precision}
        yield {**label, "tflop_per_s": 2 * side**3 / seconds / 1e12}
    shapes = CONVOLUTIONS[-1:] if tiny else CONVOLUTIONS
    for benchmark, (channels, pixels) in product((False, True), shapes):
        torch.backends.cudnn.benchmark = benchmark
        # one with a bias says whether that costs a pass of its own
        cases = [("float32", False), ("tf32", False), ("float16", False), ("float16", True)]
        for precision, bias in cases:
            found = _convolution(device, batch, channels, pixels, precision, bias)
            label = {"what": f"convolution, {channels} channels, {batch}x{pixels}x{pixels}"}
            label |= {"precision": precision, "bias": bias, "cudnn_benchmark": benchmark}
            yield {**label, **found}


def _convolution(
    device: torch.device, batch: int, channels: int, pixels: int, precision: str, bias: bool
) -> dict[str, float]:
    """TFLOP/s of a 3x3 convolution, channels_last, and of its data gradient."""
    made = {"device": device, "dtype": DTYPES[precision]}
    x = torch.randn(batch, channels, pixels, pixels, **made)
    weight = torch.randn(channels, channels, 3, 3, **made)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    offset = torch.randn(channels, **made) if bias else None
    flop = 2 * 9 * channels**2 * batch * pixels**2

    def forward() -> Tensor:
        return F.conv2d(x, weight, offset, padding=1)

    def gradient() -> Tensor:
        return torch.nn.grad.conv2d_input(x.shape, weight, x, padding=1)

    with common.tf32(precision == "tf32"):
        return {
            "forward_tflop_per_s": flop / _seconds(forward, device) / 1e12,
            "gradient_tflop_per_s": flop / _seconds(gradient, device) / 1e12,
        }


def _seconds(job: Callable[[], object], device: torch.device, count: int = 10) -> float:
    """Mean time of a job that runs several times after three that warm up."""
    for _ in range(3):
        job()
    common.wait(device)
    start = time.perf_counter()
    for _ in range(count):
        job()
    common.wait(device)
    return (time.perf_counter() - start) / count


def sweep(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Chunks, and the kernels' constants, one changed at a time, in float16."""
    torch.backends.cudnn.benchmark = True
    measured = bench(device, tiny)
    precision, rounds = ("float32", 1) if tiny else ("float16", 5)

    def timed(settings: Mapping[str, Any]) -> Row:
        found = measured.rows([Spec("stream", precision, settings)], rounds)[0]
        return {k: found[k] for k in ("ms_median", "ms_iqr", "peak_mb", "skipped") if k in found}

    for name, values in CONSTANTS:
        for value in values[: 1 if tiny else None]:
            try:
                with patch(name, value):
                    found = timed({})
            except Exception as error:  # a kernel that does not compile so; the rest may
                found = {"failed": str(error)[:300]}
            yield {"constant": name, "value": value, **found}
    for chunk in CHUNKS[: 2 if tiny else None]:
        yield {"chunk": chunk, **timed({"chunk": chunk})}


def profiled(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Kernels of one loss by time, of ours with default settings and of the released way."""
    torch.backends.cudnn.benchmark = True
    measured, cuda = bench(device, tiny), device.type == "cuda"
    activities = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
    key = f"self_{'device' if cuda else 'cpu'}_time_total"
    for spec in (Spec("stream", "float16" if cuda else "float32"), Spec("released", "tf32")):
        job = measured.job(spec, measured.way(spec))
        with profile(activities=activities) as record:
            job()
            common.wait(device)
        found = [
            {"way": spec.mode, "ms": getattr(e, key) / 1e3, "calls": e.count, "kernel": e.key[:120]}
            for e in record.key_averages()
            if e.device_type.name == ("CUDA" if cuda else "CPU")  # not what launches kernels
        ]
        total = {"way": spec.mode, "precision": spec.precision}
        yield total | {key: sum(row[key] for row in found) for key in ("ms", "calls")}
        yield from sorted(found, key=lambda row: -row["ms"])[:40]


MEASURES: Mapping[str, Callable[[torch.device, bool], Iterator[Row]]] = {
    "facts": facts, "ceilings": ceilings, "sweep": sweep, "profile": profiled,
}  # fmt: skip


def measure(name: str, out: Path, device: torch.device, tiny: bool) -> None:
    """Write one of them; what came first is there whatever happens to the rest."""
    rows: list[Row] = []
    for row in MEASURES[name](device, tiny):
        rows.append(row)
        made = common.facts("benchmarks.device", device)
        common.write_json(out / f"{name}.json", {**made, "rows": rows})


# All parts, one after another


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where a summary was written, whatever failed."""
    args = arguments(argv)
    if args.part:
        measure(args.part, args.out, torch.device(args.device), args.tiny)
        return 0
    start = time.monotonic() - age()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.tables:
        lines = tables(args, start + args.seconds)
    else:
        lines = all_parts(args, start + args.seconds - SUMMARY_SECONDS)
    text = "\n".join([*lines, "", f"{time.monotonic() - start:.0f} s in all", ""])
    (args.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def age() -> float:
    """Seconds since this process began: imports take their time."""
    return time.time() - psutil.Process().create_time()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the files, 8 at most")
    add("--seconds", type=float, default=540, help="for everything (default: 540)")
    add("--device", default="cuda", help="(default: cuda)")
    add("--tiny", action="store_true", help="smallest sizes")
    add("--tables", action="store_true", help="train the small tables instead")
    add("--store", type=Path, default=Path("runs/device"), help="of the tables' runs")
    add("--teacher", metavar="FILE", help="of the table evidence, as of benchmarks.tables")
    add("--teacher-network", nargs="+", metavar="CODE", help="likewise")
    add("--part", choices=list(MEASURES), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def all_parts(args: argparse.Namespace, end: float) -> list[str]:
    """Run every part within its limit; the summary's lines."""
    told = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wanted = parts(args.device, args.tiny, work)
        for part in wanted:
            (args.out / part.file).unlink(missing_ok=True)  # of an earlier run
        for number, part in enumerate(wanted):
            left = end - time.monotonic() - START * len(wanted[number:])
            share = part.seconds / sum(other.seconds for other in wanted[number:])
            limit, began = max(1.0, START + left * share), time.monotonic()
            (code,), output = run(part.command, limit)
            seconds = time.monotonic() - began
            state = {0: "done", None: f"stopped at its limit of {limit:.0f} s"}
            status = state.get(code, f"failed with code {code}")
            if part.name == "tests" and code == NO_TESTS:
                status = "no test can run here"
            print(f"{part.name}: {status}, {seconds:.0f} s", flush=True)
            told.append((part.name, status, f"{seconds:.0f}", part.file))
            found, path = work / part.file, args.out / part.file
            if part.file.endswith(".txt"):
                path.write_text(output[-200_000:], encoding="utf-8")
            elif found.is_file():
                shutil.copy(found, path)
            if code:
                print(output[-2000:], flush=True)
            if not path.is_file():
                common.write_json(path, {"failed": status, "output": output[-4000:]})
    states = common.grid(("part", "state", "s", "file"), told)
    return ["# Device", "", *states, "", *summary(args.out)]


def run(
    command: Sequence[str], limit: float, processes: int = 1, grace: float = 0
) -> tuple[list[int | None], str]:
    """Run a module, in several processes where it shares its work, up to a limit in seconds.

    Those that are left get SIGTERM and the grace, where there is any, then SIGKILL with all that
    they have started.

    Returns:
        their codes, None of those that were stopped, and the first one's output.
    """
    line, codes = [sys.executable, "-m", *command], []
    known = {"cwd": ROOT, "stderr": subprocess.STDOUT, "start_new_session": True}
    with tempfile.TemporaryFile("w+") as log:
        outputs = [log, *[subprocess.DEVNULL] * (processes - 1)]
        running = [subprocess.Popen(line, stdout=output, **known) for output in outputs]
        try:
            _wait(running, limit)
            codes = [process.poll() for process in running]
            if grace:
                for process in running:
                    process.terminate()
                _wait(running, grace)
        finally:  # also where this process is stopped
            for process in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.seek(0)
        return codes, log.read()


def _wait(running: Sequence[subprocess.Popen[str]], seconds: float) -> None:
    end = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, end - time.monotonic()))


def summary(out: Path) -> Iterator[str]:
    """The files in short."""
    content: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("*.json")):
        with contextlib.suppress(ValueError):
            content[path.stem] = json.loads(path.read_text())
    known = content.get("facts", {})
    for key in ("device", "commit", "torch", "cuda", "cudnn", "triton", "driver", "memory_gb"):
        if key in known:
            yield f"- {key}: {known[key]}"
    if (out / "tests.txt").is_file():
        lines = (out / "tests.txt").read_text("utf-8").strip().splitlines()
        yield f"- tests: {lines[-1] if lines else 'no output'}"
        yield from (f"  - {line}" for line in lines if line.startswith(("FAILED", "ERROR")))
    for name in ("ceilings", "sweep", "profile"):
        yield from ["", f"## {name.capitalize()}", ""]
        for row in content.get(name, {}).get("rows", []):
            cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            yield f"- {', '.join(cells)}"
    if content.get("speed", {}).get("rows"):
        yield from ["", "## Speed", "", table(content["speed"]["rows"])]
    if content.get("precision", {}).get("rows"):
        from benchmarks.precision import table as precision_table

        rows = [r for r in content["precision"]["rows"] if r["term"] == "both"]
        yield from ["", "## Precision", "", precision_table(rows)]


# Small tables, in calls of ten minutes


def tables(args: argparse.Namespace, end: float) -> list[str]:
    """Train what there is time for; the summary's lines."""
    smoke = args.tiny or not os.environ.get("DCKD_DATA")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    processes = 8 if args.device != "cpu" else 1
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    args.store = args.store.resolve()  # what trains runs elsewhere
    args.store.mkdir(parents=True, exist_ok=True)
    unpack(args.store)
    lines = ["# Small tables", ""]
    for command in SMALL_TABLES:
        spare = 10 if smoke else 45  # seconds, to stop, to write and to pack
        if time.monotonic() > end - spare:
            break
        full = arguments_of(command, args, smoke)
        lines += [f"- python -m benchmarks.tables {' '.join(full)}"]
        plan = run(["benchmarks.tables", *full, "--plan"], end - spare - time.monotonic())[1]
        print(plan, flush=True)
        lines += [f"  {line}" for line in plan.splitlines() if line.startswith("  ")]
        codes, said = run(
            ["benchmarks.tables", *full], end - spare - time.monotonic(), processes, 20
        )
        print(said[-3000:], flush=True)
        finished = 0 in codes
        lines.append(f"  {'finished' if finished else 'stopped in time; call again'}")
        if not finished:
            break
    for path in sorted([*args.store.glob("evidence*.md"), *args.store.glob("table*.md")]):
        lines += ["", path.read_text("utf-8")]
    packed = pack(args.store, args.out)
    lines.append(f"packed: {', '.join(packed)}; put them into {args.store} and call again")
    return lines


def arguments_of(command: Sequence[str], args: argparse.Namespace, smoke: bool) -> list[str]:
    """A table's arguments in full; only `evidence` takes the given teacher, and is cut in smoke."""
    full = [*command, "--output", str(args.store)]
    if smoke:
        full += ["--budget", "smoke", "--iterations", "2"]
    if args.teacher and command[0] == "evidence":
        full += ["--teacher", args.teacher]
        full += ["--teacher-network", *args.teacher_network] if args.teacher_network else []
    return full


def unpack(store: Path) -> None:
    """Put packed runs where they belong; what is unpacked is removed."""
    for path in sorted(store.glob("store_*.tar.gz")):
        with tarfile.open(path) as tar:
            tar.extractall(store, filter="data")
        path.unlink()


def pack(store: Path, out: Path) -> list[str]:
    """Pack the store's runs and reports, in parts of a size that travels; the files' names."""
    for old in out.glob("store_*.tar.gz"):
        old.unlink()
    kept = {".json", ".md", ".pt", ".safetensors"}
    files = sorted(path for path in store.rglob("*") if path.suffix in kept and path.is_file())
    names: list[str] = []
    while files:
        names.append(f"store_{len(names)}.tar.gz")
        size = 0
        with tarfile.open(out / names[-1], "w:gz") as tar:
            while files and (size == 0 or size + files[0].stat().st_size <= TAR_BYTES):
                size += files[0].stat().st_size
                tar.add(files[0], files.pop(0).relative_to(store))
    return names


if __name__ == "__main__":
    sys.exit(main())
