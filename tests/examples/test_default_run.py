"""The three default runs at their full length: minutes for each seed, so outside CI (`-m long`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.parametrize("task", ["sr", "deblur", "derain"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_student_gains_half_a_decibel(task: str, seed: int, tmp_path: Path) -> None:
    script = f"examples/train_{task}.py"
    command = [sys.executable, script, "--seed", str(seed), "--output", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    scores = json.loads((tmp_path / "metrics.json").read_text())["val"]["photographs"]
    assert scores["student"]["psnr"] >= scores["input"]["psnr"] + 0.5
    assert scores["student"]["ssim"] > scores["input"]["ssim"]
