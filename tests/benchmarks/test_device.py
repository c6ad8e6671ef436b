"""One command measures everything: whatever a part does, the rest and the summary come."""

import json
import os
import subprocess
import sys
import textwrap
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks import device, precision, speed
from benchmarks.tables.__main__ import options, parser

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FILES = {part.file for part in device.parts("cpu", True, Path())}


@pytest.mark.parametrize("name", device.MEASURES)
def test_measures_write_what_they_found(name, tmp_path):
    before = torch.backends.cudnn.benchmark
    device.measure(name, tmp_path, CPU, True)
    torch.backends.cudnn.benchmark = before
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert {"command", "commit", "device", "torch"} <= found.keys()
    if name == "facts":
        assert found["rows"][0]["first_call"]["ms_median"] > 0
        assert any(name.startswith("torch ") for name in found["rows"][0]["packages"])
    elif name == "profile":
        total, *kernels = [row for row in found["rows"] if row["way"] == "stream"]
        assert total["ms"] > kernels[0]["ms"] >= kernels[-1]["ms"] > 0
    else:
        assert len(found["rows"]) >= 5


@pytest.mark.parametrize("tiny", [False, True])
def test_every_part_is_a_command_that_is_understood(tiny, tmp_path, monkeypatch):
    found = {part.name: part for part in device.parts("cuda", tiny, tmp_path)}
    assert sum(part.seconds for part in found.values()) <= 540 - 2 * device.START
    assert len({part.file for part in found.values()}) <= 7  # and the summary
    parsers = {"benchmarks.speed": speed.arguments, "benchmarks.precision": precision.arguments}
    for part in found.values():
        module, *arguments = part.command
        monkeypatch.setattr("sys.argv", [module, *arguments])
        if module in parsers:
            args = parsers[module]()
            assert (args.json.name, args.device) == (part.file, "cuda")
        elif module == "benchmarks.device":
            args = device.arguments(arguments)
            assert (f"{args.part}.json", args.tiny) == (part.file, tiny)
    files = {Path(name).name for name in found["tests"].command if name.endswith(".py")}
    assert "test_cuda.py" in files or tiny


def test_ceilings_are_operations_over_time(monkeypatch):
    monkeypatch.setattr(device, "_seconds", lambda job, where, count=10: (job(), 1e-3)[1])
    rows = list(device.ceilings(CPU, True))
    assert rows[0]["gb_per_s"] == pytest.approx(2 * 0.01 / 1e-3)
    product = next(row for row in rows if row["what"].startswith("product"))
    assert product["tflop_per_s"] == pytest.approx(2 * 128**3 / 1e-3 / 1e12)
    flop = 2 * 9 * 512**2 * 12**2
    assert rows[-1]["forward_tflop_per_s"] == pytest.approx(flop / 1e-3 / 1e12)
    assert rows[-1]["gradient_tflop_per_s"] == pytest.approx(flop / 1e-3 / 1e12)


def test_swept_constants_exist_and_are_what_is_used():
    """A sweep of a name that nothing reads would find nothing."""
    pytest.importorskip("triton")
    for name, (usual, *others) in device.CONSTANTS:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute) == usual
        assert others and usual not in others


def test_what_fails_or_hangs_does_not_stop_the_rest(tmp_path, monkeypatch):
    """A part that dies, one that never ends, one that is fine: all have a file and a line."""
    code = {
        "dies": "import sys; sys.exit('no driver')",
        "hangs": """
            import pathlib, subprocess, time
            child = subprocess.Popen(['sleep', '600'])
            pathlib.Path('{work}/hangs.json').write_text('{{"child": %d}}' % child.pid)
            time.sleep(600)
        """,
        "tests": "print('3 passed in 1s')",
    }
    (tmp_path / "modules").mkdir()

    def parts(where, tiny, work):
        for name, text in code.items():
            lines = textwrap.dedent(text).format(work=work)
            (tmp_path / "modules" / f"part_{name}.py").write_text(lines)
        end = {"tests": "txt"}
        return [device.Part(n, 1, f"{n}.{end.get(n, 'json')}", [f"part_{n}"]) for n in code]

    monkeypatch.setattr(device, "parts", parts)
    monkeypatch.setattr(device, "START", 0.5)
    monkeypatch.setattr(device, "ROOT", tmp_path / "modules")
    (tmp_path / "dies.json").write_text('{"device": "that of an earlier run"}')
    args = device.arguments(["--out", str(tmp_path), "--device", "cpu"])
    start = time.monotonic()
    lines = "\n".join(device.all_parts(args, start + 6))
    assert time.monotonic() - start < 8
    assert "| dies | failed with code 1 |" in lines and "earlier run" not in lines
    assert "no driver" in json.loads((tmp_path / "dies.json").read_text())["output"]
    assert "| hangs | stopped at its limit of" in lines
    child = json.loads((tmp_path / "hangs.json").read_text())["child"]  # copied all the same
    status = Path(f"/proc/{child}/status")
    assert not status.is_file() or "Z (zombie)" in status.read_text()
    assert "| tests | done |" in lines and "- tests: 3 passed in 1s" in lines


