"""Bad input of a training command: one line that says what was seen and expected, and a 2."""

# ruff: noqa: F811  (imported fixtures)

import pytest

pytest.importorskip("matplotlib")

import os
import subprocess
import sys
from pathlib import Path

import torch
import train_deblur
import train_sr
from PIL import Image as Pillow
from restoration import networks, resolve
from safetensors.torch import save_file
from toys import main, no_pictures, sets, small, write  # noqa: F401

from dckd_losses.weights import COMPACT

pytestmark = pytest.mark.usefixtures("no_pictures")
EXAMPLES = Path(train_sr.__file__).parent


@pytest.fixture
def refused(small, monkeypatch, capsys):
    """Run with the options changed; requires one line with these parts, before training."""

    def no_training(*args, **kwargs):
        raise AssertionError("training began")

    def refuse(args, *parts, script=train_sr):
        with monkeypatch.context() as patch:
            patch.setattr(script, "train", no_training)
            usual = small if script is train_sr else small[-2:]
            assert main(patch, script, *usual, *args) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        for part in parts:
            assert part in captured.err

    return refuse


HUGE = 10**400
BAD_OPTIONS = [
    (["--scale", 1], ["--scale must be at least 2 and at most 8, got 1"]),
    *((["--scale", value], ["--scale must be"]) for value in (-2, 1000, HUGE)),
    (["--scale", 5], ["no teacher is embedded for scale 5", "--teacher"]),
    (["--crop", 7], ["outputs of 14x14 pixels; expected 16x16 or more"]),
    (["--crop", 7, "--method", "logits"], ["14x14", "16x16"]),
    (["--crop", 60], ["train: LR of image 0 is 24x20; expected 60x60 or more"]),
    *((["--crop", value], ["crop must be at least 1"]) for value in (0, -8, 10**6)),
    *((["--iterations", value], ["iterations must be at least 1"]) for value in (0, -5, HUGE)),
    *((["--batch-size", value], ["batch_size must be at least 1"]) for value in (-1, 0, 10**9)),
    *((["--dcr-weight", value], ["--dcr-weight must be"]) for value in (-1, "nan", "inf")),
    *((["--balance", value], ["--balance must be"]) for value in (-1, "nan", "inf")),
    (["--dmm-weight", -1, "--method", "logits"], ["--dmm-weight -1.0"]),
    (["--dcr-weight", 0.2, "--method", "dmm"], ["dmm; expected --method dcr or"]),
    (["--dmm-weight", 0.2, "--method", "dcr"], ["dcr; expected --method dmm or"]),
    (["--dcr-weight", 0, "--method", "scratch"], ["--dcr-weight 0.0 for --method scratch"]),
    (
        ["--balance", 0.3, "--method", "logits"],
        ["got --balance 0.3 for --method logits; expected --method dcr or dmm or dckd"],
    ),
    *((["--seed", value], ["--seed must be at least 0"]) for value in (-1, 2**32, HUGE)),
    *(([f"--{name}-every", 0], [f"--{name}-every must be at least 1"]) for name in ("val", "save")),
    *((["--memory", value], ["--memory must be"]) for value in (-1, "nan", "inf")),
    *((["--workers", value], ["--workers must be"]) for value in (-1, 10**5)),
    (["--gradient-accumulation", 0], ["--gradient-accumulation must be at least 1, got 0"]),
    (["--gradient-accumulation", 3], ["batch of 1 crops", "a multiple of 3"]),
    (["--encoder", "vqgan"], ["unknown encoder 'vqgan': expected one of compact"]),
    (["--encoder", "no/such.ckpt"], ["such.ckpt: no such file"]),
    (["--encoder", ""], ["is a folder"]),
    (["--teacher", ""], ["is a folder"]),
    (["--teacher", "no.safetensors"], ["no.safetensors: no such file"]),
    (["--teacher-network", "net.py:Net"], ["--teacher-network without --teacher; expected both"]),
    (["--teacher", "a.pth", "--teacher-network", "edsr"], ["got network edsr; expected package."]),
    (["--recipe", "paper"], ["got --recipe paper for tiny; expected one of swinir"]),
    (["--output", "/proc/new"], ["/proc/new: "]),
    (["--output", "x" * 300], ["xxx"]),
]


