"""Training an encoder, in seconds: what it writes is an encoder, as sharp as was asked for."""

import json
import subprocess

import numpy as np
import pytest
import torch
from conftest import CANNOT_IMPORT
from PIL import Image
from toys import main

from dckd_losses import VQGANEncoder
from dckd_losses.weights.files import read_safetensors

pytest.importorskip("vector_quantize_pytorch", exc_type=CANNOT_IMPORT)

import train_encoder

OPTIONS = ["--iterations", "4", "--warm-up", "2", "--codes", "20", "--nats", "1.5"]
OPTIONS += ["--cells", "36"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(14):
        noise = rng.integers(0, 256, (100 + i, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 130)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def train(data, monkeypatch, capsys):
    """The command within this process."""
    monkeypatch.setattr(train_encoder, "FIRST_CELLS", 72)
    monkeypatch.setattr(train_encoder, "FIRST_BATCHES", 4)

    def run(output, *options):
        args = ["--data", data, "--output", output, *OPTIONS, *options]
        status = main(monkeypatch, train_encoder, *args)
        return subprocess.CompletedProcess(args, status, *capsys.readouterr())

    return run


def test_it_writes_an_encoder_and_says_what_it_measured(train, tmp_path):
    path = tmp_path / "out" / "encoder.safetensors"
    done = train(path, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"no checkpoint in {path.parent}: starting anew\n" in done.stdout
    encoder = VQGANEncoder.from_pretrained(path)
    levels, logits = encoder(torch.rand(1, 3, 48, 64))
    assert [level.shape[1] for level in levels] == [32, 32, 64, 64, 128]
    assert logits.shape == (1, 20, 3, 4)
    assert levels[4].isfinite().all()
    facts = json.loads(done.stdout[done.stdout.rindex("{") : done.stdout.rindex("}") + 1])
    assert (facts["train_images"], facts["held_out_images"]) == (12, 2)
    assert 1 <= facts["perplexity"] <= 20
    assert facts["entropy"] == pytest.approx(1.5, abs=0.3)
    assert facts["psnr"] > 5
    _, metadata = read_safetensors(path)
    assert metadata["iterations"] == "4"
    assert float(metadata["perplexity"]) == pytest.approx(facts["perplexity"])


def test_no_steps_give_a_control_of_random_weights(train, tmp_path):
    path = tmp_path / "random.safetensors"
    options = ["--iterations", "0", "--channels", "64", "32", "32", "32", "96", "--blocks", "2"]
    assert train(path, *options).returncode == 0
    encoder = VQGANEncoder.from_pretrained(path)
    assert encoder.network.architecture.channels == (64, 32, 32, 32, 96)
    assert encoder.network.architecture.blocks == 2
    logits = encoder(torch.rand(4, 3, 96, 96))[1]
    entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()
    assert entropy.item() == pytest.approx(1.5, abs=0.5)


@pytest.mark.slow
def test_it_resumes_to_the_same_encoder(train, tmp_path, monkeypatch):
    straight, output = (tmp_path / f"{name}.safetensors" for name in ("straight", "encoder"))
    assert train(straight).returncode == 0
    assert train(straight).returncode == 0  # whose checkpoint does not replace the first
    assert (tmp_path / "straight.checkpoint.old-4.pt").exists()

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    save = train_encoder.save
    with monkeypatch.context() as patch:
        patch.setattr(train_encoder, "save", save_and_stop)
        assert train(output).returncode == 130
    assert not output.exists()
    other = train(output, "--resume", "--codes", "21")
    assert other.returncode == 2
    assert "codes was 20, is 21" in other.stderr
    resumed = train(output, "--resume")
    assert (resumed.returncode, "no checkpoint" in resumed.stdout) == (0, False)
    (seen, facts), (expected, wanted) = map(read_safetensors, (output, straight))
    assert facts == wanted  # with a sha256 of the tensors
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--channels", "32", "32", "48", "64", "64"], "channel counts [48] are not multiples"),
        (["--channels", "0", "32", "32", "32", "32"], "--channels must be at least 32"),
        (["--data", "nowhere"], "nowhere: found nothing; expected a folder"),
        (["--seed", "-1"], "--seed must be at least 0 and at most 4294967295, got -1"),
        *(([name, "-1"], f"{name} must be at least") for name in ("--iterations", "--warm-up")),
        *(([name, "0"], f"{name} must be at least") for name in ("--codes", "--blocks", "--cells")),
        *(([name, "nan"], f"{name} must be above 0") for name in ("--lr", "--nats")),
        (["--nats", "9"], "--nats must be above 0 and below 2.99"),
        (["--output", "x.pth"], "got --output x.pth; expected a file *.safetensors"),
        (["--output", f"{__file__}/x.safetensors"], "test_train_encoder.py is a file; expected a"),
    ],
)
def test_refusals_are_one_line(train, tmp_path, options, said):
    done = train(tmp_path / "x.safetensors", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_shows_each_default_once(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(monkeypatch, train_encoder, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for option in text.split("options:")[1].split(" --")[1:]:
        assert option.count("default:") <= 1, option
    assert "None" not in text