def test_imports_count_as_time_that_is_spent():
    code = "import time; time.sleep(0.5); from benchmarks import device; print(device.age())"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert 0.5 < float(done.stdout) < time.monotonic() - start + 0.1


def test_a_summary_holds_every_file(tmp_path):
    spent = {"way": "stream", "ms": 3.5, "calls": 2, "kernel": "conv"}
    row = {"cosine": 1.0, "cosine_worst": 1.0, "rel_l2": 0.1, "rel_l2_worst": 0.2}
    row |= {"loss_rel": 0.0, "loss_rel_worst": 0.0, "encoder": "compact", "student": "closer"}
    files = {
        "facts": {"device": "H200", "cudnn": 92000},
        "ceilings": {"rows": [{"what": "copy of 4 GB", "gb_per_s": 4300.0}]},
        "sweep": {"rows": [{"chunk": 16, "ms_median": 34.25}]},
        "profile": {"rows": [spent]},
        "precision": {
            "rows": [{**row, "term": term, "precision": "tf32"} for term in ("DCR", "both")]
        },
    }
    for name, found in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    (tmp_path / "tests.txt").write_text("FAILED tests/x.py::y\n1 failed in 2s\n")
    (tmp_path / "speed.json").write_text("{ cut short")
    text = "\n".join(device.summary(tmp_path))
    for expected in (
        "- device: H200", "copy of 4 GB, gb_per_s 4300", "chunk 16, ms_median 34.25",
        "- way stream, ms 3.5, calls 2, kernel conv", "- tests: 1 failed in 2s",
        "  - FAILED tests/x.py::y", "| compact | closer | both | tf32 |",
    ):  # fmt: skip
        assert expected in text
    assert "| DCR |" not in text


def test_a_store_is_packed_in_parts_and_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "TAR_BYTES", 1000)
    store, out, other = (tmp_path / name for name in ("store", "out", "other"))
    out.mkdir()
    for number in range(3):
        folder = store / "runs" / f"run_{number}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("x" * 600)
        (folder / ".lock").touch()
    (out / "store_7.tar.gz").touch()  # of an earlier call
    assert device.pack(store, out) == [f"store_{n}.tar.gz" for n in range(3)]
    assert {path.name for path in out.iterdir()} == {f"store_{n}.tar.gz" for n in range(3)}
    out.rename(other)
    device.unpack(other)
    assert sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file()) == [
        Path(f"runs/run_{n}/result.json") for n in range(3)
    ]


@pytest.mark.parametrize("command", device.SMALL_TABLES, ids=lambda command: command[0])
def test_its_tables_are_commands_that_are_understood(command):
    """Of them the study, in full, learns from the given teacher."""
    said = ["--out", "out", "--teacher", "t.pth", "--teacher-network", "net.py:Net", "width=3"]
    full = device.arguments_of(command, device.arguments(said), smoke=False)
    chosen = options(parser().parse_args(full))
    given = ("t.pth", ["net.py:Net", "width=3"]) if command[0] == "evidence" else (None, None)
    assert (chosen.teacher, chosen.teacher_network) == given
    if command is device.SMALL_TABLES[0]:
        assert (chosen.table, len(chosen.seeds)) == ("evidence", 5)
        assert chosen.recipe == {"iterations": 30_000} and chosen.student is None
    smoke = device.arguments_of(command, device.arguments(["--out", "out"]), smoke=True)
    chosen = options(parser().parse_args(smoke))
    assert (chosen.budget, chosen.recipe, chosen.teacher) == ("smoke", {"iterations": 2}, None)


@pytest.mark.slow
def test_in_miniature_everything_ends_within_a_minute(tmp_path):
    command = [sys.executable, "-m", "benchmarks.device", "--device", "cpu", "--tiny"]
    start = time.monotonic()
    done = subprocess.run(
        [*command, "--seconds", "60", "--out", tmp_path],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert time.monotonic() - start < 60
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"summary.md"}
    text = (tmp_path / "summary.md").read_text()
    assert done.stdout.endswith(text + "\n")
    assert "failed" not in text  # some may have been stopped at their limits


@pytest.mark.slow
def test_tables_go_on_with_what_the_last_call_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "SMALL_TABLES", (("table5", "--arms", "neither", "--seeds", "0"),))
    monkeypatch.setattr(device, "age", lambda: 0)  # this process is older
    store, first, second = (tmp_path / name for name in ("store", "first", "second"))
    options = ["--store", str(store), "--device", "cpu", "--tables", "--tiny", "--seconds", "300"]
    assert device.main(["--out", str(first), *options]) == 0
    summary = (first / "summary.md").read_text()
    assert "  finished" in summary and "neither: 1 to have, 0 there" in summary
    assert "# Table 5: DCKD's two losses" in summary and "| neither | " in summary
    trained = {path.name for path in (store / "runs").iterdir()}
    store.rename(tmp_path / "lost")
    store.mkdir()
    (first / "store_0.tar.gz").rename(store / "store_0.tar.gz")
    assert device.main(["--out", str(second), *options]) == 0
    assert "neither: 1 to have, 1 there" in (second / "summary.md").read_text()
    assert {path.name for path in (store / "runs").iterdir()} == trained
