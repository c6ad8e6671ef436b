"""The main example as a user runs it: results, interruptions, several processes, bad input."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import restoration.command
import torch
import train_sr
from accelerate.state import AcceleratorState
from PIL import Image as Pillow
from restoration import networks
from restoration.command import DECISIVE, METHODS, WEIGHTS
from restoration.data.synthetic import matlab_bicubic
from restoration.training import checkpoint
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SCRIPT = [sys.executable, "examples/train_sr.py"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def write(path: Path, height: int, width: int, seed: int) -> Path:
    small = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(matlab_bicubic(small, 4)).save(path)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small training and validation sets."""
    folder = tmp_path_factory.mktemp("sets")
    for seed in range(3):
        write(folder / "train" / f"{seed}.png", 10 + seed, 12, seed)
    write(folder / "val" / "a.png", 10, 11, 8)
    write(folder / "val" / "b.png", 11, 10, 9)
    return folder


@pytest.fixture
def small(sets: Path, tmp_path: Path) -> list[str]:
    """Options of a run that takes a moment."""
    return options(
        data=sets / "train", val=sets / "val", iterations=3, batch_size=1, crop=8, output=tmp_path
    )


def options(**chosen: object) -> list[str]:
    return [
        part for key, value in chosen.items() for part in (f"--{key.replace('_', '-')}", str(value))
    ]


def command(
    *args: object, launcher: Sequence[str] = SCRIPT[:1]
) -> subprocess.CompletedProcess[str]:
    line = [*launcher, SCRIPT[1], *map(str, args)]
    return subprocess.run(
        line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120
    )


