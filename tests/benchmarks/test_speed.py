"""The released way computes the same loss, and what is measured of all ways is right."""

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import common, released, speed
from benchmarks.speed import PATHS, Bench, Spec
from dckd_losses import DCKDLoss

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_released_way_is_the_same_loss(encoder, tensors, images):
    student, teacher = images(2, 2, 3, 33, 24, dtype=torch.float64)
    negatives = images(5, 2, 3, 33, 24, dtype=torch.float64)
    network = {name: tensor.double() for name, tensor in tensors.items()}
    x, y = (student.clone().requires_grad_() for _ in range(2))
    seen = released.loss(network, 2 * x - 1, 2 * teacher - 1, 2 * negatives - 1, 0.1, 0.03)
    dckd = DCKDLoss(
        nn.Identity(), encoder, dmm_weight=0.03, balance=None, negatives=lambda lq: negatives
    )
    expected = dckd.double()(y, teacher, teacher)
    seen.backward()
    expected.backward()
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-14)


@pytest.fixture(scope="module")
def rows():
    specs = [*speed.all_specs(CPU, ["bfloat16"])[0], Spec("stream", graph=True)]
    return Bench("2x24", 5, CPU, encoder="compact").rows(specs, 1)


def test_every_way_has_a_row(rows):
    *measured, graph = rows
    names = ["released", "plain", "stream", "stream, chunk 1", "twopass, chunk 1", "stream"]
    assert [row["mode"] for row in measured] == names
    for row in measured:
        assert row["ms_median"] > 0 and row["ms_iqr"] >= 0
        assert row["peak_mb"] > row["saved_mb"] / 2
        assert row["grad_cos"] > (0.999 if row["precision"] == "float32" else 0.9)
    assert graph["skipped"] == "needs a CUDA device" and "ms_median" not in graph


def test_the_fused_path_saves_an_eighth(rows):
    """Exact and independent of the machine's load, unlike the times beside it."""
    saved = {r["mode"]: r["saved_mb"] for r in rows[:-1] if r["precision"] == "float32"}
    assert saved["released"] > 8 * saved["stream"]
    assert saved["released"] > 40 * saved["twopass, chunk 1"]  # which keeps images only


def test_saved_bytes_are_those_that_backward_needs():
    weight = nn.Parameter(torch.ones(1000))

    def way(x):
        dropped = (x * x).exp()  # keeps its input and output for a backward that nobody can do
        return ((x * weight).sin() + dropped.detach()).sum()

    assert common.saved(way, torch.zeros(1000)) == 2 * 4 * 1000  # x and sine's input, no weight


def test_a_gpu_has_the_main_ways_in_every_precision_and_as_graphs():
    eager, graphs = speed.all_specs(torch.device("cuda"), ["tf32", "float16", "bfloat16"])
    four = ("float32", "tf32", "float16", "bfloat16")
    main = {(m, p) for m in ("released", "plain", "stream") for p in four}
    assert {(s.mode, s.precision) for s in graphs} == main and all(s.graph for s in graphs)
    others = {(s.mode, s.precision) for s in eager if not s.graph} - main
    modes = ("stream, chunk 1", "twopass, chunk 1", "stream, torch's norms")
    assert others == {(m, p) for m in modes for p in ("tf32", "float16")}
    (norms,) = {s.triton_norms for s in eager if s.mode == "stream, torch's norms"}
    assert not norms


def test_the_table_compares_with_the_released_way(rows):
    base = {**rows[0], "mode": "released", "ms_median": 100.0, "precision": "tf32"}
    half = {**base, "precision": "float16", "ms_median": 50.0}
    ours = {**base, "mode": "stream", "ms_median": 25.0, "saved_mb": None}
    lines = speed.table([{**base, "precision": "float32"}, base, half, ours, rows[-1]]).splitlines()
    assert "| tf32 | 100 (" in lines[3] and " | 2.00 | " in lines[4] and " | 4.00 |  | " in lines[5]
    assert "stream, graph (needs a CUDA device)" in lines[6]


def test_turns_alternate_and_summaries_are_medians():
    calls = []

    def job(name):
        calls.append(name)
        return 3.0 + len(calls)

    times = common.in_turns({name: partial(job, name) for name in "ab"}, 3)
    assert "".join(calls) == "ababab"
    assert common.summary(times["a"])["ms_median"] == 6.0


def test_out_of_memory_is_a_row_and_no_end(monkeypatch):
    bench = Bench("1x32", 2, CPU, truth=False, encoder="compact")

    def fails(x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 76 GiB")

    plain = bench.way
    monkeypatch.setattr(bench, "way", lambda spec: fails if spec.mode == "big" else plain(spec))
    big, small = bench.rows([Spec("big"), Spec("stream")], 1)
    assert big["skipped"] == "CUDA out of memory" and small["ms_median"] > 0


def test_tf32_is_put_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with common.tf32(not before[0]):
        assert torch.backends.cudnn.allow_tf32 == (not before[0])
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_provenance(monkeypatch, tmp_path):
    facts = common.machine(CPU)
    assert (facts["commit"] != "unknown") == (common.ROOT / ".git").exists()
    assert facts["device"].startswith("CPU, ")
    common._output.cache_clear()
    monkeypatch.setattr(common, "ROOT", tmp_path)  # no clone
    monkeypatch.setenv("DCKD_COMMIT", "abc1234")
    assert common.commit() == "abc1234"
    common._output.cache_clear()
    common.write_json(tmp_path / "x" / "y.json", {"a": [1.5, math.nan], "b": math.inf})
    assert json.loads((tmp_path / "x" / "y.json").read_text()) == {"a": [1.5, None], "b": None}


@pytest.mark.slow
def test_the_command_reports_losses_and_whole_steps(tmp_path):
    path = tmp_path / "speed.json"
    command = [
        sys.executable, "-m", "benchmarks.speed", "--sizes", "1x32", "--rounds", "1", "--device",
        "cpu", "--negatives", "5", "--students", "tiny", "--step-size", "2x32",
        "--precisions", "float32", "bfloat16", "--compiled", "--json", path,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    content = json.loads(path.read_text())
    assert {"device", "torch", "commit", "threads", "command"} <= content.keys()
    *losses, compiled = [row for row in content["rows"] if row["student"] is None]
    assert compiled["mode"] == f"plain, compiled ({speed.MODES[-1]})" and "skipped" in compiled
    losses = losses[:6]
    assert [row["mode"] for row in losses if row["precision"] == "float32"] == ["released", *PATHS]
    assert path.with_suffix(".md").read_text().count("| 1x32x32 |") == 6 + 4
    steps = {row["mode"]: row for row in content["rows"] if row["student"] == "tiny"}
    assert list(steps) == ["released", "logits", "stream", "twopass"]
    assert steps["logits"]["ms_median"] < steps["stream"]["ms_median"]
    assert steps["stream"]["peak_mb"] < steps["released"]["peak_mb"]
