"""The training loop, in one process and with a toy encoder: resume, stop, refuse."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from restoration import networks
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair
from restoration.recipe import Cosine, Recipe
from restoration.training import checkpoint, loop
from restoration.training.console import RefusedError, StoppedError
from restoration.training.loop import Run, train
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = Recipe(iterations=6, batch_size=2, crop=8, schedule=Cosine(end=1e-5, warm_up=2))


class ToyEncoder(nn.Module):
    """Five levels and three codes without a weight."""

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        levels = tuple(F.avg_pool2d(images, size) for size in (1, 2, 4, 8, 16))
        return levels, 10 * levels[2]


def new_run(folder: Path, **changes: Any) -> Run:
    """A run with everything in it, always the same."""
    rng = np.random.default_rng(0)
    hq = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    crops = RandomCrops([Pair("a", hq[::2, ::2], hq)], crop=8, scale=2, length=12, seed=0)
    torch.manual_seed(0)
    student, teacher = networks.build("tiny", 2), networks.build("tiny", 2)
    nn.init.normal_(teacher.tail.weight, std=0.01)
    negatives = NegativeGenerator(HistoryModel(student, interval=2))
    dckd = DCKDLoss(student, ToyEncoder(), negatives=negatives, dmm_weight=0.1)
    run = Run(folder, RECIPE, crops, student, teacher, dckd, settings={"seed": 0})
    for name, value in changes.items():
        setattr(run, name, value)
    return run


def trained(run: Run, *, resume: bool = False) -> Run:
    train(run, Accelerator(), resume=resume)
    return run


def content(run: Run) -> dict[str, Any]:
    return checkpoint.load(run.checkpoint, run.settings)


def assert_same(one: Any, other: Any) -> None:
    """Equality bit for bit of nested states."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def at_step(run: Run, step: int, act: Callable[[], object]) -> None:
    """Do something in the middle of a step, counted from 1."""

    def hook(module: nn.Module, args: object, output: object) -> None:
        if run.step + 1 == step and module.training:
            act()

    run.student.register_forward_hook(hook)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(new_run(tmp_path_factory.mktemp("straight")))


