"""Encoders' cost and gain, by the command."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from dckd_losses.weights.registry import COMPACT


def frontier(folder, *options):
    command = [sys.executable, "-m", "benchmarks.frontier", "--budget", "smoke", "--seeds", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "1", "--output", folder / "frontier", *options],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip


def test_encoders_side_by_side(tmp_path):
    tensors = load_file(COMPACT)
    other = tmp_path / "other.safetensors"
    save_file({name: 0.5 * tensor for name, tensor in tensors.items()}, other)
    done = frontier(tmp_path, "--encoders", "compact", str(other), "--student", "small")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "frontier.json").read_text())
    assert content["student, teacher"] == "small, small"
    rows = content["encoders"]
    assert content["command"].startswith("python -m benchmarks.frontier --budget smoke")
    assert list(rows) == ["compact", "other"]
    for row in rows.values():
        assert row["parameters"] == sum(tensor.numel() for tensor in tensors.values())
        assert row["ms"] > 0
        assert len(row["gains"]["photographs"]) == 2
    assert rows["compact"]["gains"] != rows["other"]["gains"]
    text = (tmp_path / "frontier.md").read_text()
    mean = sum(rows["other"]["gains"]["photographs"]) / 2
    assert f"| {mean:+.3f} ± " in text
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("encoders", "said"),
    [
        (["compact", "compact"], "got encoders compact, compact; expected different names"),
        (["nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_refuses_in_one_line(tmp_path, encoders, said):
    done = frontier(tmp_path, "--encoders", *encoders)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
