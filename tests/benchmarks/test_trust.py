"""What is tried is counted right: what is survived, what is refused well, and what fails."""

import json
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import trust
from benchmarks.trust import Reader, Row

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.mark.parametrize(
    ("read", "told", "expected"),
    [
        (lambda path: {"x": torch.ones(2)}, "", "survived"),
        (lambda path: {"x": torch.zeros(2)}, "", "other values in silence"),
        (lambda path: {"x": torch.zeros(2)}, None, "survived"),
        (lambda path: {"x": torch.zeros(2)}, "a digest", "survived"),
        (lambda path: {"x": torch.zeros(2)}, "content", "other values in silence"),
        (lambda path: int(path.name), "", "refused"),
        (lambda path: int("x"), "", "ValueError: invalid literal"),
        (lambda path: {}[path.name], "", "KeyError: 'file'"),
        (lambda path: [][1], "", "IndexError"),
    ],
)
def test_endings_of_reading(read, told, expected, tmp_path):
    path = tmp_path / "file"
    path.write_text("content")
    assert Reader("file", None, read, told).ending(path, {"x": torch.ones(2)}).startswith(expected)


def test_readers_read_what_they_write(tmp_path):
    for reader in (*trust.READERS, trust.ENCODER):
        reader.write(tmp_path / reader.name)
        expected = reader.read(tmp_path / reader.name)
        if reader.told is not None:
            assert reader.ending(tmp_path / reader.name, expected) == "survived"


def test_files_are_damaged_in_many_ways_and_again_alike():
    data = bytes(range(256)) * 8
    draws = (random.Random(1), random.Random(1))
    first, again = ([trust.damaged(data, draw) for _ in range(200)] for draw in draws)
    assert first == again
    assert sum(each != data for each in first) > 180
    lengths = [len(each) for each in first]
    assert min(lengths) < len(data) < max(lengths)
    trust.damaged(b"", random.Random(0))


def test_steps_grow_where_they_do(monkeypatch):
    monkeypatch.setattr(trust, "SLOWER", 100)
    (row,) = trust.steps(SimpleNamespace(steps=5), None)
    assert (row.tried, row.survived, row.failed) == (5, 5, [])
    monkeypatch.setattr(trust, "GROWTH", -(1 << 40))
    (row,) = trust.steps(SimpleNamespace(steps=5), None)
    assert row.failed == ["finite: True; counters [5, 5]"]


def test_failures_are_listed_and_end_with_1(tmp_path, monkeypatch, capsys):
    row = Row("something", 3, 1, 1, [])
    row.note("survived", "here")
    row.note("KeyError: 'x'", "byte 3")
    monkeypatch.setitem(trust.PARTS, "files", lambda args, folder: iter([row]))
    path = tmp_path / "trust.json"
    assert trust.main(["--only", "files", "--json", str(path)]) == 1
    assert "| something | 5 | 2 | 1 | 1 |\nbyte 3: KeyError: 'x'" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert {"command", "commit", "device", "torch"} <= content.keys()
    assert content["rows"][0]["failed"] == ["byte 3: KeyError: 'x'"]
    assert path.with_suffix(".md").read_text().endswith("\n- something, byte 3: KeyError: 'x'\n")


def test_a_command_gets_its_signal():
    line = [sys.executable, "-uc", "import time; print('on'); time.sleep(60)"]
    assert trust.run(line, 0.01, signal.SIGTERM)[0] is None
    assert trust.run([sys.executable, "-c", "raise SystemExit('said')"]) == (1, "said\n")


def test_kills_are_compared_with_what_was_not_killed(tmp_path, monkeypatch):
    """Also those of a run that was done before its next signal; a traceback is no good ending."""
    codes = iter([0, None, None, 0, 0, None, 0, 0, None, 0])
    said = iter(["", "", "Traceback", *[""] * 7])
    content = iter(["straight", "straight", "other", "straight"])

    def run(line, limit=None, sent=None):
        code = next(codes)
        line[-1].mkdir(exist_ok=True)
        if limit is None:  # to its end
            (line[-1] / "student.safetensors").write_text(next(content))
        return code, next(said)

    monkeypatch.setattr(trust, "run", run)
    monkeypatch.setattr(trust, "SCRIPTS", {"sr": 8})
    (row,) = trust.kills(SimpleNamespace(kills=4), tmp_path)
    assert (row.tried, row.survived) == (4, 2)
    assert row.failed[0].endswith("s: ...Traceback")
    assert row.failed[1].endswith("s: the run then ended otherwise")


@posix
@pytest.mark.slow
def test_the_parts_in_miniature(tmp_path):
    path = tmp_path / "trust.json"
    said = "--only steps kills files fuzz --kills 3 --steps 60 --minutes 0.1 --json"
    command = [sys.executable, "-m", "benchmarks.trust", *said.split(), str(path)]
    subprocess.run(command, cwd=trust.ROOT, check=False, timeout=500)
    rows = {row["what"]: row for row in json.loads(path.read_text())["rows"]}
    kills = [row for what, row in rows.items() if what.startswith("kills")]
    assert [(row["tried"], row["survived"]) for row in kills] == [(1, 1)] * 3
    assert rows["compact.safetensors, one bit flipped"]["refused"] == 201
    damaged = [row for what, row in rows.items() if what.endswith("at random")]
    assert len(damaged) == len(trust.READERS) and sum(row["tried"] for row in damaged) > 250


@posix
@pytest.mark.long
def test_bad_servers(tmp_path):
    path = tmp_path / "trust.json"
    assert trust.main(["--only", "servers", "--json", str(path)]) == 0
    teacher, encoder = json.loads(path.read_text())["rows"]
    assert (teacher["survived"], teacher["refused"], encoder["refused"]) == (2, 5, 5)
