"""Evaluation in Python and on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from restoration.backbones import build, save
from restoration.data import load_pairs, pairs_from_images
from restoration.degrade import matlab_bicubic
from restoration.evaluation import evaluate, restore
from restoration.metrics import protocol, psnr, ssim
from torch import nn

ROOT = Path(__file__).parents[2]


def smooth(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return matlab_bicubic(small, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Pillow.fromarray(smooth(seed)).save(path)
    return tmp_path / "set"


def command(*args: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "examples/evaluate.py", "--task", "sr", *map(str, args)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


class Nearest(nn.Module):
    """Doubles by repetition; keeps what it was run with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.frozen = nn.Dropout(0.5).eval()
        self.drop = nn.Dropout(0.5)

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        self.seen = lq
        out = self.drop(self.frozen(lq)) * self.weight
        return out.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_restore_is_the_network_in_eval_mode_without_gradient() -> None:
    model = Nearest()
    lq = smooth(0)
    np.testing.assert_array_equal(restore(model, lq), lq.repeat(2, axis=0).repeat(2, axis=1))
    assert model.seen.dtype == torch.float64
    assert model.seen.shape == (1, 3, 40, 48)


def test_restore_puts_each_mode_back() -> None:
    model = Nearest()
    restore(model, smooth(0))
    assert model.training
    assert model.drop.training
    assert not model.frozen.training


def test_evaluate_is_the_metrics_of_each_image_and_their_mean() -> None:
    pairs = pairs_from_images({"a": smooth(0), "b": smooth(1)}, 2)
    scores = evaluate(Nearest(), pairs, 2)
    assert list(scores["images"]) == ["a", "b"]
    for (name, lq, hq), score in zip(pairs, scores["images"].values(), strict=True):
        output = lq.repeat(2, axis=0).repeat(2, axis=1)
        assert score["psnr"] == psnr(output, hq, protocol("sr", 2)), name
        assert score["ssim"] == ssim(output, hq, protocol("sr", 2)), name
    for key in ("psnr", "ssim"):
        mean = np.mean([score[key] for score in scores["images"].values()])
        assert scores[key] == pytest.approx(mean, rel=1e-12)


def test_evaluate_refuses_what_it_cannot_score() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        evaluate(None, [], 2)
    pairs = pairs_from_images({"a": smooth(0)}, 4)
    with pytest.raises(ValueError, match=r"output \(20, 24, 3\); expected .*\(40, 48, 3\)"):
        evaluate(Nearest(), pairs, 4)


def test_command_prints_and_writes_the_scores(folder: Path, tmp_path: Path) -> None:
    report, images = tmp_path / "out" / "scores.json", tmp_path / "images"
    done = command(
        *("--scale", 2, "--model", "bicubic", "--data", folder),
        *("--json", report, "--save-images", images),
    )
    assert done.returncode == 0, done.stderr
    scores = evaluate(None, load_pairs(folder, 2), 2)
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written == {"task": "sr", "scale": 2, "model": "bicubic", **scores}
    mean = done.stdout.splitlines()[-1].split()
    assert mean == ["mean", f"{scores['psnr']:.2f}", f"{scores['ssim']:.4f}"]
    for pair in load_pairs(folder, 2):
        saved = np.asarray(Pillow.open(images / f"{pair.name}.png"))
        np.testing.assert_array_equal(saved, matlab_bicubic(pair.lq, 2))


def test_command_runs_a_saved_network_of_the_right_scale_only(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(build("tiny", 2), path)
    assert command("--scale", 2, "--model", path, "--data", folder).returncode == 0
    refused(
        command("--scale", 3, "--model", path, "--data", folder),
        "net.safetensors: a network for x2; expected one for x3",
    )


def test_command_reports_bad_input_without_a_traceback(folder: Path, tmp_path: Path) -> None:
    bicubic = ("--scale", 2, "--model", "bicubic", "--data")
    refused(command(*bicubic, tmp_path / "absent"), "absent: found nothing; expected a folder")
    refused(
        command("--scale", 2, "--model", tmp_path / "no.safetensors", "--data", folder),
        "no.safetensors: no such file",
    )
    half = folder / "half.png"
    half.write_bytes((folder / "a.png").read_bytes()[:300])
    refused(command(*bicubic, folder), "half.png", "--skip-bad")
    skipped = command(*bicubic, folder, "--skip-bad")
    assert skipped.returncode == 0
    assert "half.png" in skipped.stderr
    assert "half" not in skipped.stdout


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr


@pytest.mark.skipif("DCKD_DATA" not in os.environ, reason="DCKD_DATA (real images) is not set")
@pytest.mark.parametrize(
    ("scale", "decibels", "similarity"),
    [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)],
)
def test_bicubic_on_set5_is_the_published_number(
    tmp_path: Path, scale: int, decibels: float, similarity: float
) -> None:
    set5 = Path(os.environ["DCKD_DATA"], "sr", "Set5")
    report = tmp_path / "scores.json"
    done = command("--scale", scale, "--model", "bicubic", "--data", set5, "--json", report)
    assert done.returncode == 0, done.stderr
    scores = json.loads(report.read_text(encoding="utf-8"))
    assert len(scores["images"]) == 5
    assert scores["psnr"] == pytest.approx(decibels, abs=0.02)
    assert scores["ssim"] == pytest.approx(similarity, abs=0.001)
