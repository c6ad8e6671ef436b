"""The precisions' benchmark runs, says with what, and puts the precisions in order."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WAYS = ["float32, plain", "float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("precision") / "precision.json"
    sizes = ["--encoders", "compact", "--crops", "2", "--side", "48", "--steps", "2"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.precision", *sizes, "--device", "cpu", "--json", path],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_every_student_term_and_precision_has_a_row(report):
    content, markdown = report
    assert {"device", "torch", "commit", "threads", "tf32", "command", "apart"} <= content.keys()
    labels = [(r["encoder"], r["student"], r["term"], r["precision"]) for r in content["rows"]]
    students, terms = ["trained", "closer"], ["DCR", "DMM", "both"]
    assert labels == list(product(["compact"], students, terms, WAYS))
    assert markdown.count("| compact |") == len(labels)
    assert len(content["apart"]) == 2 == len(content["rows"][0]["cosines"])


def test_the_worst_is_not_better_than_the_median(report):
    for row in report[0]["rows"]:
        assert -1 <= row["cosine_worst"] <= row["cosine"] <= 1 + 1e-12
        assert 0 < row["rel_l2"] <= row["rel_l2_worst"]
        assert 0 <= row["loss_rel"] <= row["loss_rel_worst"]
        assert row["cosine_worst"] == min(row["cosines"])


def test_float32_is_closest_to_float64_and_bfloat16_farthest(report):
    rows = report[0]["rows"]
    for start in range(0, len(rows), len(WAYS)):
        plain, full, half, brain = (r["rel_l2"] for r in rows[start : start + len(WAYS)])
        assert max(plain, full) < half < brain
