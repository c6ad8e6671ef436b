"""The training commands as processes: interrupted, two together, one of them dying."""

import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
import torch
from PIL import Image as Pillow
from restoration import networks
from toys import ENVIRONMENT, LAUNCH, ROOT, assert_close, options, weights, write

pytestmark = pytest.mark.slow
SCRIPT = "examples/train_sr.py"
STEPS = 51  # the history moves after 50
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Options of a run of sixty steps."""
    folder = tmp_path_factory.mktemp("sets")
    for seed in range(3):
        write(folder / "train" / f"{seed}.png", 10 + seed, 12, seed)
    write(folder / "val" / "a.png", 5, 6, 8)
    data = {"data": folder / "train", "val": folder / "val"}
    return options(iterations=60, batch_size=1, crop=8, **data)


def command(*args, launcher=(sys.executable,)):
    settings = {"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True}
    line = [*launcher, SCRIPT, *map(str, args)]
    return subprocess.run(line, check=False, timeout=200, **settings)


@contextmanager
def started(*args, launcher=(sys.executable,)):
    settings = {"cwd": ROOT, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "text": True}
    line = [*launcher, SCRIPT, *map(str, args)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, **settings) as process:
        try:
            yield process
        finally:
            process.kill()


def until(lines, text):
    """Read a pipe up to a line that contains a text."""
    seen = []
    for line in lines:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


def assert_same_state(one, other):
    """Two checkpoints hold the same student, history and counters."""
    states = []
    for folder in (one, other):
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        states.append(saved["content"]["dckd"] | saved["content"]["student"])
    assert states[0]["negatives.counter"] == 60
    assert_close(*states, 0)


@posix
@pytest.mark.parametrize(
    ("surroundings", "streams", "status", "said"),
    [
        ({"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "MPLBACKEND": "nonsense"}, "", 0, ""),
        ({"HOME": None}, "", 0, ""),
        ({}, ">&-", 0, ""),
        ({}, "| head -1", 2, "error: nobody reads what this command prints (closed pipe)"),
        ({}, ">/dev/full", 2, "error: what this command writes or prints: No space left on"),
    ],
    ids=str,
)
def test_surroundings_end_in_a_line_and_lose_nothing(
    line, tmp_path, surroundings, streams, status, said
):
    write(tmp_path / "odd" / "\u65e5\u672c.png", 5, 6, 8)
    args = [*line, "--val", tmp_path / "odd", "--method", "logits", "--output", tmp_path / "out"]
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": None, **surroundings}  # lines as a whole
    done = subprocess.run(
        f"set -o pipefail; {shlex.join(map(str, [sys.executable, SCRIPT, *args]))} {streams}",
        shell=True,
        executable="/bin/bash",
        env={name: value for name, value in environment.items() if value is not None},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    lines = [text for text in done.stderr.splitlines() if "left," not in text]
    assert lines == [] if status == 0 else len(lines) == 1 and lines[0].startswith(said)
    assert streams == ">/dev/full" or (tmp_path / "out" / "side_by_side.png").exists()


@posix
@pytest.mark.parametrize("script", ["train_sr.py", "train_encoder.py", "evaluate.py", "prepare.py"])
def test_ctrl_c_while_a_script_is_still_importing(script):
    line = [sys.executable, "-X", "importtime", f"examples/{script}", "--data", "nowhere"]
    settings = {"cwd": ROOT, "env": ENVIRONMENT, "stderr": subprocess.PIPE, "text": True}
    # where tests run in the background, the signal may be ignored from the start
    settings["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(line, **settings) as process:
        until(process.stderr, "| restoration\n")
        process.send_signal(signal.SIGINT)
        said = [text for text in process.stderr if not text.startswith("import time:")]
    assert said == ["stopped\n"]


@posix
def test_any_interruption_and_resume_is_bit_identical(line, tmp_path):
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
            (said,) = [text for text in stderr.splitlines() if "left" not in text]
            assert said.startswith("stopped after step ")
            assert "the same command with --resume" in said
        assert not (broken / "metrics.json").exists()
    for _ in range(2):  # the second time with nothing left to do
        done = command(*resumed)
        assert done.returncode == 0, done.stderr
        assert weights(broken) == weights(straight)
        for name in ("metrics.json", "log.json", "best.safetensors"):
            assert (broken / name).read_bytes() == (straight / name).read_bytes(), name
        (broken / "student.safetensors").unlink()
        (broken / "best.safetensors").unlink()
    assert_same_state(straight, broken)


@posix
def test_two_processes_stop_together_when_one_is_asked_to(line, tmp_path):
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
    done = command(*line, "--output", broken, "--resume")
    assert done.returncode == 2
    assert "processes was 2, is 1" in done.stderr


def test_of_two_processes_one_writes(line, tmp_path):
    more = ["--method", "logits", "--log-with", "tensorboard", "--export", "onnx"]
    done = command(*line, *more, "--output", tmp_path, launcher=LAUNCH)
    assert done.returncode == 0, done.stderr
    assert len([path for path in tmp_path.rglob("*") if "tfevents" in path.name]) == 1
    assert done.stdout.count("written to") == 2, "the results, then the export"
    for name in ("best.safetensors", "config.yaml", "student.onnx"):
        assert (tmp_path / name).exists()
    done = command("--config", tmp_path / "config.yaml", "--output", tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "alone" / "student.onnx").exists()


def test_a_rank_that_dies_ends_the_run(line, tmp_path):
    endless = [*line, "--method", "logits", "--iterations", "100000", "--output", str(tmp_path)]
    with started(*endless, launcher=LAUNCH) as launcher:
        until(launcher.stdout, "output")  # the last line before the training
        time.sleep(1)
        workers = sorted(psutil.Process(launcher.pid).children(), key=lambda p: p.pid)
        workers[-1].kill()
        launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert not (tmp_path / "student.safetensors").exists()


def test_two_processes_are_one_of_twice_the_batch(tmp_path):
    """DCR's ratio, its negatives and a balance are each process's own: without them they agree."""
    for seed in range(2):  # smooth ones, on which Adam does not enlarge what is only rounding
        small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        large = Pillow.fromarray(small).resize((48, 48), Pillow.Resampling.BICUBIC)
        (tmp_path / "images").mkdir(exist_ok=True)
        large.save(tmp_path / "images" / f"{seed}.png")
    images, states = tmp_path / "images", []
    for batch, launcher in ((1, LAUNCH), (2, [sys.executable])):
        args = options(data=images, val=images, crop=8, iterations=STEPS, batch_size=batch)
        args += options(method="dmm", balance=0, output=tmp_path / f"run{batch}")
        done = command(*args, launcher=launcher)
        assert done.returncode == 0, done.stderr
        saved = torch.load(tmp_path / f"run{batch}" / "checkpoint.pt", weights_only=True)
        states.append({**saved["content"]["student"], **saved["content"]["dckd"]})
    fresh = networks.build("tiny", 2).state_dict()
    assert states[0]["history.iteration"] == STEPS
    assert not torch.equal(states[0]["history.model.tail.weight"], fresh["tail.weight"])
    assert_close(*states, 1e-4)
