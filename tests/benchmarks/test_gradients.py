"""What `gradients` and `precision` say of a small training."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gradients, precision
from examples.restoration import networks

ROOT = Path(__file__).parents[2]
WAYS = ["float32, plain", "float32", "float16", "bfloat16"]


def test_every_student_term_and_precision_has_a_row():
    steps = precision.make_steps(2, 2, 16)
    rows = precision.measure("compact", steps, torch.device("cpu"))
    labels = [(r["encoder"], r["student"], r["term"], r["precision"]) for r in rows]
    students, terms = ["trained", "closer"], ["DCR", "DMM", "both"]
    assert labels == list(product(["compact"], students, terms, WAYS))
    assert precision.table(rows).count("| compact |") == len(labels)
    assert all(0 < precision.apart(step) < 255 for step in steps)
    for row in rows:
        assert len(row["cosines"]) == 2 and min(row["cosines"]) == row["cosine_worst"]
        assert -1 <= row["cosine_worst"] <= row["cosine"] <= 1 + 1e-12
        assert 0 < row["rel_l2"] <= row["rel_l2_worst"]
        assert 0 <= row["loss_rel"] <= row["loss_rel_worst"]
    half = len(rows) // 2
    for far, near in zip(rows[:half], rows[half:], strict=True):
        assert far["cosines"] != near["cosines"]  # the closer student is another one
    for start in range(0, len(rows), len(WAYS)):
        plain, full, half, brain = (r["rel_l2"] for r in rows[start : start + len(WAYS)])
        assert max(plain, full) < half < brain


def noise(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        lq = torch.rand(2, 3, 16, 16, generator=generator)
        yield lq, 0.5 * lq.roll(1, 3)


def test_the_small_training_learns_and_its_history_follows():
    student = networks.build("tiny", 2)
    batches = ((lq, lq.repeat(1, 1, 2, 2)) for lq, _ in noise(55))
    training, before = (
        gradients.SmallTraining(batches, student),
        list(map(torch.clone, student.parameters())),
    )
    training.train(50)
    assert training.history.iteration == 50
    moved = dict(training.history.model.named_parameters())
    for (name, now), then in zip(student.named_parameters(), before, strict=True):
        assert not torch.equal(now, then)
        torch.testing.assert_close(moved[name], 0.1 * then + 0.9 * now)  # updated at step 50
    assert len(list(batches)) == 5


def test_the_mean_of_noisy_gradients_finds_the_direction_that_one_does_not():
    def terms(out, teacher_out, lq, target):
        error, random = (out - target).square().mean(), torch.randn(out.shape, generator=draws)
        values = {"l1": (out - target).abs().mean(), "error": error, "noise": (out * random).mean()}
        return values | {"mixed": values["noise"] + 0.02 * error}

    draws = torch.Generator().manual_seed(2)
    torch.manual_seed(0)
    training = gradients.SmallTraining(noise(48), nn.Conv2d(3, 3, 3, padding=1), nn.Identity())
    rows = gradients.look(training, terms, noise(48), 48)
    found = {row.pop("term"): row for row in rows}
    assert found["l1"]["norm_over_l1"] == 1
    assert abs(found["l1"]["weights_cosine_beyond_l1"]) < 1e-3
    assert found["error"]["cosine_with_error"] > 0.999 < found["error"]["weights_cosine"]
    assert abs(found["noise"]["weights_cosine_one"]) < 0.3
    assert found["mixed"]["weights_cosine"] > 2 * found["mixed"]["weights_cosine_one"]
    assert found["error"]["weights_cosine_error"] < 0.01 < found["noise"]["weights_cosine_error"]


@pytest.mark.parametrize("data", [[], ["--budget", "smoke"]])
def test_gradients_have_a_row_for_every_term(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradients, "SMALL", replace(gradients.SMALL, batch_size=1, crop=8))
    path = tmp_path / "gradients.json"
    gradients.main([*data, "--steps", "0", "2", "--batches", "2", "--json", str(path)])
    content = json.loads(path.read_text())
    assert {"command", "device", "torch", "commit", "threads", "seed"} <= content.keys()
    rows = {(row["step"], row["term"]): row for row in content["rows"]}
    assert len(rows) == 2 * 15
    for term in ("l1", "l2", "dcr", "dmm", "dmm released", "dcr, mix", "dcr, level 4"):
        for row in (rows[0, term], rows[2, term]):
            assert row["norm_over_l1"] > 0 and -1 <= row["weights_cosine"] <= 1
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)


@pytest.mark.slow
def test_precision_writes_what_it_prints(tmp_path):
    path = tmp_path / "precision.json"
    sizes = ["--encoders", "compact", "--crops", "2", "--side", "32", "--steps", "2"]
    command = [sys.executable, "-m", "benchmarks.precision", *sizes, "--device", "cpu"]
    done = subprocess.run([*command, "--json", path], cwd=ROOT, check=True, capture_output=True)
    content = json.loads(path.read_text())
    assert {"device", "torch", "commit", "threads", "command"} <= content.keys()
    assert content["command"].startswith("python -m benchmarks.precision")
    table = path.with_suffix(".md").read_text()
    assert table.count("| compact |") == len(content["rows"]) and table in done.stdout.decode()
