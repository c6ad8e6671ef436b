"""Deblurring and deraining as a user runs them: photographs by default, and real pairs."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import train_deblur
import train_derain
from accelerate.state import AcceleratorState
from PIL import Image as Pillow
from restoration import networks
from restoration.data.images import photographs
from restoration.data.synthetic import matlab_bicubic
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPTS = {"deblur": train_deblur, "derain": train_derain}
LAYOUTS = {"deblur": ("blur", "sharp"), "derain": ("input", "target")}
tasks = pytest.mark.parametrize("task", list(SCRIPTS))


def main(monkeypatch: pytest.MonkeyPatch, script: ModuleType, *args: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, args)])
    status: int = script.main()
    return status


def write_pairs(root: Path, task: str, count: int = 2) -> Path:
    for seed in range(count):
        rng = np.random.default_rng(seed)
        image = matlab_bicubic(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8), 4)
        noisy = np.clip(image + rng.normal(0, 9, image.shape), 0, 255).astype(np.uint8)
        for kind, pixels in zip(LAYOUTS[task], (noisy, image), strict=True):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(pixels).save(root / kind / f"{seed}.png")
    return root


def weights(folder: Path) -> dict[str, bytes]:
    """The student's weights, to the bit."""
    tensors = load_file(folder / "student.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@tasks
def test_the_embedded_teacher_restores(task: str) -> None:
    """On photographs that it never saw; what its card says is measured at length."""
    from restoration.data.datasets import pairs_from_images
    from restoration.results.evaluation import evaluate

    script = SCRIPTS[task]
    assert script.TASK.teachers[1].stat().st_size < 700_000
    teacher = networks.load(script.TASK.teachers[1])
    assert (teacher.channels, teacher.blocks, teacher.scale) == (32, 8, 1)
    degradation = {"deblur": "camera_motion", "derain": "rain"}[task]
    corner = {"cat": photographs("held_out")["chelsea"][:160, :160]}
    pairs = pairs_from_images(corner, 1, getattr(script, degradation))
    scores = [evaluate(model, pairs, 1, task=task)["psnr"] for model in (None, teacher)]
    assert scores[1] > scores[0] + {"deblur": 0.5, "derain": 5}[task]


@tasks
def test_photographs_by_default(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run of everything: 12 steps and the same table, pictures and curves as for SR."""
    few = photographs("held_out")
    small = {name: image[:96, :96] for name, image in few.items()}
    monkeypatch.setattr("restoration.command.photographs", lambda split: small)
    line = ["--iterations", 12, "--batch-size", 1, "--crop", 32, "--seed", 3]
    assert main(monkeypatch, SCRIPTS[task], *line, "--output", tmp_path) == 0
    names = "checkpoint.pt curves.png log.json metrics.json side_by_side.png student.safetensors"
    assert {path.name for path in tmp_path.iterdir()} == set(names.split())
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    val = metrics.pop("val")["photographs"]
    facts = {"task": task, "scale": 1, "method": "dckd", "iterations": 12, "seed": 3}
    assert metrics == facts
    assert list(val) == ["input", "student", "teacher"]
    assert val["teacher"]["psnr"] > val["input"]["psnr"]
    captured = capsys.readouterr()
    where = {"deblur": "in RGB", "derain": "on Y"}[task]
    recipe, table = captured.out.split(f"PSNR (dB) and SSIM {where}")
    assert table.splitlines()[0].split() == ["input", "student", "teacher"]
    losses = "l1 + kd + 0.1 dcr + 0.001 dmm, balanced to 0.3,"
    for fact in (losses, "tiny", "154,924", "crops of 32x32"):
        assert fact in recipe
    student = networks.load(tmp_path / "student.safetensors")
    assert student.tail.weight.abs().max() > 0


@tasks
def test_pairs_on_disk_and_resuming(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "set", task)
    line = ["--data", data, "--val", data, "--method", "logits", "--batch-size", 1, "--crop", 16]
    line += ["--iterations", 4]
    states = []
    for memory in (1, 0):  # in memory, and read by processes that are ahead
        out = tmp_path / str(memory)
        more = ["--output", out, "--memory", memory]
        assert main(monkeypatch, SCRIPTS[task], *line, *more) == 0
        states.append(weights(out))
    assert states[0] == states[1]
    assert main(monkeypatch, SCRIPTS[task], *line, "--output", out, "--memory", 0, "--resume") == 0
    assert weights(out) == states[0]
    broken = data / LAYOUTS[task][0] / "0.png"
    broken.write_bytes(broken.read_bytes()[:300])
    capsys.readouterr()
    assert main(monkeypatch, SCRIPTS[task], *line, "--output", tmp_path / "x", "--memory", 0) == 2
    stderr = capsys.readouterr().err
    assert f"error: {broken}: cannot be read as an image" in stderr.splitlines()[-1]


@tasks
def test_what_is_made_of_images_without_pairs_is_said(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "set", task)
    alone = write_pairs(tmp_path / "plain", task) / LAYOUTS[task][1]
    monkeypatch.setattr("restoration.command.train", lambda *args, **kwargs: None)
    monkeypatch.setattr("restoration.command.finish", lambda *args: None)
    line = ["--method", "scratch", "--crop", 16, "--output", tmp_path / "out", "--data", data]
    done = {"deblur": "blurred", "derain": "rained on"}[task]
    for val, said in ((data, []), (alone, [f"no pairs in {alone}: its images are {done}"])):
        assert main(monkeypatch, SCRIPTS[task], *line, "--val", val) == 0
        out = capsys.readouterr().out
        assert [text.strip() for text in out.splitlines() if "no pairs" in text] == said


@pytest.mark.skipif("DCKD_DATA" not in os.environ, reason="DCKD_DATA (real images) is not set")
@pytest.mark.parametrize(
    ("task", "folder"), [("derain", "derain/Rain100L_dev"), ("deblur", "deblur/REDS_mini")]
)
def test_real_pairs(
    task: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(os.environ["DCKD_DATA"], folder)
    line = ["--data", data / "train", "--val", data / "val", "--output", tmp_path]
    line += ["--iterations", 30, "--batch-size", 2, "--method", "scratch"]
    assert main(monkeypatch, SCRIPTS[task], *line) == 0
    log = json.loads((tmp_path / "log.json").read_text(encoding="utf-8"))
    scores = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["val"]["val"]
    assert scores["student"]["psnr"] > scores["input"]["psnr"] - 0.5
    assert log[-1]["psnr"] == pytest.approx(scores["student"]["psnr"], abs=1e-3)


@pytest.mark.usefixtures("paper_networks")
@pytest.mark.parametrize("name", ["nafnet-student", "restormer-student"])
def test_the_papers_networks_by_the_same_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    data = write_pairs(tmp_path / "set", "deblur")
    teacher = tmp_path / "teacher.safetensors"
    networks.save(networks.build(name.replace("student", "teacher"), 1), teacher)
    line = ["--data", data, "--val", data, "--backbone", name, "--teacher", teacher]
    line += ["--iterations", 2, "--crop", 16, "--output", tmp_path / "out", "--method", "logits"]
    line += ["--batch-size", 1, "--gradient-checkpointing"]
    assert main(monkeypatch, train_deblur, *line) == 0
    student = networks.load(tmp_path / "out" / "student.safetensors")
    assert (student.backbone, student.scale) == (name, 1)
    assert "adamw" in capsys.readouterr().out  # its small recipe


class TestOptions:
    @pytest.fixture
    def refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Any:
        def refuse(args: list[object], *parts: str) -> None:
            monkeypatch.setattr("restoration.command.train", None)  # training would fail
            assert main(monkeypatch, train_deblur, "--output", tmp_path, *args) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("error: ")
            assert captured.err.count("\n") == 1
            for part in parts:
                assert part in captured.err

        return refuse

    def test_refusals(self, refused: Any, tmp_path: Path) -> None:
        Pillow.new("RGB", (64, 64)).save(tmp_path / "a.png")
        refused(["--recipe", "paper"], "got --recipe paper for tiny; expected one of swinir")
        refused(["--crop", 8], "outputs of 8x8 pixels; expected 16x16 or more")
        refused(["--gradient-accumulation", 0], "--gradient-accumulation 0; expected 1 or more")
        refused(["--gradient-accumulation", 3], "batch of 8 crops", "a multiple of 3")
        refused(["--workers", -1], "got --workers -1; expected 0 or more")
        refused(["--data", tmp_path / "a.png"], "a.png: found a file; expected a folder")
        refused(["--backbone", "nafnet-student"], "no embedded teacher")
        refused(["--backbone", "swinir-student"], "got scale 1 for swinir-student; expected 2")

    def test_a_papers_recipe_is_printed_in_full(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = write_pairs(tmp_path / "set", "derain")
        monkeypatch.setattr("restoration.command.train", lambda *args, **kwargs: None)
        monkeypatch.setattr("restoration.command.finish", lambda *args: None)
        monkeypatch.setattr("restoration.command.open_teacher", lambda *args: None)
        line = ["--data", data, "--val", data, "--recipe", "paper", "--method", "scratch"]
        line += ["--backbone", "restormer-student", "--output", tmp_path / "out"]
        assert main(monkeypatch, train_derain, *line) == 0
        said = capsys.readouterr().out
        for fact in (
            *("300,000 of 64 crops of 128x128", "40 crops of 160x160", "8 crops of 384x384"),
            *("at 92,000", "at 276,000", "adamw, betas (0.9, 0.999), weight decay 0.0001"),
            *("clipped to 0.01", "0.0003, constant for 92,000 steps, then by a cosine"),
        ):
            assert fact in said
        assert len(said.splitlines()) <= 20
        assert max(map(len, said.splitlines())) <= 110 + len(str(tmp_path))
