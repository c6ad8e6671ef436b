"""Two processes: what data parallelism and sharding must leave as it is, and may not do."""

import time
from datetime import timedelta

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator, gradient_ratio

RANKS = 2
STEPS = 5
INTERVAL = 2
DEADLINE = 150  # seconds, for processes that would wait for each other for ever


class Student(nn.Module):
    """Two layers, whose channels do not divide evenly between ranks."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 12, 3, padding=1)

    def forward(self, lq):
        return F.pixel_shuffle(self.last(self.first(lq).tanh()), 2)


class Module(nn.Module):
    """A student and its loss in one module, which is wrapped as a whole, as Lightning does."""

    def __init__(self, student, dckd):
        super().__init__()
        self.student, self.dckd = student, dckd

    def forward(self, lq, teacher_out):
        return self.dckd(self.student(lq), teacher_out, lq)


def darker(lq):
    """A degradation without random numbers: those differ between ranks."""
    return 0.8 * lq


def fresh():
    """A student, its optimizer and its loss in float64, always the same; and a step's images."""
    torch.manual_seed(0)
    student = Student().double()
    history = HistoryModel(student, interval=INTERVAL, interval_growth=0)
    negatives = NegativeGenerator(history, num_negatives=1, degradation=darker)
    dckd = DCKDLoss(student, "compact", negatives=negatives, balance=None).double()
    return student, dckd, torch.rand(4, 3, 8, 8).double(), torch.rand(4, 3, 16, 16).double()


def numbers(module):
    whole = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters())
    return torch.cat([p.detach().flatten() for p in whole])


def descend(student):
    return torch.optim.SGD(student.parameters(), 0.05)  # Adam would blow rounding up


def alone():
    """The same training in one process. Eq. 5's ratio is each rank's own, so losses are averaged
    over the ranks' parts of the batch, which is not the loss of the whole batch."""
    student, dckd, lq, teacher_out = fresh()
    optimizer = descend(student)
    dckd.attach(optimizer)
    for _ in range(STEPS):
        parts = zip(lq.chunk(RANKS), teacher_out.chunk(RANKS), strict=True)
        loss = sum(dckd(student(a), b, a) for a, b in parts) / RANKS
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {"student": numbers(student), "history": numbers(dckd.history.model)}
    start = numbers(fresh()[0])
    assert not any(torch.equal(value, start) for value in state.values()), "something never moved"
    return state


def wrap(kind, student, dckd):
    """What the trainer calls with lq and teacher_out to get the student's output and the loss."""
    if kind == "module":
        wrapped = DistributedDataParallel(Module(student, dckd))
        return lambda lq, teacher_out: (None, wrapped(lq, teacher_out))
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (RANKS,))
        for layer in (student.first, student.last, student):
            fully_shard(layer, mesh=mesh)
    called = DistributedDataParallel(student) if kind == "ddp" else student
    dckd.watch(called)

    def step(lq, teacher_out):
        student_out = called(lq)
        with CommDebugMode() as seen:
            loss = dckd(student_out, teacher_out)
            torch.autograd.grad(loss, student_out, retain_graph=True)
            gradient_ratio(loss, student_out.abs().mean(), student_out)
        assert seen.get_total_counts() == 0, "the loss waits for other ranks"
        return student_out, loss

    return step


def work(rank, kind, folder):
    """One process."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    student, dckd, lq, teacher_out = fresh()
    call = wrap(kind, student, dckd)
    optimizer = descend(student)
    dckd.attach(optimizer)
    gathers = []
    for _ in range(STEPS):
        _, loss = call(lq.chunk(RANKS)[rank], teacher_out.chunk(RANKS)[rank])
        optimizer.zero_grad()
        loss.backward()
        with CommDebugMode() as seen:
            optimizer.step()
        gathers.append(seen.get_total_counts())
    state = {"student": numbers(student), "history": numbers(dckd.history.model)}
    torch.save({**state, "gathers": gathers, "dckd": dckd.state_dict()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def in_two_processes(kind, folder):
    context = multiprocessing.start_processes(
        work, (kind, folder), nprocs=RANKS, join=False, start_method="spawn"
    )
    end = time.monotonic() + DEADLINE
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "module", "fsdp"])
def test_two_processes_train_as_one(kind, tmp_path):
    expected = alone()
    one, other = in_two_processes(kind, tmp_path)
    for name, value in expected.items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-9)
    assert one["dckd"]["history.iteration"] == STEPS
    assert all(torch.equal(one["dckd"][name], other["dckd"][name]) for name in one["dckd"])
    parameters = len(list(Student().parameters()))
    due = [parameters if kind == "fsdp" and step % INTERVAL == 0 else 0 for step in range(1, 6)]
    assert one["gathers"] == other["gathers"] == due, "gathered once an interval, together"


def test_a_student_that_is_sharded_already_says_what_to_do(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1
    )
    try:
        student = fully_shard(Student(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"sharded already.*make the loss first, then call"):
            DCKDLoss(student, "compact")
    finally:
        distributed.destroy_process_group()
