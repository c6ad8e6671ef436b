"""The training loop, in one process and with a toy encoder: resume, stop, refuse."""

import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from restoration import networks
from restoration.recipe import Recipe
from restoration.training import checkpoint, loop
from restoration.training.console import RefusedError, StoppedError, exit_status
from restoration.training.gradient_checkpointing import checkpoint_blocks
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from toys import ENVIRONMENT, RECIPE, Toy, assert_close, assert_same


def content(toy):
    return checkpoint.load(toy.run.checkpoint, toy.run.settings)


def interrupt(number=signal.SIGINT):
    return lambda: signal.raise_signal(number)


def stopped(toy, step, number=signal.SIGINT):
    """A run that is stopped in the middle of a step."""
    with pytest.raises(StoppedError, match=f"after step {step} of "):
        toy.at_step(step, interrupt(number)).trained()
    return toy


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("straight")).trained()


def test_training_moves_student_history_and_counters(straight):
    fresh = Toy(straight.run.folder).run.student
    assert not torch.equal(straight.run.student.tail.weight, fresh.tail.weight)
    state = content(straight)["dckd"]
    assert state["history.iteration"] == 6
    assert state["negatives.counter"] == 6
    assert not torch.equal(state["history.model.tail.weight"], fresh.tail.weight)
    records = straight.run.records
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert set(records[0]) == {"step", "l1", "kd", "dcr", "dmm", "positive", "negative"}
    assert len(records[0]["positive"]) == 5, "the distances of each level"


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGINT, 1), (signal.SIGTERM, 3), (signal.SIGINT, 6)]
)
def test_stopped_and_resumed_is_bit_identical(straight, tmp_path, number, step):
    """Also between two checkpoints."""
    assert content(stopped(Toy(tmp_path, save_every=4), step, number))["step"] == step
    assert_same(content(Toy(tmp_path).trained(resume=True)), content(straight))


def test_resumed_is_bit_identical_where_the_student_draws_random_numbers(tmp_path):
    """As SwinIR's stochastic depth does; resuming draws others before it trains."""

    def drawing(folder):
        return Toy(tmp_path / folder, prepare=lambda model: model.body.append(nn.Dropout(0.5)))

    whole = drawing("straight").trained()
    stopped(drawing("stopped"), 3)
    assert_same(content(drawing("stopped").trained(resume=True)), content(whole))


def test_each_step_and_each_rank_draws_its_own(tmp_path):
    drawn, run = set(), Toy(tmp_path).run

    class Rank:
        process_index = 0

    run.accelerator = Rank
    for run.crops.seed in range(3):
        for Rank.process_index in range(3):
            for run.step in range(3):
                loop.seed_draws(run)
                drawn.add(torch.rand(()).item())
    assert len(drawn) == 27


