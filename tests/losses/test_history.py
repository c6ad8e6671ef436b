"""Eq. 6: the closed form, the schedule, and what trainers do to students."""

import copy
import pickle
import threading
import warnings

import oracle
import pytest
import torch
from conftest import NoNumberLeaves, Student
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dckd_losses import DCKDLoss, HistoryModel


def numbers(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()


def shaken(student):
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += torch.randn_like(parameter)
    return student


# Eq. 6 and its schedule


@pytest.mark.parametrize("decay", [0.1, 0.0, 0.9])
def test_closed_form(student, decay):
    student.double()
    history = HistoryModel(student, decay=decay)
    start, sources = numbers(student), []
    for _ in range(4):
        history.update(shaken(student))
        sources.append(numbers(student))
    assert numbers(history.model) == pytest.approx(oracle.history(start, sources, decay), rel=1e-12)


def test_paper_schedule():
    history = HistoryModel(Student())
    due = [t for t in range(1, 402_001) if history.due(t)]
    assert due == oracle.due_steps(402_000, 1000, 1000, 100_000, 3000)
    assert due[:2] == [1000, 2000]
    assert 100_000 in due
    assert {101_000, 103_000}.isdisjoint(due)
    assert {102_000, 200_000, 201_000, 399_000, 402_000} <= set(due)


def test_an_interval_beyond_the_released_codes_last_is_kept():
    assert HistoryModel(nn.Linear(1, 1), interval=5000).max_interval == 5000
    assert HistoryModel(nn.Linear(1, 1), interval=200).max_interval == 3000


@given(*(st.integers(1, 20) for _ in range(4)))
@settings(deadline=None, max_examples=40)
def test_any_schedule(interval, growth, every, more):
    source, most = nn.Linear(1, 1), interval + more - 1
    history = HistoryModel(
        source,
        interval=interval,
        interval_growth=growth,
        growth_every=every,
        max_interval=most,
    )
    moved = [t for t in range(1, 101) if history.step(source)]
    assert moved == oracle.due_steps(100, interval, growth, every, most)
    assert history.iteration.item() == 100


def test_a_source_that_is_not_finite_is_skipped_and_told_of_once(student):
    history, good = HistoryModel(student, interval=1), copy.deepcopy(student)
    before = numbers(history.model)
    with torch.no_grad():
        student.layers[0].weight[0] = torch.nan
    with pytest.warns(UserWarning, match="source's weights are not all finite: history keeps its"):
        assert not history.step(student)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not history.step(student)
        assert numbers(history.model) == before
        assert history.step(shaken(good))
    assert history.iteration == 3
    assert all(now != was for now, was in zip(numbers(history.model), before, strict=True))
    with pytest.warns(UserWarning, match="not all finite"):
        history.step(student)


@pytest.mark.parametrize(("value", "moves"), [(-torch.inf, True), (torch.nan, False)])
def test_a_buffer_may_be_an_infinite_mask_but_not_nan(student, value, moves):
    student.register_buffer("mask", torch.full((2,), value))
    history = HistoryModel(student)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert history.update(student) == moves


def test_reset_starts_afresh(student):
    history = HistoryModel(student, interval=2)
    history.step(student)
    shaken(student).calls += 1
    history.reset(student)
    assert numbers(history.model) == numbers(student)
    assert history.iteration == 0 and history.model.calls == 1
    assert [history.step(student) for _ in range(2)] == [False, True]


def test_is_unlike_other_weights_until_it_moves(student):
    history = HistoryModel(student)
    assert not history.unlike(student) and not history.unlike(copy.deepcopy(student).half())
    shaken(student)
    assert history.unlike(student) and history.unlike(AveragedModel(student))
    history.update(student)
    assert history.iteration == 0 and not history.unlike(student)


# the network it holds


def test_forward_is_the_old_student_without_gradient(student, images):
    lq = images(2, 3, 8, 8).requires_grad_()
    history = HistoryModel(student)
    before = student.eval()(lq)
    shaken(student)
    assert torch.equal(history(lq), before)
    assert not history(lq).requires_grad


def test_is_frozen_and_in_eval_mode_from_the_start(student):
    student(torch.rand(1, 3, 4, 4)).sum().backward()
    history = HistoryModel(student.train())
    for _ in range(2):
        assert not any(m.training for m in history.modules())
        history.train()
    assert not any(p.requires_grad or p.grad is not None for p in history.parameters())
    assert student.training and all(p.requires_grad for p in student.parameters())


def test_buffers_are_copied_as_they_are(student):
    history = HistoryModel(student)
    student.train()(torch.rand(1, 3, 4, 4))
    history.update(student)
    assert history.model.calls == student.calls == 1


def test_does_not_change_its_input_even_if_the_student_does(images):
    """As spandrel's RCAN, which multiplies its input in place."""
    student, lq = nn.ReLU(inplace=True), images(1, 3, 4, 4) - 0.5
    before = lq.clone()
    assert torch.equal(HistoryModel(student)(lq), before.relu())
    assert torch.equal(lq, before)


def test_casts_below_float32_only_move_and_sources_may_have_another_dtype(student):
    history = HistoryModel(student, decay=0.0).half()
    history.update(shaken(copy.deepcopy(student)).double())
    assert numbers(history.model) != numbers(student)
    history.update(copy.deepcopy(student).double())
    assert numbers(history.model) == numbers(student)
    assert next(history.model.parameters()).dtype == torch.float32
    assert next(history.double().model.parameters()).dtype == torch.float64
    assert history.iteration.dtype == torch.int64


@pytest.mark.parametrize("channels", [1, 4])
def test_lq_may_have_other_channels(images, channels):
    history = HistoryModel(nn.Conv2d(channels, 3, 1))
    assert history(images(2, channels, 4, 4)).shape == (2, 3, 4, 4)


# hooks, and what deepcopy alone cannot copy


class Log:
    """What a user hangs on a layer; a lock cannot be copied."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), []

    def keep(self, *args):
        self.seen.append(args)


def test_the_users_hooks_stay_with_the_student(student, images):
    log, layer = Log(), student.layers[0]
    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_load_state_dict_pre_hook,
        student.register_forward_hook,
    ):
        register(log.keep)
    layer.register_state_dict_post_hook(lambda *args: log.keep(*args))
    history = HistoryModel(student)
    history(images(1, 3, 8, 8))
    history.load_state_dict(history.state_dict())
    assert not log.seen
    student(images(1, 3, 8, 8).requires_grad_()).sum().backward()
    assert len(log.seen) == 4


def test_features_that_a_student_keeps_are_copied_without_their_graph(student, images):
    student.features = {"last": [student(images(1, 3, 8, 8))]}
    (kept,) = HistoryModel(student).model.features["last"]
    assert torch.equal(kept, student.features["last"][0])
    assert not kept.requires_grad
    assert student.features["last"][0].grad_fn is not None


def test_what_cannot_be_copied_is_named(student):
    student.layers[0].log = Log()
    with pytest.raises(
        ValueError, match=r"because of layers\.0\.log, a Log \(.*lock.*: leave it out"
    ):
        HistoryModel(student)


# wrappers


@pytest.mark.parametrize(
    "wrap",
    [DataParallel, AveragedModel, torch.compile, lambda m: torch.compile(DataParallel(m))],
    ids=["DataParallel", "AveragedModel", "compile", "both"],
)
def test_wrappers_are_taken_off(student, wrap):
    history = HistoryModel(wrap(student), decay=0.0)
    assert type(history.model) is Student
    history.update(wrap(shaken(student)))
    assert numbers(history.model) == numbers(student)


def test_accelerates_patch_is_not_in_the_history(student, images, accelerator):
    """Its mixed precision replaces `forward` by a closure over the original's weights."""
    lq = images(1, 3, 4, 4)
    expected = copy.deepcopy(student).eval()(lq)
    history = HistoryModel(accelerator(mixed_precision="bf16").prepare_model(student))
    shaken(student)
    assert "forward" in vars(student), "the caller's model stays patched"
    assert "forward" not in vars(history.model)
    for one in (history, pickle.loads(pickle.dumps(history))):
        assert torch.equal(one(lq), expected), "computed in float32, from weights of its own"


def test_an_overridden_forward_under_accelerates_patch_is_kept(student, images, accelerator):
    def doubled(self, lq):
        return 2 * type(self).forward(self, lq)

    lq = images(1, 3, 4, 4)
    expected = 2 * student.eval()(lq)
    student.forward = doubled.__get__(student)
    history = HistoryModel(accelerator(mixed_precision="bf16").prepare_model(student))
    shaken(student)
    assert torch.equal(history(lq), expected)


@pytest.fixture
def group(tmp_path):
    """A process group of this one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_is_taken_off(student, encoder, group):
    wrapped = DistributedDataParallel(student)
    history = HistoryModel(wrapped, decay=0.0, interval=1)
    assert type(history.model) is Student
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    DCKDLoss(wrapped, encoder, history=history).attach(optimizer, source=wrapped)
    wrapped(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert numbers(history.model) == numbers(student)


def test_follows_a_sharded_student(student, group):
    history = HistoryModel(student, decay=0.0)
    sharded = fully_shard(copy.deepcopy(student), mesh=init_device_mesh("cpu", (1,)))
    state = dict(shaken(student).state_dict())
    for name, old in sharded.state_dict().items():
        if hasattr(old, "device_mesh"):
            state[name] = distribute_tensor(state[name], old.device_mesh)
    sharded.load_state_dict(state)
    history.update(sharded)
    assert numbers(history.model) == numbers(student)


# its counter


def test_counts_from_the_buffer_whoever_wrote_it(student):
    history = HistoryModel(student, interval=10)
    history.step(student)
    history.iteration.fill_(8)
    assert not history.step(student)
    assert history.step(student)
    history.load_state_dict({**history.state_dict(), "iteration": torch.tensor(19)})
    assert history.step(student)
    state = {name: value.clone() for name, value in history.state_dict().items()}
    state["iteration"] = torch.tensor(76).add_(1)  # written to as often as the one it replaces
    history.load_state_dict(state, assign=True)
    history.step(student)
    assert history.iteration == 78


def test_state_dict_continues(student, images):
    history = HistoryModel(student, interval=2)
    history.step(student)
    other = HistoryModel(shaken(copy.deepcopy(student)), interval=2)
    other.load_state_dict(history.state_dict())
    names = {f"model.{name}" for name in student.state_dict()}
    assert set(history.state_dict()) == {"iteration"} | names
    shaken(student)
    assert history.step(student) and other.step(student)
    lq = images(1, 3, 4, 4)
    assert torch.equal(history(lq), other(lq))


def test_copies_count_on_their_own(student, clone):
    history = HistoryModel(student)
    history.step(student)
    other = clone(history)
    other.step(student)
    assert (history.iteration, other.iteration) == (1, 2)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_copy_that_loads_a_counter_counts_from_it(student, steps):
    history = HistoryModel(student)
    for _ in range(steps):
        history.step(student)
    other = copy.deepcopy(history)
    other.load_state_dict({**other.state_dict(), "iteration": torch.tensor(500)})
    other.step(student)
    assert other.iteration == 501


def test_steps_after_the_first_read_nothing_from_the_device(student):
    history = HistoryModel(student)
    history.step(student)
    with NoNumberLeaves():
        history.step(student)
    assert history.iteration == 2


# what it refuses


def with_another_bias(student):
    student.layers[0].bias = nn.Parameter(torch.zeros(1))
    return student


def with_a_buffer(student):
    student.register_buffer("more", torch.zeros(1))
    return student


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nn.Sequential, "names, such as .*from one module.*the student itself"),
        (with_another_bias, r"layers.0.bias is \(12,\) in the history and \(1,\)"),
        (with_a_buffer, "names, such as 'more'"),
        (lambda student: student.to("meta"), r"on cpu in the history and on meta.*\.to\(device\)"),
    ],
    ids=["names", "shapes", "buffers", "devices"],
)
def test_refuses_another_source(student, change, message):
    history = HistoryModel(student)
    before = numbers(history.model)
    with pytest.raises(ValueError, match=message):
        history.update(change(copy.deepcopy(student)))
    assert numbers(history.model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        ({"decay": -0.1}, "decay must be at least 0"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"interval": 1.5}, "interval must be a whole number, at least 1, got 1.5"),
        ({"growth_every": 0}, "growth_every must be at least 1"),
        ({"interval_growth": -1}, "interval_growth must be at least 0"),
        ({"max_interval": 0}, "max_interval with interval=1000 must be at least 1000, got 0"),
        ({"interval": 5000, "max_interval": 3000}, "must be at least 5000, got 3000"),
    ],
)
def test_refuses_arguments(student, arguments, message):
    with pytest.raises(ValueError, match=message):
        HistoryModel(student, **arguments)


def test_refuses_what_is_no_module_and_what_is_no_image(student, images):
    with pytest.raises(ValueError, match="student must be a module, got function"):
        HistoryModel(lambda x: x)
    with pytest.raises(ValueError, match=r"lq must be \(B, C, H, W\)"):
        HistoryModel(student)(images(3, 8, 8))
    with pytest.raises(ValueError, match=r"lq is on cpu, the history on meta.*\.to\(device\)"):
        HistoryModel(student).to("meta")(images(1, 3, 8, 8))


def test_a_student_of_several_outputs_is_refused(student, images):
    student.layers.forward = lambda lq: [lq, lq]
    with pytest.raises(ValueError, match="one tensor, got list: make the loss from a module aroun"):
        HistoryModel(student)(images(1, 3, 8, 8))


def test_a_student_without_weights_has_a_history_too():
    student = nn.Upsample(scale_factor=2)
    assert HistoryModel(student, interval=1).step(student)
