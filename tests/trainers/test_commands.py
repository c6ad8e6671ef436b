"""The integrations as a user runs them; killed and resumed, where they can be resumed."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import accelerate_loop
import lightning_module
import plain_loop
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(plain_loop.__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LINE = r"step (\d+) pixel \S+ dckd \S+ gradient ratio (\S+)"
STEPS = 20
TIMEOUT = 240  # seconds, on a machine with other work


def command(file, *args):
    return [sys.executable, str(FOLDER / file), *map(str, args)]


def run(line, **settings):
    settings |= {"env": ENVIRONMENT, "capture_output": True, "text": True}
    return subprocess.run(line, timeout=TIMEOUT, check=True, **settings)


def killed(line, at):
    """Run a command up to a line that contains a text, and kill it there."""
    pipe = subprocess.PIPE
    with subprocess.Popen(line, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True) as process:
        timer = threading.Timer(TIMEOUT, process.kill)
        timer.start()
        try:
            assert any(at in text for text in process.stdout), process.stderr.read()
        finally:
            timer.cancel()
            process.kill()


def plain(folder, accelerator):
    plain_loop.train(STEPS, folder)


def lightning(folder, accelerator):
    lightning_module.train(
        lightning_module.Distillation(), STEPS, folder, precision="bf16-mixed", accelerator="cpu"
    )


def accelerate(folder, accelerator):
    made = accelerator(gradient_accumulation_steps=2, mixed_precision="bf16")
    accelerate_loop.train(made, STEPS, folder)


def plain_weights(folder):
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {**saved["student"], **saved["dckd"], **saved["average"]}


def lightning_weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def accelerate_weights(folder):
    last = folder / "checkpoint"
    dckd = torch.load(last / "custom_checkpoint_0.pkl", weights_only=True)
    return {**load_file(last / "model.safetensors"), **dckd}


TRAINERS = {
    "plain_loop.py": (plain, plain_weights),
    "lightning_module.py": (lightning, lightning_weights),
    "accelerate_loop.py": (accelerate, accelerate_weights),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", TRAINERS)
def test_killed_and_resumed_it_ends_with_the_same_weights(file, tmp_path, accelerator):
    train, weights = TRAINERS[file]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    train(straight, accelerator)
    line = command(file, "--steps", STEPS, "--output", broken)
    killed(line, at="step 15 ")
    done = run([*line, "--resume"])
    steps, ratios = zip(*re.findall(LINE, done.stdout), strict=True)
    assert set(map(int, steps)) in ({15, 20}, {20}), "it started anew"
    assert all(0 < float(ratio) < 1e4 for ratio in ratios)
    expected, seen = weights(straight), weights(broken)
    assert expected.keys() == seen.keys()
    assert all(torch.equal(expected[name], seen[name]) for name in expected)
    assert any(name.endswith("history.iteration") for name in seen)


def test_the_registry_trainer(tmp_path):
    done = run(command("registry_trainer.py", "--steps", 5, "--output", tmp_path))
    assert re.fullmatch(LINE, done.stdout.strip())
    assert (tmp_path / "student.pth").stat().st_size > 9_000 * 4


def test_basicsrs_own_pipeline(basicsr, tmp_path):
    options = FOLDER / "basicsr_model.yml"
    short = ("--force_yml", "train:total_iter=5", "logger:save_checkpoint_freq=5")
    done = run(command("basicsr_model.py", "-opt", options, *short), cwd=tmp_path)
    logged = re.search(r"iter: +5,.* l_dckd: \S+ gradient_ratio: (\S+)", done.stdout + done.stderr)
    assert logged and 0 < float(logged[1]) < 1e4
    run_folder = tmp_path / "experiments" / "dckd_basicsr"
    student = torch.load(run_folder / "models" / "net_g_5.pth", weights_only=True)["params"]
    state = torch.load(run_folder / "training_states" / "5.dckd", weights_only=True)
    assert state["history.iteration"] == 5
    assert state.keys() == {f"history.model.{name}" for name in student} | {
        "history.iteration",
        "negatives.counter",
    }