@pytest.fixture
def interruptible():
    """A shell's background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_comes_in_a_destructor_still_stops_the_command(interruptible, capfd):
    class Closing:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)  # Python ignores what is raised in here

    def run():
        Closing()
        for _ in range(100):
            time.sleep(0.1)

    assert exit_status(run, again="") == 130
    assert capfd.readouterr().err == "stopped\n"


def test_the_second_signal_ends_at_once_and_handlers_come_back(tmp_path, interruptible):
    usual = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def twice():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)  # two that are both pending would be handled as one
        signal.raise_signal(signal.SIGINT)

    toy = Toy(tmp_path).at_step(2, twice)
    with pytest.raises(KeyboardInterrupt):
        toy.trained()
    assert toy.run.step == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == usual


@pytest.mark.parametrize("error", [SystemExit(), OSError(errno.ENOSPC, "No space left")], ids=repr)
def test_killed_or_without_room_for_a_checkpoint(straight, tmp_path, monkeypatch, error):
    """The run ends with the one before."""
    write, written = Path.write_bytes, []

    def half(path, data):
        written.append(path)
        if len(written) == 3:
            write(path, data[:1000])
            raise error
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(error)) as end:
        Toy(tmp_path).trained()
    monkeypatch.undo()
    if isinstance(error, OSError):
        said = "cannot be written (No space left); the one before is kept, --resume goes on from it"
        assert (end.value.strerror, end.value.filename) == (said, str(tmp_path / "checkpoint.pt"))
        assert [path.name for path in tmp_path.glob("[!.]*")] == ["checkpoint.pt"]
    assert content(Toy(tmp_path))["step"] == 2
    assert_same(content(Toy(tmp_path).trained(resume=True)), content(straight))


def test_a_folder_that_was_lost_is_made_again(straight, tmp_path):
    toy = Toy(tmp_path / "run").at_step(3, lambda: shutil.rmtree(tmp_path / "run"))
    assert_same(content(toy.trained()), content(straight))


@pytest.mark.slow
def test_one_run_an_output_folder(tmp_path):
    """Of one process; its lock ends with it, however that is."""
    code = f"from toys import Toy; toy = Toy({str(tmp_path)!r}); print('there', flush=True); "
    line = [sys.executable, "-c", f"import time; {code}time.sleep(60)"]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        with pytest.raises(ValueError, match=f"{tmp_path}: another run is writing there; wait"):
            Toy(tmp_path)
        other.kill()
    Toy(tmp_path)


def test_without_resume_the_run_starts_anew_and_the_old_checkpoint_is_kept(straight, tmp_path):
    """By its step, so that the checkpoint of a third, shorter run does not take its place."""
    before = stopped(Toy(tmp_path), 2).run.checkpoint.read_bytes()
    assert_same(content(Toy(tmp_path).trained()), content(straight))
    Toy(tmp_path, Recipe(iterations=1, batch_size=1, crop=8)).trained()
    Toy(tmp_path).run.checkpoint.write_bytes(b"cut")
    Toy(tmp_path).trained()
    assert (tmp_path / "checkpoint.old-2.pt").read_bytes() == before
    old = {path.name for path in tmp_path.glob("checkpoint.old*")}
    assert old == {f"checkpoint.old-{step}.pt" for step in (2, 6, "unreadable")}


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_student_is_kept_also_over_a_stop(tmp_path, ema):
    """The first of the highest PSNR, of the moving average where there is one."""
    decibels, recipe = [31.0, 30.0, 33.0, 32.0, 33.0, 29.0], replace(RECIPE, ema=ema)

    def toy(folder):
        made = Toy(tmp_path / folder, recipe)
        made.run.validate = lambda model: decibels[made.run.step - 1]
        made.run.save = partial(networks.save, made.run.student)
        return made

    at_third = dict(stopped(toy("third"), 3).run.result.state_dict())
    for folder, stops in (("straight", []), ("late", [3, 5]), ("early", [2])):
        for step in stops:
            with pytest.raises(StoppedError):
                toy(folder).at_step(step, interrupt()).trained(resume=True)
        run = toy(folder).trained(resume=True).run
        assert (run.best["step"], run.best["psnr"]) == (3, 33)
        assert_same(content(toy(folder))["best"], run.best)
        assert_same(run.best["student"], at_third)
        assert_same(dict(networks.load(run.best_file).state_dict()), at_third)
    assert not torch.equal(run.student.head.weight, at_third["head.weight"])


def test_how_often_is_validated_and_saved(tmp_path, monkeypatch):
    saved, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda *args: (saved.append(args[2]["step"]), save(*args))
    )
    recipe = Recipe(iterations=40, batch_size=1, crop=8)
    for every, validated, kept in (
        ({}, range(4, 41, 4), range(2, 41, 2)),
        ({"val_every": 15, "save_every": 25}, (15, 30, 40), (25, 40)),
        ({"val_every": 10**30, "save_every": 10**30}, (40,), (40,)),
    ):
        saved.clear()
        toy = Toy(tmp_path, recipe, distils=False, validate=lambda model: 30.0, **every)
        records = toy.trained().run.records
        assert [record["step"] for record in records if "psnr" in record] == list(validated)
        assert saved == list(kept)


def test_the_student_ends_bare_and_in_eval_mode(straight):
    student = straight.run.student
    assert not student.training
    assert "forward" not in vars(student) or not hasattr(student, "_original_forward")
    assert straight.dckd is not None
    straight.dckd.attach(torch.optim.Adam(student.parameters())).detach()


def test_the_grad_scaler_is_part_of_the_checkpoint(tmp_path):
    def accelerator():
        made = Accelerator(cpu=True)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return made

    first = stopped(Toy(tmp_path, accelerator=accelerator()), 4)
    assert content(first)["scaler"]["scale"] == 16.0
    again = Toy(tmp_path, accelerator=accelerator()).trained(resume=True)
    assert again.run.accelerator.scaler.get_scale() == 32.0


@pytest.mark.parametrize("distils", [True, False])
def test_a_teacher_of_nan_is_refused_at_the_first_step(tmp_path, distils):
    toy = Toy(tmp_path, distils=distils)
    nn.init.constant_(toy.teacher.tail.bias, torch.nan)
    with pytest.raises(RefusedError, match="teacher_out must be finite" if distils else "kd nan"):
        toy.trained()
    assert toy.run.step <= 1
    assert not toy.run.checkpoint.exists()


@pytest.mark.filterwarnings("ignore:the source's weights are not all finite")
@pytest.mark.parametrize(
    ("distils", "said"),
    [(True, "step 5: the student's output is not"), (False, "step 6: got losses l1 nan kd nan;")],
)
def test_a_diverged_student_is_never_saved(tmp_path, monkeypatch, distils, said):
    toy = Toy(tmp_path, distils=distils, save_every=3, val_every=6)
    monkeypatch.setattr(loop, "LOG_EVERY", 6)  # not of every step is the output looked at
    toy.at_step(5, lambda: toy.run.student.tail.bias.data.fill_(torch.nan))
    with pytest.raises(RefusedError, match=said):
        toy.trained()
    assert content(toy)["step"] == 3


def test_bugs_keep_their_traceback(tmp_path):
    def buggy(model):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Toy(tmp_path, validate=buggy).trained()


def test_values_are_looked_at_where_a_step_is_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 4)
    monkeypatch.setattr(loop, "VALIDATIONS", 1)
    toy = Toy(tmp_path)
    toy.at_step(2, lambda: toy.teacher.tail.bias.data.fill_(7.0))
    with pytest.raises(RefusedError, match=r"teacher_out must lie in \[0, 1\]"):
        toy.trained()
    assert toy.run.step == 3


@pytest.mark.parametrize(("parts", "clip"), [(2, None), (4, 0.01)])
def test_accumulated_gradients_are_the_whole_batchs(tmp_path, parts, clip):
    recipe = Recipe(iterations=4, batch_size=4, crop=8, clip=clip)
    states = []
    for each in (1, parts):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=each)
        toy = Toy(tmp_path, recipe, accelerator=accelerator, dcr_weight=0).trained()
        assert toy.dckd.history.iteration == 4
        states.append(toy.run.student.state_dict())
    assert_close(*states, 1e-5)


def test_mixed_precision_trains_nearly_the_same_student_in_float32(tmp_path, straight, accelerator):
    made = accelerator(mixed_precision="bf16")
    mixed = Toy(tmp_path, accelerator=made).trained().run.student.state_dict()
    usual = straight.run.student.state_dict()
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    assert not torch.equal(mixed["tail.weight"], usual["tail.weight"])
    assert_close(mixed, usual, 1e-2)


@pytest.mark.parametrize("change", [{"workers": 2}, {"checkpoints_blocks": True}], ids=str)
def test_reading_ahead_and_computing_again_change_nothing(tmp_path, straight, change):
    changed = Toy(tmp_path, **change).trained().run.student.state_dict()
    assert_same(changed, straight.run.student.state_dict())


@pytest.mark.usefixtures("paper_networks")
@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("nafnet-student", 1),
        pytest.param("restormer-student", 1, marks=pytest.mark.slow),
        pytest.param("swinir-student", 2, marks=pytest.mark.slow),
        pytest.param("rcan-student", 2, marks=pytest.mark.slow),
    ],
)
def test_gradient_checkpointing_saves_memory_in_each_network(name, scale):
    torch.manual_seed(0)
    model, image = networks.build(name, scale).train(), torch.rand(1, 3, 16, 16)
    kept, gradients = [], []
    for prepare in (lambda model: None, checkpoint_blocks):
        prepare(model)
        saved, parameters = [], [p for p in model.parameters() if p.requires_grad]
        torch.manual_seed(0)
        with saved_tensors_hooks(lambda tensor, to=saved: to.append(tensor) or tensor, lambda t: t):
            output = model(image)
        kept.append(sum(tensor.nbytes for tensor in saved))
        loss = output.square().mean()
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True)[0])
    assert kept[1] < kept[0] / 3
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


def test_networks_without_known_blocks_are_refused():
    with pytest.raises(ValueError, match="got Linear; expected blocks NAFBlock"):
        checkpoint_blocks(nn.Linear(1, 1))


def test_a_frozen_parameter_is_not_the_optimizers():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    (group,) = loop.optimizer_of(RECIPE, model).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[0].parameters()]


def test_a_step_gives_any_numbers_and_lists_for_the_log(tmp_path):
    """Benchmarks record other methods' distances so."""
    toy = Toy(tmp_path, distils=False)

    def step(lq, hq):
        value = F.l1_loss(toy.run.model(lq), hq)
        levels = torch.stack([value, 2 * value])
        return value, {"mine": value, "levels": levels, "ratio": value / 0}

    loop.train(toy.run, step, resume=False)
    record = toy.run.records[0]
    assert record["levels"] == [record["mine"], 2 * record["mine"]]
    assert record["ratio"] == math.inf, "over pixel losses of zero, which is no divergence"
