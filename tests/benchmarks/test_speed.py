"""The released way computes the same loss, and the benchmarks' commands run and say so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import baselines, released
from dckd_losses import DCKDLoss
from dckd_losses.network import build

ROOT = Path(__file__).parents[2]
KEYS = {
    "way", "impl", "mode", "precision", "batch", "size", "negatives", "ms_median", "ms_iqr",
    "saved_mb", "peak_mb", "grad_cos",
}  # fmt: skip


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip


def test_released_way_is_the_same_loss(encoder, tensors, images):

    student, teacher = images(2, 2, 3, 33, 24, dtype=torch.float64)
    negatives = images(5, 2, 3, 33, 24, dtype=torch.float64)
    network = build(tensors).double()
    x, y = (student.clone().requires_grad_() for _ in range(2))
    seen = released.loss(network, 2 * x - 1, 2 * teacher - 1, 2 * negatives - 1, 0.1, 0.03)
    dckd = DCKDLoss(nn.Identity(), encoder, dmm_weight=0.03, negatives=lambda lq: negatives)
    expected = dckd.double()(y, teacher, teacher)
    seen.backward()
    expected.backward()
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-14)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("speed") / "speed.json"
    command(
        "benchmarks.speed", "--sizes", "1x48", "--rounds", 1, "--device", "cpu", "--negatives", 5,
        "--students", "tiny", "--rivals", "tiny", "--step-size", "2x32", "--json", path,
    )  # fmt: skip
    return json.loads(path.read_text()), path


def test_speed_reports_every_way(report):
    content, path = report
    assert {"device", "torch", "commit", "threads", "command", "rows"} <= content.keys()
    losses = [row for row in content["rows"] if row["student"] is None]
    assert len(losses) == 6 == path.with_suffix(".md").read_text().count("| 1x48x48 |")
    for row in losses:
        assert row.keys() >= KEYS
        assert row["ms_median"] > 0
        assert row["grad_cos"] > (0.999 if row["precision"] == "float32" else 0.95)
    assert path.with_suffix(".png").read_bytes()[1:4] == b"PNG"


def test_speed_reports_whole_steps(report):
    steps = {row["mode"]: row for row in report[0]["rows"] if row["student"] == "tiny"}
    assert steps.keys() == {"released", "stream", "twopass"} | baselines.METHODS.keys()
    assert steps["scratch"]["ms_median"] < steps["csd"]["ms_median"]
    assert all(row.keys() >= KEYS for row in steps.values())
    assert steps["logits"]["ms_median"] < steps["stream"]["ms_median"]
    assert steps["stream"]["peak_mb"] < steps["released"]["peak_mb"]


def test_the_fused_path_saves_an_eighth(report):
    """Exact and independent of the machine's load, unlike the times beside it."""
    rows = [row for row in report[0]["rows"] if row["precision"] == "float32"]
    saved = {row["mode"]: row["saved_mb"] for row in rows if row["student"] is None}
    assert saved["released"] > 8 * saved["stream"]
    assert saved["released"] > 1000 * saved["twopass, chunk 1"]


def test_gradients_reports_every_term(tmp_path):
    path = tmp_path / "gradients.json"
    done = command("benchmarks.gradients", "--steps", 0, 2, "--json", path)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["step"], row["term"]) for row in rows] == [
        (step, term) for step in (0, 2) for term in ("l1", "dcr", "dmm", "dmm released")
    ]
    assert rows[0]["norm_over_l1"] == 1
    assert all(row["norm_over_l1"] > 0 for row in rows)
    assert done.stdout.count("\n") == 2 + len(rows)
