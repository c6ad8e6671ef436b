"""Bad input of a training command: one line that says what was seen and expected, and a 2."""

import pytest

pytest.importorskip("matplotlib")

import torch
import train_deblur
import train_sr
from PIL import Image as Pillow
from restoration import networks
from safetensors.torch import save_file
from toys import main, no_pictures, options, write  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for seed in range(2):
        write(folder / "train" / f"{seed}.png", 10 + seed, 12, seed)
    write(folder / "val" / "a.png", 10, 11, 8)
    return folder


@pytest.fixture
def small(sets, tmp_path):
    """Options of a run that takes a moment."""
    data = {"data": sets / "train", "val": sets / "val", "output": tmp_path}
    return options(iterations=3, batch_size=1, crop=8, **data)


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


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--scale", 1], ["got --scale 1; expected 2 or more"]),
        (["--scale", -2], ["got --scale -2; expected 2 or more"]),
        (["--scale", 5], ["no teacher is embedded for scale 5", "--teacher"]),
        (["--crop", 7], ["outputs of 14x14 pixels; expected 16x16 or more"]),
        (["--crop", 7, "--method", "logits"], ["14x14", "16x16"]),
        (["--crop", 0], ["crop 0; expected 1 or more"]),
        (["--crop", 60], ["train: LR of image 0 is 24x20; expected 60x60 or more"]),
        (["--iterations", 0], ["iterations 0; expected 1 or more"]),
        (["--batch-size", -1], ["batch_size -1; expected 1 or more"]),
        (["--dcr-weight", -1], ["--dcr-weight -1.0; expected 0 or more"]),
        (["--dmm-weight", "nan"], ["--dmm-weight nan; expected 0 or more"]),
        (["--dmm-weight", -1, "--method", "logits"], ["--dmm-weight -1.0"]),
        (["--dcr-weight", 0.2, "--method", "dmm"], ["dmm; expected --method dcr or"]),
        (["--dmm-weight", 0.2, "--method", "dcr"], ["dcr; expected --method dmm or"]),
        (["--dcr-weight", 0, "--method", "scratch"], ["--dcr-weight 0.0 for --method scratch"]),
        (
            ["--balance", 0.3, "--method", "logits"],
            ["got --balance 0.3 for --method logits; expected --method dcr or dmm or dckd"],
        ),
        (["--balance", -1], ["got --balance -1.0; expected 0 or more"]),
        (["--seed", -1], ["got --seed -1; expected 0 to 4294967295"]),
        (["--encoder", "vqgan"], ["unknown encoder 'vqgan': expected one of compact"]),
        (["--encoder", "no/such.ckpt"], ["such.ckpt: no such file"]),
        (["--teacher", "no.safetensors"], ["no.safetensors: no such file"]),
        (
            ["--teacher", "swinir-x2"],
            ["got --teacher swinir-x2 for tiny", "--backbone swinir-student or swinir-light:"],
        ),
        (["--teacher", "https://a/b.pth"], ["b.pth for tiny", "or rcan-student or nafnet"]),
        (["--recipe", "paper"], ["got --recipe paper for tiny; expected one of swinir"]),
        (["--gradient-accumulation", 0], ["--gradient-accumulation 0; expected 1 or more"]),
        (["--gradient-accumulation", 3], ["batch of 1 crops", "a multiple of 3"]),
        (["--workers", -1], ["got --workers -1; expected 0 or more"]),
    ],
)
def test_options(refused, args, parts):
    refused(args, *parts)


