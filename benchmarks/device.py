"""Everything that is worth knowing of a GPU, by one command.

    python -m benchmarks.device --out DIR --seconds 540
    python -m benchmarks.device --out DIR --seconds 60 --device cpu --tiny  # the same, in miniature
    python -m benchmarks.device --out DIR --seconds 540 --tables            # trains; call it again

Each part is a process with a limit of its own, writes its file as it goes on, and leaves the time
that it does not need to the parts after it; whatever fails is told in `summary.md`, which is
printed last. Where there is no clone, DCKD_COMMIT names the commit.

`--tables` trains the small tables, Table 5 with the student of 152,332 parameters first, says
beforehand what it will get done, and stops in time. `--store` (default: runs/device, which git
ignores) holds the runs; what has to travel of it lies packed in DIR as `store_*.tar`, and is
unpacked from the store's folder where it is found. DCKD_DATA names the images (benchmarks/tables/
data.py); without it, or with `--tiny`, the smoke budget is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.common import ROOT, Row
from benchmarks.speed import Bench, Spec, table

SUMMARY_SECONDS = 3  # of the whole, kept for the summary
START = 4  # seconds that a part may take to import what it needs
SAFE = 0.85  # of a part's limit, after which it begins nothing more
DTYPES = {
    "float32": torch.float32, "tf32": torch.float32, "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}  # fmt: skip
CONVOLUTIONS = ((128, 192), (128, 96), (256, 48), (512, 12))  # channels, pixels a side
CHUNKS = (1, 2, 4, 8, 16, 32, 48, 64, 96)
CONSTANTS: Sequence[tuple[str, Sequence[Any]]] = (  # of the Triton kernels; the first is the usual
    ("dckd_losses.ops.triton_norm.TILE_ROWS", ((4, 16), (4, 32), (4, 64), (8, 8))),
    ("dckd_losses.ops.triton_norm.PROGRAMS", (4096, 1024, 2048, 8192)),
    ("dckd_losses.ops.triton_distances.BLOCK", (1024, 512, 2048, 4096)),
)
SMALL_TABLES = (  # commands of benchmarks.tables in this order
    ("table5", "--student", "small", "--seeds", "0", "1", "2", "3", "4"),
    ("table7", "--student", "small"),
    ("table2", "--student", "small"),
    ("table6", "--student", "small"),
)
TAR_BYTES = 15 << 20  # of a packed part of the store


@dataclass(frozen=True)
class Setting:
    """How a part is to run.

    Attributes:
        out: where its file goes.
        device: where it measures.
        tiny: in miniature.
        until: when to begin nothing more, on `time.monotonic`'s clock.
    """

    out: Path
    device: torch.device
    tiny: bool
    until: float

    def bench(self, size: str, truth: bool = False) -> Bench:
        """Images and weights to measure on; in miniature smaller ones, through `compact`."""
        size, encoder = ("1x32", "compact") if self.tiny else (size, None)
        return Bench(size, 5, self.device, truth=truth, encoder=encoder)

    @property
    def late(self) -> bool:
        """Whether nothing more should begin."""
        return time.monotonic() > self.until

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a part's JSON, with what it was measured with."""
        facts = {"command": common.command("benchmarks.device"), **common.machine(self.device)}
        common.write_json(self.out / name, {**facts, **content})


# Parts


def facts(setting: Setting) -> None:
    """What the machine is, and whether the library runs there at all."""
    bench = setting.bench("4x64")
    row = bench.rows([Spec("stream")], 1)[0]
    installed = [f"{d.metadata['Name']} {d.version}" for d in metadata.distributions()]
    setting.write("facts.json", {"first_call": row, "packages": sorted(installed)})


def ceilings(setting: Setting) -> None:
    """What the device reaches at best: copies, products, convolutions as the encoder has them."""
    rows: list[Row] = []

    def note(row: Row) -> None:
        rows.append(row)
        setting.write("ceilings.json", {"rows": rows})

    gigabytes, side, batch = (0.01, 128, 1) if setting.tiny else (4.0, 8192, 16)
    source = torch.randn(int(gigabytes * 1e9 / 4), device=setting.device)
    target = torch.empty_like(source)
    seconds = _seconds(partial(target.copy_, source), setting.device)
    note({"what": f"copy of {gigabytes:g} GB", "gb_per_s": 2 * gigabytes / seconds})
    del source, target
    for precision, dtype in DTYPES.items():
        a, b = (torch.randn(side, side, device=setting.device, dtype=dtype) for _ in range(2))
        with common.tf32(precision == "tf32"):
            seconds = _seconds(partial(torch.mm, a, b), setting.device)
        label = {"what": f"product of {side}", "precision": precision}
        note({**label, "tflop_per_s": 2 * side**3 / seconds / 1e12})
        del a, b
    cases = product((False, True), CONVOLUTIONS, ("float32", "tf32", "float16"), (False, True))
    for benchmark, (channels, pixels), precision, bias in cases:
        if setting.late or (setting.tiny and (pixels > 12 or benchmark)):
            continue
        if bias and (precision != "float16" or pixels != 192):
            continue  # one case says whether a bias costs a pass of its own
        torch.backends.cudnn.benchmark = benchmark
        label = {"what": f"convolution, {channels} channels, {batch}x{pixels}x{pixels}"}
        label |= {"precision": precision, "bias": bias, "cudnn_benchmark": benchmark}
        note({**label, **_convolution(setting.device, batch, channels, pixels, precision, bias)})


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


