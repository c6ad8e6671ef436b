"""The hooks: what counts as a step, who is followed, and that all of it can be undone."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from conftest import Student
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dckd_losses import DCKDLoss, HistoryModel


@pytest.fixture
def dckd(student, encoder):
    history = HistoryModel(student, decay=0.0, interval=2)
    return DCKDLoss(student, encoder, history=history)


@pytest.fixture
def optimizer(student):
    return torch.optim.SGD(student.parameters(), 0.1)


def step(student, optimizer):
    student(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_attach_counts_steps_and_moves_history(dckd, student, optimizer):
    assert dckd.attach(optimizer) is dckd
    step(student, optimizer)
    assert dckd.history.iteration == 1
    assert not same(dckd.history.model, student)
    step(student, optimizer)
    assert same(dckd.history.model, student)


def test_without_attach_nothing_counts(dckd, student, optimizer):
    step(student, optimizer)
    assert dckd.history.iteration == 0


def test_detach_leaves_no_hook(dckd, student, optimizer):
    dckd.attach(optimizer).watch(student)
    assert dckd.detach() is dckd
    assert not optimizer._optimizer_step_post_hooks
    assert not student._forward_pre_hooks
    step(student, optimizer)
    assert dckd.history.iteration == 0
    dckd.attach(optimizer).watch(student).detach().detach()


def test_attaching_twice_raises(dckd, student, optimizer):
    dckd.attach(optimizer)
    with pytest.raises(ValueError, match=r"attached .* already: detach\(\) it first"):
        dckd.attach(optimizer)
    step(student, optimizer)
    assert dckd.history.iteration == 1


def test_two_losses_on_one_student_count_each(dckd, student, encoder, optimizer):
    other = DCKDLoss(student, encoder).attach(optimizer)
    dckd.attach(optimizer)
    other.watch(student)
    dckd.watch(student)
    step(student, optimizer)
    assert dckd.history.iteration == other.history.iteration == 1
    other.detach()
    step(student, optimizer)
    assert (dckd.history.iteration, other.history.iteration) == (2, 1)


def test_source_is_followed_instead_of_the_student(dckd, student, optimizer):
    average = AveragedModel(student)
    dckd.attach(optimizer, source=average)
    for _ in range(2):
        step(student, optimizer)
    assert same(dckd.history.model, average.module)
    assert not same(dckd.history.model, student)


def test_source_is_kept_alive_by_the_optimizer(dckd, student, optimizer):
    dckd.attach(optimizer, source=copy.deepcopy(student))
    gc.collect()
    for _ in range(2):
        step(student, optimizer)
    assert dckd.history.iteration == 2


def test_student_is_not_kept_alive(encoder):
    student = Student()
    dckd, gone = DCKDLoss(student, encoder), weakref.ref(student)
    del student
    gc.collect()
    assert gone() is None
    with pytest.raises(ValueError, match="does not know its student any more: pass source="):
        dckd.attach(torch.optim.SGD([nn.Parameter(torch.zeros(1))]))


def test_a_dropped_student_is_reported(encoder):
    student = Student()
    parameter = student.layers[0].weight
    optimizer = torch.optim.SGD([parameter], 0.1)
    dckd = DCKDLoss(student, encoder).attach(optimizer)
    del student
    gc.collect()
    parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(RuntimeError, match="the student is gone"):
        optimizer.step()
    dckd.detach()
    optimizer.step()


def test_gradient_accumulation_counts_optimizer_steps(dckd, student, optimizer, accelerator):
    accelerator = accelerator(gradient_accumulation_steps=2)
    student, optimizer = accelerator.prepare(student, optimizer)
    dckd.attach(optimizer)
    for _ in range(6):
        with accelerator.accumulate(student):
            accelerator.backward(student(torch.rand(1, 3, 8, 8)).sum())
            optimizer.step()
            optimizer.zero_grad()
    assert dckd.history.iteration == 3


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_amp_skips_do_not_count(dckd, student, fused):
    """A fused optimizer is called even then and finds out on its own."""
    optimizer = torch.optim.SGD(student.parameters(), 0.1, fused=fused)
    dckd.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * student(torch.rand(1, 3, 8, 8)).sum()).backward()
        before = copy.deepcopy(student)
        scaler.step(optimizer)
        scaler.update()
        assert same(before, student) == (factor == float("inf"))
    assert dckd.history.iteration == 2


def test_closures_count_once(dckd, student):
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=3)
    dckd.attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = student(torch.ones(1, 3, 8, 8)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert dckd.history.iteration == 1


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_made_from_a_wrapped_student(student, encoder, optimizer, wrap):
    wrapped = wrap(student)
    history = HistoryModel(wrapped, decay=0.0, interval=1)
    dckd = DCKDLoss(wrapped, encoder, history=history).attach(optimizer)
    step(student, optimizer)
    assert same(dckd.history.model, student)


def test_refuses_what_is_no_optimizer(dckd):
    with pytest.raises(ValueError, match="expected a torch optimizer, got list"):
        dckd.attach([1])


def test_refuses_an_optimizer_of_another_network(dckd):
    other = torch.optim.SGD(Student().parameters(), 0.1)
    with pytest.raises(ValueError, match=r"trains no parameter of the student.*source="):
        dckd.attach(other)


def test_refuses_another_source_at_once(dckd, optimizer):
    with pytest.raises(ValueError, match="names, such as"):
        dckd.attach(optimizer, source=nn.Conv2d(3, 3, 1))
    assert not optimizer._optimizer_step_post_hooks


def test_reports_another_device_at_the_first_step(dckd, student, optimizer):
    dckd.attach(optimizer).to("meta")
    with pytest.raises(ValueError, match=r"on meta in the history and on cpu.*\.to\(device\)"):
        step(student, optimizer)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_detached(dckd, student, optimizer, clone):
    dckd.attach(optimizer).watch(student)
    other = clone(dckd)
    step(student, optimizer)
    assert (dckd.history.iteration, other.history.iteration) == (1, 0)
    with pytest.raises(ValueError, match="lq is missing"):
        other(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    other.attach(optimizer, source=student)
    step(student, optimizer)
    assert (dckd.history.iteration, other.history.iteration) == (2, 1)


def test_a_deepcopy_knows_the_student_and_an_unpickled_loss_does_not(dckd, optimizer):
    copy.deepcopy(dckd).attach(optimizer)
    with pytest.raises(ValueError, match="does not know its student"):
        pickle.loads(pickle.dumps(dckd)).attach(optimizer)


def test_copies_of_the_student_carry_no_live_watch(dckd, student):
    dckd.watch(student)
    lq = torch.rand(1, 3, 8, 8)
    for other in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        other(torch.rand(5, 3, 8, 8))
    out = student(lq)
    dckd(out, torch.rand_like(out))


# watch


def test_watch_gives_the_students_input(dckd, student, images):
    lq, teacher_out = images(2, 3, 8, 8), images(2, 3, 16, 16)
    other = copy.deepcopy(dckd)
    assert dckd.watch(student) is dckd
    out = student(lq)
    assert torch.equal(dckd(out, teacher_out), other(out, teacher_out, lq))
    out = student(lq=lq)
    assert torch.equal(dckd(out, teacher_out), other(out, teacher_out, lq))


def test_watch_lets_go_after_use(dckd, student, images):
    dckd.watch(student)
    out, teacher_out = student(images(1, 3, 8, 8)), images(1, 3, 16, 16)
    dckd(out, teacher_out)
    with pytest.raises(ValueError, match="has not run with gradient since the last call"):
        dckd(out, teacher_out)


def test_watch_checks_the_batch(dckd, student, images):
    dckd.watch(student)
    student(images(3, 3, 8, 8))
    out = images(2, 3, 16, 16)
    with pytest.raises(ValueError, match="ran on 3 images, its output has 2"):
        dckd(out, out)


def test_watch_ignores_validation(dckd, student, images):
    dckd.watch(student)
    out = student(images(2, 3, 8, 8))
    with torch.no_grad():
        student(images(1, 3, 8, 8))
    dckd(out, images(2, 3, 16, 16))


def test_watch_keeps_what_the_student_overwrites(encoder, images):
    class InPlace(Student):
        def forward(self, lq):
            lq *= 255
            return super().forward(lq) / 255

    student = InPlace()
    dckd = DCKDLoss(student, encoder).watch(student)
    out = student(images(1, 3, 8, 8))
    dckd(out, images(1, 3, 16, 16))


def test_an_lq_that_is_given_wins(dckd, student, images):
    dckd.watch(student)
    lq, teacher_out = images(1, 3, 8, 8), images(1, 3, 16, 16)
    other = copy.deepcopy(dckd)
    out = student(images(1, 3, 8, 8))
    assert torch.equal(dckd(out, teacher_out, lq), other(out, teacher_out, lq))


def test_watching_twice_raises(dckd, student):
    dckd.watch(student)
    with pytest.raises(ValueError, match="watches a module already"):
        dckd.watch(student)


def test_the_student_is_known_though_its_wrapper_is_gone(student, encoder):
    dckd = DCKDLoss(nn.DataParallel(student), encoder)
    gc.collect()
    dckd.attach(torch.optim.SGD(student.parameters(), 0.1))


def test_a_copy_made_with_the_student_follows_the_students_copy(student, encoder):
    both = copy.deepcopy(nn.ModuleList([student, DCKDLoss(student, encoder)]))
    both[1].attach(torch.optim.SGD(both[0].parameters(), 0.1))


def test_attaching_without_history_counts_nothing_and_works(student, encoder):
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    DCKDLoss(student, encoder, negatives=lambda lq: lq[None]).attach(optimizer)
    optimizer.step()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_watched_student_keep_no_input(dckd, student, clone):
    dckd.watch(student)
    other = clone(student)
    other(torch.rand(5, 3, 8, 8))
    (watch,) = other._forward_pre_hooks.values()
    with pytest.raises(ValueError, match="has not run"):
        watch.take(5)


def test_watch_keeps_no_graph(dckd, student):
    dckd.watch(student)
    student(2 * torch.rand(1, 3, 8, 8, requires_grad=True))
    assert not dckd._watch.take(1).requires_grad


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_look_at_values_again(dckd, images, clone):
    batch = images(1, 3, 16, 16), images(1, 3, 16, 16), images(1, 3, 8, 8)
    dckd(*batch)
    with pytest.raises(ValueError, match="teacher_out must lie"):
        clone(dckd)(batch[0], 255 * batch[1], batch[2])


def test_check_looks_at_what_watch_holds_and_leaves_it(dckd, student, images):
    dckd.watch(student)
    out, teacher_out = student(255 * images(1, 3, 8, 8)), images(1, 3, 16, 16)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"lq must lie in \[0, 1\]"):
            dckd.check(out, teacher_out)
    out = student(images(1, 3, 8, 8))
    dckd.check(out, teacher_out)
    dckd(out, teacher_out)
    dckd.check(out, teacher_out)  # nothing is held, so nothing of lq is looked at
    with pytest.raises(ValueError, match="lq is missing: pass it"):
        dckd.detach().check(out, teacher_out)
