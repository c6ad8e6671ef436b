"""The small training, and what `gradients` and `precision` say of it."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks import gradients, precision

ROOT = Path(__file__).parents[2]
WAYS = ["float32, plain", "float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def steps():
    return precision.make_steps(2, 2, 16)


@pytest.fixture(scope="module")
def rows(steps):
    return precision.measure("compact", steps, torch.device("cpu"))


def test_every_student_term_and_precision_has_a_row(rows, steps):
    labels = [(r["encoder"], r["student"], r["term"], r["precision"]) for r in rows]
    students, terms = ["trained", "closer"], ["DCR", "DMM", "both"]
    assert labels == list(product(["compact"], students, terms, WAYS))
    assert precision.table(rows).count("| compact |") == len(labels)
    assert len(steps) == 2 == len(rows[0]["cosines"])
    assert all(0 < precision.apart(step) < 255 for step in steps)


def test_the_closer_student_is_another_one(rows):
    half = len(rows) // 2
    for far, near in zip(rows[:half], rows[half:], strict=True):
        assert far["cosines"] != near["cosines"]


def test_the_worst_is_not_better_than_the_median(rows):
    for row in rows:
        assert -1 <= row["cosine_worst"] <= row["cosine"] <= 1 + 1e-12
        assert 0 < row["rel_l2"] <= row["rel_l2_worst"]
        assert 0 <= row["loss_rel"] <= row["loss_rel_worst"]
        assert row["cosine_worst"] == min(row["cosines"])


def test_float32_is_closest_to_float64_and_bfloat16_farthest(rows):
    for start in range(0, len(rows), len(WAYS)):
        plain, full, half, brain = (r["rel_l2"] for r in rows[start : start + len(WAYS)])
        assert max(plain, full) < half < brain


def test_the_small_training_learns_and_its_history_follows():
    training = gradients.SmallTraining(55, seed=1)
    before = [p.clone() for p in training.student.parameters()]
    training.train(50)
    assert training.history.iteration == 50
    moved = dict(training.history.model.named_parameters())
    for (name, now), then in zip(training.student.named_parameters(), before, strict=True):
        assert not torch.equal(now, then)
        torch.testing.assert_close(moved[name], 0.1 * then + 0.9 * now)  # updated at step 50
    assert len(list(training.batches)) == 5


def test_gradients_have_a_row_for_every_term(monkeypatch):
    monkeypatch.setattr(gradients, "BATCHES", 1)
    rows = gradients.measure("compact", [0, 2], seed=0)
    assert [(row["step"], row["term"]) for row in rows] == [
        (step, term) for step in (0, 2) for term in ("l1", "dcr", "dmm", "dmm released")
    ]
    assert rows[0]["norm_over_l1"] == 1
    assert all(row["norm_over_l1"] > 0 for row in rows)
    assert gradients.table(rows).count("\n") == 1 + len(rows)


@pytest.mark.slow
def test_both_commands_write_what_they_print(tmp_path):
    sizes = ["--encoders", "compact", "--crops", "2", "--side", "32", "--steps", "2"]
    commands = {
        "precision": ["benchmarks.precision", *sizes, "--device", "cpu"],
        "gradients": ["benchmarks.gradients", "--steps", "0"],
    }
    for name, command in commands.items():
        path = tmp_path / f"{name}.json"
        full = [sys.executable, "-m", *command, "--json", path]
        done = subprocess.run(full, cwd=ROOT, check=True, capture_output=True, text=True)
        content = json.loads(path.read_text())
        assert {"device", "torch", "commit", "threads", "command"} <= content.keys()
        assert content["command"].startswith(f"python -m benchmarks.{name}")
        last = content["rows"][-1]
        assert f"| {last['term']} |" in done.stdout.splitlines()[-1]