def tests(setting: Setting) -> None:
    """The tests that need a device; in miniature one file of them."""
    folder, chosen = ROOT / "tests", ["-m", "cuda"]
    files = sorted(p for p in folder.rglob("test_*.py") if "mark.cuda" in p.read_text("utf-8"))
    if setting.tiny:
        files, chosen = [p for p in files if "kernels" not in p.name][:1], ["-m", "cuda"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x" if setting.tiny else "--maxfail=30",
         "-p", "no:cacheprovider", *chosen, *map(str, files)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    (setting.out / "tests.txt").write_text(done.stdout[-200_000:], encoding="utf-8")
    if done.returncode not in (0, 5):  # 5: none was chosen
        sys.exit(done.returncode)


def speed(setting: Setting) -> None:
    """The loss in every way, precision and as graphs: the main size first, compiled ways last."""
    torch.backends.cudnn.benchmark = True
    sizes = ("16x192",) if setting.tiny else ("16x192", "4x64", "32x256")
    precisions = ("float32",) if setting.tiny else tuple(DTYPES)
    halves = () if setting.tiny else ("tf32", "float16")
    rounds, rows = (1, 10)[not setting.tiny], []
    for size, graph in product(sizes, (False, True)):
        if setting.late:
            break
        specs = [
            Spec(mode, precision, settings, graph)
            for mode, settings in (("released", {}), ("plain", {"impl": "plain"}), ("stream", {}))
            for precision in precisions
        ]
        if size == sizes[0] and not graph:
            specs += [Spec(f"stream, chunk {c}", p, {"chunk": c}) for c in (1, 16) for p in halves]
            specs += [Spec("twopass", p, {"mode": "twopass"}) for p in halves]
            specs += [Spec("stream, torch's norms", p, triton_norms=False) for p in halves]
        rows += setting.bench(size, truth=True).rows(specs, rounds, setting.until)
        setting.write("speed.json", {"rows": rows})


def compiled(setting: Setting) -> None:
    """The plain path under torch.compile; appended to what `speed` wrote."""
    torch.backends.cudnn.benchmark = True
    path = setting.out / "speed.json"
    rows = json.loads(path.read_text()).get("rows", []) if path.is_file() else []
    bench = setting.bench("16x192", truth=True)
    modes = ("default", "max-autotune-no-cudagraphs")
    for mode, precision in product(modes, ("float16", "tf32")):
        spec = Spec("plain", precision, {"impl": "plain"}, compiled=mode)
        if setting.tiny or setting.late:
            reason = "in miniature nothing is compiled" if setting.tiny else "no time left"
            rows.append({**bench.label(spec), "skipped": reason})
        else:
            rows += bench.rows([spec], 10)
        setting.write("speed.json", {"rows": rows})


def sweep(setting: Setting) -> None:
    """Chunks, and the kernels' constants, one changed at a time, in float16."""
    torch.backends.cudnn.benchmark = True
    bench = setting.bench("16x192")
    precision, rounds = ("float32", 1) if setting.tiny else ("float16", 5)
    rows: list[Row] = []

    def note(label: Row, spec: Spec) -> None:
        found = bench.rows([spec], rounds, setting.until)[0]
        rows.append({**label, **{k: found.get(k) for k in ("ms_median", "ms_iqr", "peak_mb")}})
        setting.write("sweep.json", {"rows": rows})

    for chunk in CHUNKS[:: 4 if setting.tiny else 1]:
        note({"chunk": chunk}, Spec("stream", precision, {"chunk": chunk}))
    for name, values in CONSTANTS:
        for value in values[: 1 if setting.tiny else None]:
            if setting.late:
                return
            try:
                with patch(name, value):
                    note({"constant": name, "value": value}, Spec("stream", precision))
            except (ImportError, AttributeError, RuntimeError) as error:
                rows.append({"constant": name, "value": value, "failed": str(error)[:300]})


def profiled(setting: Setting) -> None:
    """Kernels of one loss by time, of ours with default settings and of the released way."""
    torch.backends.cudnn.benchmark = True
    cuda = setting.device.type == "cuda"
    bench = setting.bench("16x192")
    content: dict[str, Any] = {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    half = "float16" if cuda else "float32"
    for spec in (Spec("stream", half), Spec("released", "tf32" if cuda else "float32")):
        job = bench.job(spec, bench.way(spec))
        with profile(activities=activities) as record:
            job()
            common.wait(setting.device)
        unit = "device" if cuda else "cpu"
        events = [
            {"name": e.key[:120], "calls": e.count,
             "ms": getattr(e, f"self_{unit}_time_total") / 1e3}
            for e in record.key_averages()
        ]  # fmt: skip
        events = sorted((e for e in events if e["ms"]), key=lambda e: -e["ms"])
        total, calls = (sum(e[key] for e in events) for key in ("ms", "calls"))
        content[f"{spec.mode}, {spec.precision}"] = {
            "ms": total, "launches" if cuda else "calls": calls, "kernels": events[:40],
        }  # fmt: skip
        setting.write("profile.json", content)


def precision(setting: Setting) -> None:
    """How far each precision's gradient is from float64's, on this device."""
    from benchmarks.precision import ENCODERS, apart, make_steps, measure

    steps = make_steps(2, 1, 32) if setting.tiny else make_steps(325, 6, 96)
    rows: list[Row] = []
    for name in ENCODERS[: 1 if setting.tiny else None]:
        rows += measure(name, steps, setting.device, setting.until)
        setting.write("precision.json", {"apart": list(map(apart, steps)), "rows": rows})


PARTS: Mapping[str, tuple[Callable[[Setting], None], int, str]] = {  # what, seconds of 540, file
    "facts": (facts, 12, "facts.json"),
    "ceilings": (ceilings, 30, "ceilings.json"),
    "tests": (tests, 130, "tests.txt"),
    "speed": (speed, 110, "speed.json"),
    "compiled": (compiled, 60, "speed.json"),
    "sweep": (sweep, 50, "sweep.json"),
    "profile": (profiled, 30, "profile.json"),
    "precision": (precision, 100, "precision.json"),
}


# All parts, one after another


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 where a summary was written, whatever failed."""
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        left = args.until - time.time()  # imports have taken their share
        until = time.monotonic() + left
        setting = Setting(args.out, torch.device(args.device), args.tiny, until)
        PARTS[args.part][0](setting)
        return 0
    start = time.monotonic()
    if args.tables:
        lines = tables(args, start + args.seconds)
    else:
        lines = all_parts(args, start + args.seconds - START - SUMMARY_SECONDS)
    text = "\n".join([*lines, "", f"{time.monotonic() - start:.0f} s in all", ""])
    (args.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


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
    add("--processes", type=int, help="that train at once (default: 8 on a GPU, 1 on a CPU)")
    add("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    add("--until", type=float, help=argparse.SUPPRESS)  # of a part: when to begin nothing more
    return parser.parse_args(argv)


def all_parts(args: argparse.Namespace, end: float) -> list[str]:
    """Run every part within its limit; the summary's lines."""
    told, shares = [], [share for _, share, _ in PARTS.values()]
    for _, _, file in PARTS.values():
        (args.out / file).unlink(missing_ok=True)  # of an earlier run
    for number, name in enumerate(PARTS):
        left = end - time.monotonic() - START * len(shares[number:])
        limit = max(1.0, START + left * shares[number] / sum(shares[number:]))
        path = args.out / PARTS[name][2]
        began = time.monotonic()
        code, output = run_part(args, name, limit)
        seconds = time.monotonic() - began
        state = {0: "done", None: f"stopped at its limit of {limit:.0f} s"}
        status = state.get(code, f"failed with code {code}")
        print(f"{name}: {status}, {seconds:.0f} s", flush=True)
        told.append(f"| {name} | {status} | {seconds:.0f} | {path.name} |")
        if code not in (0, None) or not path.is_file():
            print(output[-2000:], flush=True)
        if not path.is_file():
            common.write_json(path, {"failed": status, "output": output[-4000:]})
    head = ["# Device", "", "| part | state | s | file |", "|---|---|---|---|", *told, ""]
    return [*head, *summary(args.out)]


def run_part(args: argparse.Namespace, name: str, limit: float) -> tuple[int | None, str]:
    """Run a part as a process; its code, None where it was stopped at its limit, and its output."""
    command = [sys.executable, "-m", "benchmarks.device", "--part", name, "--out", str(args.out)]
    command += ["--until", str(time.time() + SAFE * limit), "--device", args.device]
    command += ["--tiny"] * args.tiny
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where this process is stopped, and what the part has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read()


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
    yield from _listed("Ceilings", content.get("ceilings", {}).get("rows", []))
    if content.get("speed", {}).get("rows"):
        yield from ["", "## Speed", "", table(content["speed"]["rows"])]
    yield from _listed("Sweep", content.get("sweep", {}).get("rows", []))
    for name, found in content.get("profile", {}).items():
        if isinstance(found, dict) and "kernels" in found:
            launches = found.get("launches", found.get("calls"))
            yield from ["", f"## Kernels of {name}: {found['ms']:.2f} ms, {launches} launches", ""]
            yield from (
                f"- {k['ms']:.3f} ms, {k['calls']}x {k['name']}" for k in found["kernels"][:15]
            )
    if content.get("precision", {}).get("rows"):
        from benchmarks.precision import table as precision_table

        rows = [r for r in content["precision"]["rows"] if r["term"] == "both"]
        yield from ["", "## Precision", "", precision_table(rows)]


def _listed(title: str, rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        yield from ["", f"## {title}", ""]
    for row in rows:
        cells = (
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if v
        )
        yield f"- {', '.join(cells)}"


# Small tables, in calls of ten minutes


def tables(args: argparse.Namespace, end: float) -> list[str]:
    """Train what there is time for; the summary's lines."""
    smoke = args.tiny or not os.environ.get("DCKD_DATA")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    args.store = args.store.resolve()  # what trains runs elsewhere
    args.store.mkdir(parents=True, exist_ok=True)
    processes = args.processes or (8 if args.device != "cpu" else 1)
    unpack(args.store)
    lines = ["# Small tables", ""]
    for command in SMALL_TABLES:
        spare = 10 if smoke else 45  # seconds, to stop, to write and to pack
        if time.monotonic() > end - spare:
            break
        full = [*command, "--output", str(args.store)]
        full += ["--budget", "smoke", "--iterations", "20"] if smoke else []
        lines += [f"- python -m benchmarks.tables {' '.join(full)}"]
        plan = _output([*full, "--plan"], end - spare)
        print(plan, flush=True)
        lines += [f"  {line}" for line in plan.splitlines() if line.startswith("  ")]
        lines.append(promise(plan, end - spare - time.monotonic(), processes))
        print(lines[-1], flush=True)
        finished = train(full, processes, end - spare)
        lines.append(f"  {'finished' if finished else 'stopped in time; call again'}")
        if not finished:
            break
    for path in sorted(args.store.glob("table*.md")):
        lines += ["", path.read_text("utf-8")]
    packed = pack(args.store, args.out)
    lines.append(f"packed: {', '.join(packed)}; put them into {args.store} and call again")
    return lines


def promise(plan: str, seconds: float, processes: int) -> str:
    """What a call will get done of a plan, by the steps that the plan has measured."""
    found = re.search(r"in all: (\S+) ", plan)
    if found is None or float(found[1]) == 0:
        return f"  {seconds:.0f} s are left of this call"
    share = seconds / 3600 / float(found[1])
    parts = [f"{min(1, count * share):.0%}" for count in sorted({1, processes})]
    return (
        f"  {seconds:.0f} s are left of this call, in which {processes} processes train at once: "
        f"{' to '.join(parts)} of it"
    )


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
    parts: list[list[Path]] = [[]]
    room = TAR_BYTES
    for path in files:
        size = path.stat().st_size
        if size > room and parts[-1]:
            parts.append([])
            room = TAR_BYTES
        parts[-1].append(path)
        room -= size
    names = []
    for number, part in enumerate(parts):
        names.append(f"store_{number}.tar.gz")
        with tarfile.open(out / names[-1], "w:gz") as tar:
            for path in part:
                tar.add(path, path.relative_to(store))
    return names


def _output(arguments: Sequence[str], end: float) -> str:
    """What a call of benchmarks.tables prints."""
    command = [sys.executable, "-m", "benchmarks.tables", *arguments]
    limit = max(1.0, end - time.monotonic())
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        return done.stdout + done.stderr
    return "  no time to plan"


def train(arguments: Sequence[str], processes: int, end: float) -> bool:
    """Let several processes share a table's runs; whether they finished it."""
    command = [sys.executable, "-m", "benchmarks.tables", *arguments]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(processes)]
        running = [
            subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            for log in logs
        ]
        while time.monotonic() < end and any(p.poll() is None for p in running):
            time.sleep(0.2)
        for process in running:
            if process.poll() is None:
                process.terminate()  # which writes a checkpoint
        for process in running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        codes = [process.wait() for process in running]
        for log in logs[:1]:
            log.seek(0)
            print(log.read()[-3000:], flush=True)
    return 0 in codes


if __name__ == "__main__":
    sys.exit(main())
