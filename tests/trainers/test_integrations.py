"""Each integration: Eq. 6 counted in real steps, what its checkpoints hold, and its command."""

import os
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import accelerate_loop
import common
import oracle
import plain_loop
import pytest
import torch
from conftest import CANNOT_IMPORT
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset

from dckd_losses import DCKDLoss, HistoryModel

pytestmark = pytest.mark.filterwarnings("ignore")
FOLDER = Path(plain_loop.__file__).parent
STEPS, SKIPPED = 6, 3  # of the accumulating trainers, counted from 1
INTERVAL = 2
DECAY = 0.1
COUNTERS = 2  # int64 tensors: history's steps, negatives' calls


@pytest.fixture
def lightning_module():
    """Skips where Lightning cannot be imported."""
    return pytest.importorskip("lightning_module", exc_type=CANNOT_IMPORT)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The history moves often, and crops are few."""
    monkeypatch.setattr(common, "HISTORY_INTERVAL", INTERVAL)
    monkeypatch.setattr(common, "BATCH_SIZE", 1)
    monkeypatch.setattr(
        plain_loop, "HistoryModel", lambda model, interval: HistoryModel(model, interval=INTERVAL)
    )
    monkeypatch.setattr(plain_loop, "BATCH_SIZE", 1)


class Spoiled(Dataset):
    """Crops of which one is an input that no gradient survives."""

    def __init__(self, crops, bad):
        self.crops, self.bad = crops, bad

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        lq, gt = self.crops[index]
        return (lq * torch.nan if index == self.bad else lq), gt


@pytest.fixture
def skipping(monkeypatch):
    """The second batch of step `SKIPPED` overflows; a GradScaler skips that step."""
    made = common.batches
    batch = (SKIPPED - 1) * 2 + 1

    def batches(first, last):
        crops = made(first, last).dataset
        return DataLoader(Spoiled(crops, batch * common.BATCH_SIZE), common.BATCH_SIZE)

    monkeypatch.setattr(common, "batches", batches)


@pytest.fixture
def weights():
    """The student's after each real step of any optimizer."""
    seen = []

    def record(optimizer, args, kwargs):
        seen.append(flat(p for group in optimizer.param_groups for p in group["params"]))

    handle = register_optimizer_step_post_hook(record)
    yield seen
    handle.remove()


def flat(parameters):
    return torch.cat([p.detach().flatten().double() for p in parameters])


def assert_closed_form(dckd, start, sources, steps):
    """History after so many real steps, each of which left a source."""
    due = oracle.due_steps(steps, INTERVAL, 1000, 100_000, 3000)
    assert len(due) > 1
    expected = oracle.history(start.tolist(), [sources[step - 1].tolist() for step in due], DECAY)
    seen = flat(dckd.history.model.parameters())
    assert dckd.history.iteration == len(sources) == steps
    assert seen.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert not torch.allclose(seen, start, atol=1e-4), "history never moved"


def start():
    return flat(common.student().parameters())


def bytes_of(state):
    return sum(tensor.nbytes for tensor in state.values())


class TestPlainLoop:
    def test_history_and_checkpoint(self, weights, tmp_path, capsys, monkeypatch):
        """Of a run that is resumed."""
        monkeypatch.setattr(plain_loop, "LOG_EVERY", 3)
        teacher = plain_loop.train_teacher(1)
        weights.clear()
        torch.manual_seed(0)
        first = flat(plain_loop.Network(12, 3).parameters())
        plain_loop.distil(teacher, 3, tmp_path)
        parts = plain_loop.distil(teacher, STEPS, tmp_path, resume=True)
        assert_logged(capsys.readouterr().out, [3, STEPS])
        assert_closed_form(parts["dckd"], first, weights, STEPS)
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert bytes_of(saved["dckd"]) == bytes_of(saved["student"]) + 8 * COUNTERS

    def test_it_shows_what_the_student_makes(self, tmp_path):
        """Untrained networks are bicubic interpolation."""
        from skimage import io

        torch.manual_seed(0)
        student, teacher = plain_loop.Network(4, 1), plain_loop.train_teacher(20)
        torch.nn.init.zeros_(student.tail.bias)
        scores = plain_loop.show({"student": student, "teacher": teacher}, tmp_path / "a.png")
        assert list(scores) == ["bicubic", "student", "teacher"]
        assert scores["student"] == pytest.approx(scores["bicubic"]) != scores["teacher"]
        assert 30 < scores["bicubic"] < 40
        assert io.imread(tmp_path / "a.png").shape == (160, 4 * 160, 3)


class TestLightning:
    def test_history(self, lightning_module, weights, skipping, tmp_path, monkeypatch):
        from lightning.pytorch.plugins import MixedPrecision

        monkeypatch.setattr(lightning_module, "EPOCH", STEPS)
        module = lightning_module.Distillation()
        half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
        lightning_module.train(module, STEPS, tmp_path, plugins=[half], accelerator="cpu")
        assert_closed_form(module.dckd, start(), weights, STEPS - 1)

    def test_checkpoints_have_student_and_history_only(
        self, lightning_module, tmp_path, monkeypatch
    ):
        """And the optimizer trains the student alone. Each fit makes a new one to be followed."""
        monkeypatch.setattr(lightning_module, "EPOCH", 1)
        module = lightning_module.Distillation()
        for _ in range(2):
            lightning_module.train(module, 1, tmp_path, accelerator="cpu")
        assert module.dckd.history.iteration == 2
        student = common.student().state_dict()
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert saved["state_dict"].keys() == {
            *(f"student.{name}" for name in student),
            *(f"dckd.history.model.{name}" for name in student),
            "dckd.history.iteration",
            "dckd.negatives.counter",
        }
        assert (tmp_path / "last.ckpt").stat().st_size < 5 * bytes_of(student)  # Adam has two
        assert len(saved["optimizer_states"][0]["state"]) == len(student)