def test_training_moves_student_history_and_counters(straight: Run) -> None:
    fresh = new_run(straight.folder)
    assert not torch.equal(straight.student.tail.weight, fresh.student.tail.weight)
    state = content(straight)["dckd"]
    assert state["history.iteration"] == 6
    assert state["negatives.counter"] == 6
    assert not torch.equal(state["history.model.tail.weight"], fresh.student.tail.weight)
    assert [record["step"] for record in straight.records] == [1, 2, 3, 4, 5, 6]
    assert list(straight.records[0]) == ["step", "l1", "kd", "dcr", "dmm"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_stopped_and_resumed_is_bit_identical(
    straight: Run, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    run = new_run(tmp_path)
    at_step(run, step, lambda: signal.raise_signal(number))
    with pytest.raises(StoppedError, match=f"after step {step} of 6"):
        trained(run)
    assert content(run)["step"] == step
    assert_same(content(trained(new_run(tmp_path), resume=True)), content(straight))


def test_resumed_is_bit_identical_where_the_student_draws_random_numbers(tmp_path: Path) -> None:
    """As SwinIR's stochastic depth does; resuming draws others before it trains."""

    def drawing(folder: str) -> Run:
        run = new_run(tmp_path / folder)
        run.student.body.append(nn.Dropout(0.5))
        (tmp_path / folder).mkdir(exist_ok=True)
        return run

    straight = trained(drawing("straight"))
    run = drawing("stopped")
    at_step(run, 3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedError):
        trained(run)
    assert_same(content(trained(drawing("stopped"), resume=True)), content(straight))


def test_each_step_and_each_rank_draws_its_own(tmp_path: Path) -> None:
    drawn = set()
    for seed in range(3):
        run = new_run(tmp_path)
        run.crops.seed = seed
        for rank in range(3):
            for run.step in range(3):
                loop.seed_draws(run, rank)
                drawn.add(torch.rand(()).item())
    assert len(drawn) == 27


def test_a_stop_between_checkpoints_leaves_one(straight: Run, tmp_path: Path) -> None:
    recipe = Recipe(iterations=60, batch_size=2, crop=8)  # a checkpoint every 3 steps
    run = new_run(tmp_path, recipe=recipe)
    run.crops.length = 120
    at_step(run, 4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedError):
        trained(run)
    assert content(run)["step"] == 4


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_signal_ends_at_once_and_handlers_come_back(
    tmp_path: Path, interruptible: None
) -> None:
    usual = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = new_run(tmp_path)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)  # two that are both pending would be handled as one
        signal.raise_signal(signal.SIGINT)

    at_step(run, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        trained(run)
    assert run.step == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == usual


def test_killed_before_the_first_checkpoint(straight: Run, tmp_path: Path) -> None:
    run = new_run(tmp_path)

    def die() -> None:
        raise SystemExit

    at_step(run, 1, die)
    with pytest.raises(SystemExit):
        trained(run)
    assert not run.checkpoint.exists()
    assert_same(content(trained(new_run(tmp_path), resume=True)), content(straight))


def test_killed_while_writing_a_checkpoint(
    straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_bytes, []

    def half(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            write(path, data[:1000])
            raise SystemExit
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(SystemExit):
        trained(new_run(tmp_path))
    monkeypatch.undo()
    assert content(new_run(tmp_path))["step"] == 2
    assert_same(content(trained(new_run(tmp_path), resume=True)), content(straight))


def test_resume_of_a_finished_run_changes_nothing(straight: Run, tmp_path: Path) -> None:
    before = trained(new_run(tmp_path)).checkpoint.read_bytes()
    again = trained(new_run(tmp_path), resume=True)
    assert again.checkpoint.read_bytes() == before
    assert_same(again.student.state_dict(), straight.student.state_dict())
    assert again.records == straight.records


def test_the_last_step_leaves_a_checkpoint_whatever_the_interval(tmp_path: Path) -> None:
    run = new_run(tmp_path, recipe=Recipe(iterations=45, batch_size=1, crop=8))
    run.crops.length = 45
    assert content(trained(run))["step"] == 45


def test_without_resume_the_run_starts_anew_and_the_old_checkpoint_is_kept(
    straight: Run, tmp_path: Path
) -> None:
    stopped = new_run(tmp_path)
    at_step(stopped, 2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedError):
        trained(stopped)
    before = stopped.checkpoint.read_bytes()
    assert_same(content(trained(new_run(tmp_path))), content(straight))
    assert (tmp_path / "checkpoint.old.pt").read_bytes() == before


def test_learning_rate_is_the_recipes_also_after_a_stop(tmp_path: Path) -> None:
    seen: list[float] = []
    for resume in (False, True):
        run = new_run(tmp_path)

        def note(optimizer: Any, args: object, kwargs: object) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

        handle = register_optimizer_step_pre_hook(note)
        at_step(run, 3, lambda: signal.raise_signal(signal.SIGINT))
        try:
            trained(run, resume=resume)
        except StoppedError:
            assert not resume
        finally:
            handle.remove()
    assert seen == [RECIPE.lr_at(step) for step in range(6)]


def test_other_settings_are_refused_by_name(straight: Run) -> None:
    other = new_run(straight.folder, settings={"seed": 1, "processes": 2})
    with pytest.raises(RefusedError, match=r"seed was 0, is 1, processes was None, is 2$"):
        trained(other, resume=True)


def test_a_cut_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    run = trained(new_run(tmp_path))
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:5000])
    with pytest.raises(RefusedError, match=r"checkpoint\.pt: cut short, altered or not"):
        trained(new_run(tmp_path), resume=True)


def test_validation_does_not_touch_training(straight: Run, tmp_path: Path) -> None:
    def validate(model: nn.Module) -> float:
        assert model is run.student
        return 30.0 + run.step

    run = new_run(tmp_path, validate=validate)
    trained(run)
    assert [record["psnr"] for record in run.records] == [31, 32, 33, 34, 35, 36]
    assert_same(run.student.state_dict(), straight.student.state_dict())


def test_the_student_ends_bare_and_in_eval_mode(straight: Run) -> None:
    assert not straight.student.training
    assert "forward" not in vars(straight.student) or not hasattr(
        straight.student, "_original_forward"
    )
    assert straight.dckd is not None
    straight.dckd.attach(torch.optim.Adam(straight.student.parameters())).detach()


def test_the_grad_scaler_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    def accelerator() -> Accelerator:
        made = Accelerator()
        made.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return made

    run = new_run(tmp_path)
    at_step(run, 4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(StoppedError):
        train(run, accelerator(), resume=False)
    assert content(run)["scaler"]["scale"] == 16.0
    resumed = accelerator()
    train(new_run(tmp_path), resumed, resume=True)
    assert resumed.scaler.get_scale() == 32.0


@pytest.mark.parametrize("distils", [True, False])
def test_a_teacher_of_nan_is_refused_at_the_first_step(tmp_path: Path, distils: bool) -> None:
    run = new_run(tmp_path)
    if not distils:
        run.dckd = None
    assert run.teacher is not None
    nn.init.constant_(run.teacher.tail.bias, torch.nan)
    with pytest.raises(RefusedError, match="teacher_out must be finite" if distils else "kd nan"):
        trained(run)
    assert run.step <= 1
    assert not run.checkpoint.exists()


def test_a_diverged_student_is_never_saved(tmp_path: Path) -> None:
    recipe = Recipe(iterations=60, batch_size=1, crop=8)
    run = new_run(tmp_path, recipe=recipe, dckd=None)
    run.crops.length = 60
    at_step(run, 5, lambda: run.student.tail.bias.data.fill_(torch.nan))
    with pytest.raises(RefusedError, match=r"step 6: got losses l1 nan kd nan; expected finite"):
        trained(run)
    assert content(run)["step"] == 3


def test_bugs_keep_their_traceback(tmp_path: Path) -> None:
    def buggy(model: nn.Module) -> float:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        trained(new_run(tmp_path, validate=buggy))


def test_values_are_looked_at_regularly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    run = new_run(tmp_path)
    assert run.teacher is not None
    teacher = run.teacher
    at_step(run, 3, lambda: teacher.tail.bias.data.fill_(7.0))
    with pytest.raises(RefusedError, match=r"teacher_out must lie in \[0, 1\]"):
        trained(run)
    assert run.step == 2


class WholeArm(nn.Module):
    """A method that adds its own distance to the teacher, and looks at the ground truth."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, Tensor] = {}

    def forward(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, *, target: Tensor
    ) -> Tensor:
        value = F.l1_loss(student_out, teacher_out)
        gaps = torch.stack([value, F.l1_loss(teacher_out, target)])
        self.last = {"kd": value.detach(), "gaps": gaps.detach()}
        return value

    def attach(self, optimizer: object) -> "WholeArm":
        return self

    def detach(self) -> "WholeArm":
        return self

    def check(self, *images: Tensor) -> None:
        pass


def test_a_whole_method_stands_for_the_distance_to_the_teacher(tmp_path: Path) -> None:
    """Which is not added once more; its distances are recorded beside the losses."""
    plain = trained(new_run(tmp_path, dckd=None))
    whole = trained(new_run(tmp_path, dckd=WholeArm(), whole=True))
    assert_same(whole.student.state_dict(), plain.student.state_dict())
    for mine, theirs in zip(whole.records, plain.records, strict=True):
        assert mine["gaps"][0] == mine["kd"] == theirs["kd"]
        assert mine["l1"] == theirs["l1"]