@pytest.mark.parametrize(("args", "parts"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_options(refused, args, parts):
    refused(args, *parts)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--backbone", "nafnet-student"], "invalid choice: 'nafnet-student'"),  # another task's
        *((["--iterations", word], "invalid int value") for word in ("1.5", "None", "1e3")),
        *(([name, ""], f"{name}: got an empty path") for name in ("--data", "--val", "--output")),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_what_no_option_takes(small, monkeypatch, capsys, args, said):
    with pytest.raises(SystemExit, match="2"):
        main(monkeypatch, train_sr, *small, *args)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_data_folders(refused, sets, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(["--data", tmp_path / "empty"], "empty: found no image")
    refused(["--val", tmp_path / "empty"], "empty: found no image")
    refused(["--data", sets / "train" / "0.png"], "0.png: found a file")
    bad = tmp_path / "cut" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes((sets / "train" / "0.png").read_bytes()[:400])
    refused(["--data", bad.parent], str(bad), "--skip-bad")
    refused(["--val", sets / "val"], "val twice; expected each set once")
    write(tmp_path / "x3" / "HR" / "a.png", 12, 12, 0)
    lr = write(tmp_path / "x3" / "LR_bicubic" / "X2" / "a.png", 4, 4, 0)
    refused(["--data", tmp_path / "x3"], f"{lr} is 16x16; expected 24x24 for scale 2")


def test_images_of_one_size(refused, tmp_path):
    Pillow.new("RGB", (64, 64)).save(tmp_path / "a.png")
    refused(["--crop", 8], "outputs of 8x8 pixels; expected 16x16 or more", script=train_deblur)
    path = ["--data", tmp_path / "a.png"]
    refused(path, "a.png: found a file; expected a folder", script=train_deblur)
    refused(["--backbone", "nafnet-student"], "no embedded teacher", script=train_deblur)
    small = ["--data", tmp_path, "--crop", 65]
    refused(small, f"error: {tmp_path}: image a is 64x64; expected 65x65", script=train_deblur)


def test_images_too_small_to_be_scored(refused, small, sets, tmp_path, monkeypatch):
    """Before the training, not in its middle."""
    path = tmp_path / "few" / "a.png"
    path.parent.mkdir()
    for side, script, seen in (
        (5, train_sr, f"{path}: 5x5 pixels; scoring needs 16x16 or more (SSIM takes 11x11 inside"),
        (15, train_sr, f"{path}: 15x15 pixels; scoring needs 16x16 or more"),
        (10, train_deblur, f"{path}: 10x10 pixels; scoring needs 11x11 or more (SSIM takes 11x11)"),
    ):
        Pillow.new("RGB", (side, 40)).save(path)
        seen = seen.replace(f"{side}x{side} pixels", f"{side}x40 pixels")
        for memory in (4, 0):
            line = ["--data", sets / "train", "--val", path.parent, "--memory", memory]
            refused([*line, "--method", "scratch", "--crop", 16], seen, script=script)
    Pillow.new("RGB", (16, 16)).save(path)
    line = [*small, "--method", "scratch", "--val", path.parent]
    assert main(monkeypatch, train_sr, *line) == 0


def test_weights_that_are_cut_or_altered(refused, tmp_path):
    for option, source in (("--teacher", train_sr.TEACHERS[2]), ("--encoder", COMPACT)):
        data = bytearray(source.read_bytes())
        path = tmp_path / "weights.safetensors"
        path.write_bytes(data[: len(data) // 2])
        refused([option, path], str(path))
        data[20] ^= 0xFF
        path.write_bytes(data)
        refused([option, path], str(path))


def test_networks_that_do_not_fit(refused, tmp_path):
    path = tmp_path / "teacher.safetensors"
    networks.save(networks.build("tiny", 3), path)
    refused(["--teacher", path], f"{path}: a network for x3; expected one for x2")
    broken = networks.build("tiny", 2)
    torch.nn.init.constant_(broken.head.weight, torch.nan)
    networks.save(broken, path)
    refused(["--teacher", path], f"{path}: this teacher's output is not finite")
    refused(["--teacher", path, "--method", "logits"], "not finite")
    save_file({"weight": torch.ones(1)}, path)
    refused(["--teacher", path], str(path), "spandrel")
    refused(["--encoder", path], str(path))


def test_the_papers_students_need_the_papers_teachers(refused, paper_networks):
    refused(["--backbone", "rcan-student"], "expected rcan-teacher for x2 by --teacher")
    swinir = ["--backbone", "swinir-student", "--teacher"]
    refused([*swinir, train_sr.TEACHERS[2]], "expected swinir-teacher for x2, 11,752,487")
    refused([*swinir, "swinir-x4"], "swinir-x4 is swinir-teacher for x4")
    refused([*swinir, "swinir"], "swinir: no such file; expected a file or a URL or swinir-x2\n")


def test_output_is_a_file(refused, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept", encoding="utf-8")
    for output in (path, path / "below", path / "far" / "below"):
        refused(["--output", output], f"--output: {path} is a file; expected a folder or nothing")
    assert path.read_text(encoding="utf-8") == "kept"
    for name in resolve.WRITTEN:
        (tmp_path / name).mkdir()
        refused(["--output", tmp_path], f"{name} is a folder; expected a file or nothing")
        (tmp_path / name).rmdir()


def test_networks_are_opened_before_the_data_and_nothing_is_written(refused, tmp_path):
    absent = ["--data", tmp_path / "absent"]
    refused([*absent, "--encoder", "vqgan"], "unknown encoder")
    refused([*absent, "--teacher", "no.safetensors"], "no.safetensors")
    refused([*absent, "--dcr-weight", -1], "--dcr-weight")
    refused([*absent, "--output", tmp_path / "new"], "absent")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, AssertionError])
def test_a_bug_keeps_its_traceback(small, monkeypatch, error):
    def buggy(*args, **kwargs):
        raise error("a bug")

    monkeypatch.setattr(train_sr, "open_pairs", buggy)
    with pytest.raises(error, match="a bug"):
        main(monkeypatch, train_sr, *small)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped: the same command with --resume goes on from there"),
        (OSError(28, "No space left on device", "a.png"), 2, "error: a.png: No space left on dev"),
        (OSError("a.png cannot be written"), 2, "error: a.png cannot be written"),
        (MemoryError("for an array"), 2, "error: out of memory, smaller crops or batches take les"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: nobody reads what this command prints"),
    ],
)
def test_what_the_machine_does_is_one_line(small, monkeypatch, capsys, error, status, said):
    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(train_sr, "train", failing)
    assert main(monkeypatch, train_sr, *small) == status
    captured = capsys.readouterr().err
    assert captured.startswith(said)
    assert captured.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "stopped"),
        (ModuleNotFoundError("No module named 'accelerate'"), "'accelerate': run pip install -e "),
        (TypeError("a bug"), "TypeError: a bug"),
    ],
)
def test_what_ends_a_script_in_its_imports(error, said, capsys):
    sys.excepthook(type(error), error, None)
    captured = capsys.readouterr().err
    assert said in captured
    assert captured.count("\n") == 1