@contextmanager
def started(
    *args: object, launcher: Sequence[str] = SCRIPT[:1]
) -> Iterator["subprocess.Popen[str]"]:
    line = [*launcher, SCRIPT[1], *map(str, args)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        line, cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(lines: Any, text: str) -> None:
    """Read a pipe up to a line that contains a text."""
    seen = []
    for line in lines:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


def main(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """The script within this process."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run
    monkeypatch.setattr(sys, "argv", ["train_sr.py", *map(str, args)])
    return train_sr.main()


def weights(folder: Path) -> dict[str, bytes]:
    """The student's weights, to the bit."""
    tensors = load_file(folder / "student.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results") / "deep" / "run"


@pytest.fixture(scope="module")
def done(sets: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A run by default but for its size; its results are in `folder`."""
    return command(
        *options(data=sets / "train", val=sets / "val", iterations=12, batch_size=1, crop=8),
        *options(seed=3, output=folder),
    )


class TestResults:
    def test_it_ends_well_and_writes_every_file(
        self, done: "subprocess.CompletedProcess[str]", folder: Path
    ) -> None:
        assert done.returncode == 0, done.stderr
        names = "checkpoint.pt curves.png log.json metrics.json side_by_side.png"
        assert {path.name for path in folder.iterdir()} == {*names.split(), "student.safetensors"}
        for picture in ("curves.png", "side_by_side.png"):
            assert min(Pillow.open(folder / picture).size) > 200

    def test_metrics_are_exactly_these(
        self, done: "subprocess.CompletedProcess[str]", folder: Path
    ) -> None:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        val = metrics.pop("val")
        facts = {"task": "sr", "scale": 2, "method": "dckd", "iterations": 12, "seed": 3}
        assert metrics == facts
        assert list(val) == ["val"]
        assert list(val["val"]) == ["input", "student", "teacher"]
        for score in val["val"].values():
            assert list(score) == ["psnr", "ssim"]
            assert 10 < score["psnr"] < 60
            assert 0 < score["ssim"] < 1

    @pytest.mark.parametrize("who", ["input", "student", "teacher"])
    def test_evaluate_agrees_and_needs_nothing_else(
        self, done: object, folder: Path, sets: Path, who: str, tmp_path: Path
    ) -> None:
        files = {"input": "bicubic", "teacher": train_sr.TASK.teachers[2]}
        model = files.get(who, folder / "student.safetensors")
        out = tmp_path / "scores.json"
        line = [sys.executable, "examples/evaluate.py", "--task", "sr", "--scale", "2"]
        line += ["--model", str(model), "--data", str(sets / "val"), "--json", str(out)]
        subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
        scores = json.loads(out.read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        for key, value in metrics["val"]["val"][who].items():
            assert scores[key] == pytest.approx(value, abs=1e-6)

    def test_the_student_was_trained(self, done: object, folder: Path) -> None:
        student = networks.load(folder / "student.safetensors")
        assert student.tail.weight.abs().max() > 0

    def test_what_it_prints(self, done: "subprocess.CompletedProcess[str]", folder: Path) -> None:
        recipe, table = done.stdout.split("PSNR (dB) and SSIM on Y")
        assert len(recipe.splitlines()) <= 20
        assert max(map(len, recipe.splitlines())) <= 100 + len(str(folder))
        for fact in ("l1 + kd + 0.1 dcr", "9,492 parameters", "152,332", "compact", "seed 3"):
            assert fact in recipe
        for name in ("train", "val"):
            assert f"{name}: its images are shrunk by MATLAB's bicubic\n" in recipe
        assert table.splitlines()[0].split() == ["bicubic", "student", "teacher"]
        scores = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["val"]["val"]
        for score in scores.values():
            assert f"{score['psnr']:.2f} / {score['ssim']:.4f}" in table.splitlines()[1]

    def test_a_log_file_gets_one_line_a_validation(
        self, done: "subprocess.CompletedProcess[str]"
    ) -> None:
        assert "\r" not in done.stderr
        lines = [line for line in done.stderr.splitlines() if "left" in line]
        assert len(lines) == 12
        for part in ("12/12 ", "it/s", "left", "l1 ", "kd ", "dcr ", "dmm ", "ratio ", "psnr "):
            assert part in lines[-1]


class TestMethods:
    def test_they_differ_in_nothing_but_the_losses(
        self, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        starts, orders = [], []
        crops = restoration.command.RandomCrops.__getitem__

        def spy(self: Any, index: int) -> Any:
            orders[-1].append((index, crops(self, index)[0].sum().item()))
            return crops(self, index)

        def no_training(job: Any, *args: object, **kwargs: object) -> None:
            starts.append({name: p.clone() for name, p in job.student.state_dict().items()})
            train(job, *args, **kwargs)

        train = restoration.command.train
        monkeypatch.setattr(restoration.command.RandomCrops, "__getitem__", spy)
        monkeypatch.setattr("restoration.command.train", no_training)
        students = []
        for method in METHODS:
            orders.append([])
            assert main(monkeypatch, *small, "--method", method) == 0
            students.append(weights(tmp_path))
            log = json.loads((tmp_path / "log.json").read_text(encoding="utf-8"))
            losses = {"scratch": [], "logits": ["kd"], "dcr": ["kd", "dcr"], "dmm": ["kd", "dmm"]}
            expected = ["step", "l1", *losses.get(method, ["kd", "dcr", "dmm"]), "psnr"]
            assert list(log[0]) == expected
        assert len(orders[0]) == 3
        for start, order in zip(starts, orders, strict=True):
            assert order == orders[0]
            assert all(torch.equal(start[name], starts[0][name]) for name in starts[0])
        assert all(a != b for a, b in combinations(students, 2))

    def test_dckd_of_weight_zero_is_logits_bit_for_bit(
        self, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        students = []
        for options in (["logits"], ["dckd", "--dcr-weight", "0", "--dmm-weight", "0"]):
            assert main(monkeypatch, *small, "--method", *options) == 0
            students.append(weights(tmp_path))
        assert students[0] == students[1]

    def test_balanced_weights_share_and_the_fraction_decides(
        self, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        students = []
        fixed = [(0, 1e-3), (0, 2e-3)]  # 0 turns it off
        for balance, weight in ((0.25, 1e-3), (0.25, 2e-3), (0.5, 1e-3), *fixed):
            line = ["--method", "dmm", "--balance", balance, "--dmm-weight", weight]
            assert main(monkeypatch, *small, *line) == 0
            students.append(weights(tmp_path))
        assert students[0] == students[1]
        assert all(a != b for a, b in combinations(students[1:], 2))

    def test_a_weight_given_alone_is_fixed(
        self, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The small recipe balances, which would leave a single loss's weight without effect."""
        students = []
        for line in ([], ["--dcr-weight", 0.2], ["--dcr-weight", 0.2, "--balance", 0.3]):
            assert main(monkeypatch, *small, "--method", "dcr", *line) == 0
            students.append(weights(tmp_path))
        assert students[0] == students[2] != students[1]

    def test_the_form_of_dmm_is_the_command_lines(
        self,
        small: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        students = []
        for form in ("cross_entropy", "released"):
            assert main(monkeypatch, *small, "--method", "dmm", "--form", form) == 0
            students.append(weights(tmp_path))
            assert ("dmm as released" in capsys.readouterr().out) == (form == "released")
        assert students[0] != students[1]

    def test_the_seed_decides(
        self, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        students = []
        for seed in (0, 0, 1):
            assert main(monkeypatch, *small, "--method", "logits", "--seed", seed) == 0
            students.append(weights(tmp_path))
        assert students[0] == students[1] != students[2]

    def test_scratch_needs_no_teacher(
        self, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert main(monkeypatch, *small, "--method", "scratch", "--scale", 3) == 0
        metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
        assert list(metrics["val"]["val"]) == ["input", "student"]
        teacher = networks.load(tmp_path / "student.safetensors")
        assert teacher.scale == 3
        networks.save(teacher, tmp_path / "teacher.safetensors")
        taught = ["--method", "logits", "--scale", 3, "--teacher", tmp_path / "teacher.safetensors"]
        assert main(monkeypatch, *small, *taught) == 0


@posix
class TestInterruptions:
    @pytest.fixture
    def line(self, sets: Path) -> list[str]:
        return options(data=sets / "train", val=sets / "val", iterations=60, batch_size=1, crop=8)

    def test_any_interruption_and_resume_is_bit_identical(
        self, line: list[str], tmp_path: Path
    ) -> None:
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        assert command(*line, "--output", straight).returncode == 0
        resumed = [*line, "--output", broken, "--resume"]
        with started(*line, "--output", broken) as process:
            until(process.stdout, "output")
            process.kill()
        for number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
            with started(*resumed) as process:
                until(process.stderr, "left")
                process.send_signal(number)
                _, stderr = process.communicate()
            if number != signal.SIGKILL:
                assert process.returncode == 130
                said = [text for text in stderr.splitlines() if "left" not in text]
                assert len(said) == 1
                assert said[0].startswith("stopped after step ")
                assert "the same command with --resume" in said[0]
            assert not (broken / "metrics.json").exists()
        for _ in range(2):  # the second time with nothing left to do
            done = command(*resumed)
            assert done.returncode == 0, done.stderr
            assert weights(broken) == weights(straight)
            for name in ("metrics.json", "log.json"):
                assert (broken / name).read_bytes() == (straight / name).read_bytes(), name
            (broken / "student.safetensors").unlink()
        assert_same_state(straight, broken)

    def test_ctrl_c_outside_the_training_says_the_same(
        self, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("restoration.command.load_data", interrupted)
        assert main(monkeypatch, *small) == 130
        stderr = capsys.readouterr().err
        assert stderr == "stopped: the same command with --resume goes on from there\n"

    def test_two_processes_stop_together_when_one_is_asked_to(
        self,
        line: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        straight, broken = tmp_path / "straight", tmp_path / "broken"
        line = [*line, "--method", "dcr"]
        done = command(*line, "--output", straight, launcher=LAUNCH)
        assert done.returncode == 0, done.stderr
        assert "2 x cpu" in done.stdout
        assert done.stdout.count("output") == 1
        with started(*line, "--output", broken, launcher=LAUNCH) as process:
            until(process.stderr, "left")
            workers = sorted(psutil.Process(process.pid).children(), key=lambda p: p.pid)
            workers[-1].terminate()  # one of them alone
            process.communicate(timeout=60)
        assert (broken / "checkpoint.pt").exists()
        assert not (broken / "metrics.json").exists()
        done = command(*line, "--output", broken, "--resume", launcher=LAUNCH)
        assert done.returncode == 0, done.stderr
        assert weights(broken) == weights(straight)
        assert_same_state(straight, broken)
        capsys.readouterr()
        assert main(monkeypatch, *line, "--output", broken, "--resume") == 2
        assert "processes was 2, is 1" in capsys.readouterr().err


def assert_same_state(one: Path, other: Path) -> None:
    """Two checkpoints hold the same student, history and counters."""
    states = []
    for folder in (one, other):
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        states.append(saved["content"]["dckd"] | saved["content"]["student"])
    assert states[0]["negatives.counter"] == 60
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.usefixtures("paper_networks")
def test_the_papers_networks_by_the_same_command(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    networks.save(networks.build("swinir-teacher", 2), teacher)
    line = [*small, "--backbone", "swinir-light", "--teacher", teacher, "--iterations", 1]
    assert main(monkeypatch, *line) == 0
    student = networks.load(tmp_path / "student.safetensors")
    assert (student.backbone, student.scale) == ("swinir-light", 2)


class TestBadInput:
    @pytest.fixture
    def refused(
        self, small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Any:
        """Run with the options changed; requires one line with these parts, before training."""

        def no_training(*args: object, **kwargs: object) -> None:
            raise AssertionError("training began")

        def refuse(args: Sequence[object], *parts: str) -> None:
            with monkeypatch.context() as patch:
                patch.setattr("restoration.command.train", no_training)
                assert main(patch, *small, *args) == 2
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("error: ")
            assert captured.err.count("\n") == 1
            for part in parts:
                assert part in captured.err

        return refuse

    def test_by_subprocess_one_line_and_two(self, small: list[str], tmp_path: Path) -> None:
        done = command(*small, "--data", tmp_path / "absent")
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == (
            f"error: {tmp_path / 'absent'}: found nothing; expected a folder of images\n"
        )

    @pytest.mark.parametrize(
        ("args", "parts"),
        [
            (["--scale", 1], ["got --scale 1; expected 2 or more"]),
            (["--scale", 0], ["got --scale 0; expected 2 or more"]),
            (["--scale", -2], ["got --scale -2; expected 2 or more"]),
            (["--scale", 5], ["no teacher is embedded for scale 5", "--teacher"]),
            (["--crop", 7], ["outputs of 14x14 pixels; expected 16x16 or more"]),
            (["--crop", 7, "--method", "logits"], ["14x14", "16x16"]),
            (["--crop", 0], ["crop 0; expected 1 or more"]),
            (["--crop", 60], ["LR is 24x20; expected 60x60 or more"]),
            (["--iterations", 0], ["iterations 0; expected 1 or more"]),
            (["--batch-size", -1], ["batch_size -1; expected 1 or more"]),
            (["--dcr-weight", -1], ["--dcr-weight -1.0; expected 0 or more"]),
            (["--dmm-weight", "nan"], ["--dmm-weight nan; expected 0 or more"]),
            (["--dmm-weight", -1, "--method", "logits"], ["--dmm-weight -1.0"]),
            (
                ["--dcr-weight", 0.2, "--method", "dmm"],
                ["for --method dmm; expected --method dcr or"],
            ),
            (
                ["--dmm-weight", 0.2, "--method", "dcr"],
                ["for --method dcr; expected --method dmm or"],
            ),
            (["--dcr-weight", 0, "--method", "scratch"], ["--dcr-weight 0.0 for --method scratch"]),
            (
                ["--balance", 0.3, "--method", "logits"],
                ["got --balance 0.3 for --method logits; expected --method dcr or dmm or dckd"],
            ),
            (["--balance", -1], ["balance must be finite and above 0, or None, got -1.0"]),
            (["--seed", -1], ["Seed must be between"]),
            (["--encoder", "vqgan"], ["unknown encoder 'vqgan': expected one of compact"]),
            (["--encoder", "no/such.ckpt"], ["such.ckpt: no such file"]),
            (["--teacher", "no.safetensors"], ["no.safetensors: no such file"]),
            (
                ["--teacher", "swinir-x2"],
                ["got --teacher swinir-x2 for tiny", "--backbone swinir-student or swinir-light:"],
            ),
            (["--teacher", "https://a/b.pth"], ["b.pth for tiny", "or rcan-student or nafnet"]),
        ],
    )
    def test_options(self, refused: Any, args: list[object], parts: list[str]) -> None:
        refused(args, *parts)

    def test_data_folders(self, refused: Any, sets: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        refused(["--data", tmp_path / "empty"], "empty: found no image")
        refused(["--val", tmp_path / "empty"], "empty: found no image")
        refused(["--data", sets / "train" / "0.png"], "0.png: found a file")
        refused(["--val", sets / "val"], "val, val; expected different names")
        write(tmp_path / "x3" / "HR" / "a.png", 12, 12, 0)
        lr = write(tmp_path / "x3" / "LR_bicubic" / "X2" / "a.png", 4, 4, 0)
        refused(["--data", tmp_path / "x3"], f"{lr} is 16x16; expected 24x24 for scale 2")

    def test_a_truncated_image_is_named_and_may_be_skipped(
        self, refused: Any, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = write(tmp_path / "data" / "good.png", 10, 10, 0)
        bad = good.with_name("bad.png")
        bad.write_bytes(good.read_bytes()[:400])
        refused(["--data", bad.parent], str(bad), "--skip-bad")
        line = [*small, "--method", "scratch", "--data", bad.parent, "--skip-bad"]
        assert main(monkeypatch, *line) == 0

    def test_weights_that_are_cut_or_altered(self, refused: Any, tmp_path: Path) -> None:
        from dckd_losses.weights import COMPACT

        for option, source in (("--teacher", train_sr.TASK.teachers[2]), ("--encoder", COMPACT)):
            data = bytearray(source.read_bytes())
            path = tmp_path / "weights.safetensors"
            path.write_bytes(data[: len(data) // 2])
            refused([option, path], str(path))
            data[20] ^= 0xFF
            path.write_bytes(data)
            refused([option, path], str(path))

    def test_networks_that_do_not_fit(self, refused: Any, tmp_path: Path) -> None:
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

    def test_the_papers_students_need_the_papers_teachers(
        self, refused: Any, paper_networks: None
    ) -> None:
        refused(["--backbone", "rcan-student"], "expected rcan-teacher for x2 by --teacher")
        refused(["--backbone", "nafnet-student"], "got scale 2 for nafnet-student; expected 1")
        swinir = ["--backbone", "swinir-student", "--teacher"]
        refused([*swinir, train_sr.TASK.teachers[2]], "expected swinir-teacher for x2, 11,752,487")
        refused([*swinir, "swinir-x4"], "swinir-x4 is swinir-teacher for x4")
        refused([*swinir, "swinir"], "swinir: no such file, nor one of swinir-x2")

    def test_output_is_a_file(self, refused: Any, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("kept", encoding="utf-8")
        refused(["--output", path], f"{path}: found a file; expected a folder")
        refused(["--output", path / "below"], str(path))
        assert path.read_text(encoding="utf-8") == "kept"

    def test_nothing_is_written_before_the_input_is_known_to_be_good(
        self, refused: Any, tmp_path: Path
    ) -> None:
        refused(["--output", tmp_path / "new", "--crop", 60], "60x60")
        assert not (tmp_path / "new").exists()

    def test_networks_are_opened_before_the_data(
        self, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        absent = ["--data", tmp_path / "absent"]
        refused([*absent, "--encoder", "vqgan"], "unknown encoder")
        refused([*absent, "--teacher", "no.safetensors"], "no.safetensors")
        refused([*absent, "--dcr-weight", -1], "--dcr-weight")

    @pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, AssertionError])
    def test_a_bug_keeps_its_traceback(
        self, small: list[str], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        def buggy(*args: object) -> None:
            raise error("a bug")

        monkeypatch.setattr("restoration.command.load_data", buggy)
        with pytest.raises(error, match="a bug"):
            main(monkeypatch, *small)

    def test_checkpoints_of_other_settings_and_altered_ones(
        self,
        small: list[str],
        sets: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        line = [*small, "--method", "logits"]
        assert main(monkeypatch, *line) == 0
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
            assert main(monkeypatch, *line, "--resume", *change) == 2
            stderr = capsys.readouterr().err
            assert stderr.startswith(f"error: {tmp_path / 'checkpoint.pt'} is of a run")
            assert seen in stderr
            assert stderr.count("\n") == 1
        embedded = ["--teacher", train_sr.TASK.teachers[2], "--encoder", "unused"]
        assert main(monkeypatch, *line, "--resume", *embedded) == 0  # the same by another name
        saved = bytearray((tmp_path / "checkpoint.pt").read_bytes())
        for broken in (saved[: len(saved) // 2], saved[:-1], b"", altered(saved)):
            (tmp_path / "checkpoint.pt").write_bytes(broken)
            capsys.readouterr()
            assert main(monkeypatch, *line, "--resume") == 2
            stderr = capsys.readouterr().err
            assert f"error: {tmp_path / 'checkpoint.pt'}: cut short, altered" in stderr
            assert stderr.count("\n") == 1


def altered(data: bytearray) -> bytearray:
    """A checkpoint with another bit in the middle of its bytes."""
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 1
    return changed


def test_a_data_set_without_options_is_scikit_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_sr.py"])
    args = train_sr.arguments()
    assert (args.scale, args.method, args.encoder, args.backbone) == (2, "dckd", "compact", "tiny")
    pairs, val_sets = restoration.command.load_data(train_sr.TASK, args)
    held_out = {pair.name for pair in val_sets["photographs"]}
    assert len(held_out) >= 3
    assert not held_out & {pair.name for pair in pairs}


def test_settings_leave_out_only_what_cannot_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_sr.py"])
    of_no_account = {"output", "resume", "workers", "memory", "gradient_checkpointing"}
    by_checksum = {"data", "val", "encoder", "teacher", "skip_bad"}
    by_recipe = {"recipe", "iterations", "batch_size", "crop", "form", "balance", *WEIGHTS}
    by_accelerator = {"mixed_precision", "gradient_accumulation"}
    rest = set(vars(train_sr.arguments())) - of_no_account - by_checksum
    assert rest - by_recipe - by_accelerator == set(DECISIVE)
    assert checkpoint.checksum([]) == "crc32 00000000"