def test_another_tasks_network(small, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(monkeypatch, train_sr, *small, "--backbone", "nafnet-student")
    assert "invalid choice: 'nafnet-student'" in capsys.readouterr().err


def test_data_folders(refused, sets, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(["--data", tmp_path / "empty"], "empty: found no image")
    refused(["--val", tmp_path / "empty"], "empty: found no image")
    refused(["--data", sets / "train" / "0.png"], "0.png: found a file")
    refused(["--val", sets / "val"], "val, val; expected different names")
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


def test_images_too_small_to_be_scored(refused, small, tmp_path, monkeypatch):
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
            refused(["--val", path.parent, "--memory", memory], seen, script=script)
    Pillow.new("RGB", (16, 16)).save(path)
    line = [*small, "--method", "scratch", "--val", path.parent]
    assert main(monkeypatch, train_sr, *line) == 0


def test_a_truncated_image_is_named_and_may_be_skipped(refused, small, tmp_path, monkeypatch):
    good = write(tmp_path / "data" / "good.png", 10, 10, 0)
    bad = good.with_name("bad.png")
    bad.write_bytes(good.read_bytes()[:400])
    refused(["--data", bad.parent], str(bad), "--skip-bad")
    line = [*small, "--method", "scratch", "--data", bad.parent, "--skip-bad"]
    assert main(monkeypatch, train_sr, *line) == 0


def test_weights_that_are_cut_or_altered(refused, tmp_path):
    from dckd_losses.weights import COMPACT

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
    refused(["--teacher", path], f"{path}: a network for x3; expected x2")
    broken = networks.build("tiny", 2)
    torch.nn.init.constant_(broken.head.weight, torch.nan)
    networks.save(broken, path)
    refused(["--teacher", path], f"{path}: this teacher's output is not finite")
    refused(["--teacher", path, "--method", "logits"], "not finite")
    save_file({"weight": torch.ones(1)}, path)
    refused(["--teacher", path], str(path), "metadata")
    refused(["--encoder", path], str(path))


def test_the_papers_students_need_the_papers_teachers(refused, paper_networks):
    refused(["--backbone", "rcan-student"], "expected rcan-teacher for x2 by --teacher")
    swinir = ["--backbone", "swinir-student", "--teacher"]
    refused([*swinir, train_sr.TEACHERS[2]], "expected swinir-teacher for x2, 11,752,487")
    refused([*swinir, "swinir-x4"], "swinir-x4 is swinir-teacher for x4")
    refused([*swinir, "swinir"], "swinir: no such file, nor one of swinir-x2")


def test_output_is_a_file(refused, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept", encoding="utf-8")
    for output in (path, path / "below", path / "far" / "below"):
        refused(["--output", output], f"--output: {path} is a file; expected a folder or nothing")
    assert path.read_text(encoding="utf-8") == "kept"


def test_nothing_is_written_before_the_input_is_known_to_be_good(refused, tmp_path):
    refused(["--output", tmp_path / "new", "--crop", 60], "60x60")
    assert not (tmp_path / "new").exists()


def test_networks_are_opened_before_the_data(refused, tmp_path):
    absent = ["--data", tmp_path / "absent"]
    refused([*absent, "--encoder", "vqgan"], "unknown encoder")
    refused([*absent, "--teacher", "no.safetensors"], "no.safetensors")
    refused([*absent, "--dcr-weight", -1], "--dcr-weight")


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, AssertionError])
def test_a_bug_keeps_its_traceback(small, monkeypatch, error):
    def buggy(*args, **kwargs):
        raise error("a bug")

    monkeypatch.setattr(train_sr, "open_pairs", buggy)
    with pytest.raises(error, match="a bug"):
        main(monkeypatch, train_sr, *small)


def test_ctrl_c_outside_the_training_says_how_to_go_on(small, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_sr, "open_pairs", interrupted)
    assert main(monkeypatch, train_sr, *small) == 130
    said = capsys.readouterr().err
    assert said == "stopped: the same command with --resume goes on from there\n"


def test_checkpoints_of_other_settings_and_altered_ones(small, sets, tmp_path, monkeypatch, capsys):
    line = [*small, "--method", "logits"]
    assert main(monkeypatch, train_sr, *line) == 0
    teacher = tmp_path / "teacher.safetensors"
    networks.save(networks.build("tiny", 2), teacher)
    for change, seen in (
        (["--seed", 1], "seed was 0, is 1"),
        (["--iterations", 9], "iterations was 3, is 9"),
        (["--crop", 9], "crop was 8, is 9"),
        (["--method", "scratch"], "method was logits, is scratch"),
        (["--method", "dcr", "--dcr-weight", 0.5], "dcr_weight was 0.1, is 0.5"),
        (["--mixed-precision", "bf16"], "precision was no, is bf16"),
        (["--data", sets / "val"], "data was crc32"),
        (["--teacher", teacher], "teacher was crc32"),
    ):
        capsys.readouterr()
        assert main(monkeypatch, train_sr, *line, "--resume", *change) == 2
        stderr = capsys.readouterr().err
        assert stderr.startswith(f"error: {tmp_path / 'checkpoint.pt'} is of a run")
        assert seen in stderr
        assert stderr.count("\n") == 1
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