def test_checkpoints_of_other_settings_and_altered_ones(small, sets, tmp_path, monkeypatch, capsys):
    line = [*small, "--method", "logits"]
    assert main(monkeypatch, train_sr, *line) == 0
    written = (tmp_path / "config.yaml").read_text()
    teacher = tmp_path / "teacher.safetensors"
    networks.save(networks.build("tiny", 2), teacher)
    for change, seen in (
        (["--seed", 1], "seed was 0, is 1"),
        (["--iterations", 9], "iterations was 3, is 9"),
        (["--crop", 9], "crop was 8, is 9"),
        (["--method", "scratch"], "method was logits, is scratch"),
        (["--method", "dcr", "--dcr-weight", 0.5], "dcr_weight was 0.1, is 0.5"),
        (["--mixed-precision", "bf16"], "precision was no, is bf16"),
        (["--data", sets / "val"], "is of a run with other data: "),
        (["--teacher", teacher], "teacher was crc32"),
    ):
        capsys.readouterr()
        assert main(monkeypatch, train_sr, *line, "--resume", *change) == 2
        stderr = capsys.readouterr().err
        assert stderr.startswith(f"error: {tmp_path / 'checkpoint.pt'} is of a run")
        assert seen in stderr
        assert stderr.count("\n") == 1
        assert (tmp_path / "config.yaml").read_text() == written
    embedded = ["--teacher", train_sr.TEACHERS[2], "--encoder", "unused"]
    assert main(monkeypatch, train_sr, *line, "--resume", *embedded) == 0  # by another name
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    changed = bytearray(saved)
    changed[len(changed) // 2] ^= 1
    for broken in (saved[: len(saved) // 2], saved[:-1], b"", changed):
        (tmp_path / "checkpoint.pt").write_bytes(broken)
        capsys.readouterr()
        assert main(monkeypatch, train_sr, *line, "--resume") == 2
        stderr = capsys.readouterr().err
        assert f"error: {tmp_path / 'checkpoint.pt'}: cut short, altered" in stderr
        assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "kept"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_threads_sleep_while_they_wait_unless_told_otherwise(given, kept):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    line = "import os, restoration; print(os.environ['OMP_WAIT_POLICY'])"
    said = subprocess.check_output(
        [sys.executable, "-c", line], env=environment, cwd=EXAMPLES, text=True
    )
    assert said.strip() == kept