def test_accelerate(weights, skipping, tmp_path, accelerator):
    made = accelerator(gradient_accumulation_steps=2)
    made.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # as float16 on a GPU has
    dckd = accelerate_loop.train(made, STEPS, tmp_path)
    assert_closed_form(dckd, start(), weights, STEPS - 1)
    student = common.student().state_dict()
    saved = tmp_path / "checkpoint"
    assert load_file(saved / "model.safetensors").keys() == student.keys()
    state = torch.load(saved / "custom_checkpoint_0.pkl", weights_only=True)
    assert bytes_of(state) == bytes_of(student) + 8 * COUNTERS


def assert_logged(text, steps):
    """A line of losses with the gradient ratio at each of the steps."""
    found = re.findall(r"step (\d+) pixel \S+ dckd \S+ gradient ratio (\S+)", text)
    assert [int(step) for step, _ in found] == steps
    assert all(0 < float(ratio) < 1e4 for _, ratio in found)


class TestBasicSR:
    def test_history(self, basicsr, weights, tmp_path):
        """Its model, fed by hand."""
        import basicsr_model

        model = basicsr_model.DCKDModel(options(tmp_path))
        before = flat(model.net_g.parameters())
        for number, (lq, gt) in enumerate(common.batches(0, 4), 1):
            model.feed_data({"lq": lq, "gt": gt})
            model.optimize_parameters(number)
        assert_closed_form(model.dckd, before, weights, 4)

    @pytest.mark.slow
    def test_its_own_pipeline(self, basicsr, tmp_path):
        options = FOLDER / "basicsr_model.yml"
        short = ("--force_yml", "train:total_iter=5", "logger:save_checkpoint_freq=5")
        done = run(command("basicsr_model.py", "-opt", options, *short), cwd=tmp_path)
        line = r"iter: +5,.* l_dckd: \S+ gradient_ratio: (\S+)"
        logged = re.search(line, done.stdout + done.stderr)
        assert logged and 0 < float(logged[1]) < 1e4
        run_folder = tmp_path / "experiments" / "dckd_basicsr"
        student = torch.load(run_folder / "models" / "net_g_5.pth", weights_only=True)["params"]
        saved = torch.load(run_folder / "training_states" / "5.state", weights_only=False)
        state = saved["optimizers"][-1]  # beside a Counter of the scheduler's
        assert state["history.iteration"] == 5
        assert state.keys() == {f"history.model.{name}" for name in student} | {
            "history.iteration",
            "negatives.counter",
        }


def options(folder):
    """What BasicSR makes of the YAML file."""
    import yaml

    read = yaml.safe_load((FOLDER / "basicsr_model.yml").read_text(encoding="utf-8"))
    read["train"]["history_interval"] = INTERVAL
    read["path"] |= {"models": str(folder), "training_states": str(folder)}
    return read | {"is_train": True, "dist": False, "rank": 0}


def test_a_students_own_checkpoint_keeps_its_keys():
    student = common.student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    keys = optimizer.state_dict().keys()
    dckd = DCKDLoss(student, "compact").attach(optimizer).watch(student)
    lq, gt = next(iter(common.batches(0, 1)))
    dckd(student(lq), gt, lq).backward()
    after = student.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert optimizer.state_dict().keys() == keys


@pytest.mark.parametrize("module", ["accelerate_loop", "plain_loop"])
def test_what_a_command_line_can_have_wrong_is_a_line(module, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    for options in (["--steps", "0"], ["--steps", "many"], ["--output", str(tmp_path / "file")]):
        monkeypatch.setattr(sys, "argv", [f"{module}.py", *options])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__")
        said = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 or str(end.value.code).startswith("stopped: ")
        assert len(said) <= 3  # of which argparse's usage may be two


def test_ctrl_c_ends_the_plain_loop_with_a_word(tmp_path, monkeypatch):
    def interrupt(*shape, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["plain_loop.py", "--output", str(tmp_path)])
    monkeypatch.setattr(torch, "rand", interrupt)
    with pytest.raises(SystemExit, match="stopped: Ctrl-C"):
        runpy.run_module("plain_loop", run_name="__main__")


TIMEOUT = 240  # seconds, on a machine with other work
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


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


def plain_weights(folder):
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {**saved["student"], **saved["dckd"]}


def lightning_weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def accelerate_weights(folder):
    last = folder / "checkpoint"
    dckd = torch.load(last / "custom_checkpoint_0.pkl", weights_only=True)
    return {**load_file(last / "model.safetensors"), **dckd}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "steps", "at", "weights"),
    [
        ("plain_loop.py", 60, 50, plain_weights),
        ("lightning_module.py", 20, 15, lightning_weights),
        ("accelerate_loop.py", 20, 15, accelerate_weights),
    ],
)
def test_killed_and_resumed_it_ends_with_the_same_weights(file, steps, at, weights, tmp_path):
    if file == "lightning_module.py":
        pytest.importorskip("lightning_module", exc_type=CANNOT_IMPORT)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(command(file, "--steps", steps, "--output", straight))
    line = command(file, "--steps", steps, "--output", broken)
    killed(line, at=f"step {at} ")
    done = run([*line, "--resume"])
    logged = set(map(int, re.findall(r"step (\d+) pixel", done.stdout)))
    assert logged <= {at, steps}, "it started anew"
    expected, seen = weights(straight), weights(broken)
    assert expected.keys() == seen.keys()
    assert all(torch.equal(expected[name], seen[name]) for name in expected)
    assert any(name.endswith("history.iteration") for name in seen)
