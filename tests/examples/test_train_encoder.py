"""Training an encoder, in seconds: what it writes is an encoder, as sharp as was asked for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dckd_losses import VQGANEncoder
from dckd_losses.checkpoint import read_safetensors

SCRIPT = Path(__file__).parents[2] / "examples" / "train_encoder.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("encoder")
    rng = np.random.default_rng(0)
    for i in range(14):
        noise = rng.integers(0, 256, (100 + i, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 130)).save(folder / f"{i:02}.png")
    path = folder / "out" / "encoder.safetensors"
    options = ["--iterations", "8", "--warm-up", "4", "--codes", "20", "--nats", "1.5"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--data", folder, "--output", path, *options],
        check=True,
        capture_output=True,
        text=True,
    )
    return path, json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])


def test_writes_an_encoder(trained: tuple[Path, dict[str, float]]) -> None:
    encoder = VQGANEncoder.from_pretrained(trained[0])
    levels, logits = encoder(torch.rand(1, 3, 48, 64))
    assert [level.shape[1] for level in levels] == [32, 32, 64, 64, 128]
    assert logits.shape == (1, 20, 3, 4)
    assert levels[4].isfinite().all()


def test_says_what_it_measured(trained: tuple[Path, dict[str, float]]) -> None:
    path, facts = trained
    assert (facts["train_images"], facts["held_out_images"]) == (12, 2)
    assert 1 <= facts["perplexity"] <= 20
    assert facts["entropy"] == pytest.approx(1.5, abs=0.3)
    assert facts["psnr"] > 5
    _, metadata = read_safetensors(path)
    assert metadata["iterations"] == "8"
    assert float(metadata["perplexity"]) == pytest.approx(facts["perplexity"])
