"""Training an encoder, in seconds: what it writes is an encoder, as sharp as was asked for."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dckd_losses import VQGANEncoder
from dckd_losses.weights.files import read_safetensors

SCRIPT = Path(__file__).parents[2] / "examples" / "train_encoder.py"


OPTIONS = ["--iterations", "8", "--warm-up", "3", "--codes", "20", "--nats", "1.5"]


def start(data: Path, output: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, "--data", data, "--output", output, *OPTIONS, *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("encoder")
    rng = np.random.default_rng(0)
    for i in range(14):
        noise = rng.integers(0, 256, (100 + i, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 130)).save(folder / f"{i:02}.png")
    path = folder / "out" / "encoder.safetensors"
    done = start(folder, path)
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout[done.stdout.rindex("{") : done.stdout.rindex("}") + 1])


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


def test_no_steps_give_a_control_of_random_weights(
    trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    path = tmp_path / "random.safetensors"
    options = ["--iterations", "0", "--channels", "64", "32", "32", "32", "96", "--blocks", "2"]
    done = start(trained[0].parents[1], path, *options)
    assert done.returncode == 0, done.stderr
    encoder = VQGANEncoder.from_pretrained(path)
    assert encoder.network.architecture.channels == (64, 32, 32, 32, 96)
    assert encoder.network.architecture.blocks == 2
    logits = encoder(torch.rand(4, 3, 96, 96))[1]
    entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()
    assert entropy.item() == pytest.approx(1.5, abs=0.5)


def test_resumes_to_the_same_encoder(
    trained: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script, data = importlib.import_module("train_encoder"), trained[0].parents[1]
    output = tmp_path / "encoder.safetensors"

    def save_and_stop(*args: object) -> None:
        save(*args)
        raise KeyboardInterrupt

    save = script.save
    monkeypatch.setattr(script, "save", save_and_stop)
    options = ["--data", str(data), "--output", str(output), *OPTIONS]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    assert script.main() == 130
    assert not output.exists()
    other = start(data, output, "--resume", "--codes", "21")
    assert other.returncode == 2
    assert "codes was 20, is 21" in other.stderr
    assert start(data, output, "--resume").returncode == 0
    (seen, facts), (expected, wanted) = map(read_safetensors, (output, trained[0]))
    assert facts == wanted  # with a sha256 of the tensors
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--channels", "32", "32", "48", "64", "64"], "channel counts [48] are not multiples"),
        (["--data", "nowhere"], "nowhere: found nothing; expected a folder"),
    ],
)
def test_refuses_in_one_line(
    trained: tuple[Path, dict[str, float]], tmp_path: Path, options: list[str], said: str
) -> None:
    done = start(trained[0].parents[1], tmp_path / "x.safetensors", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
