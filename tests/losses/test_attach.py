"""The hooks: what counts as a step, who is followed, what is told, and that all can be undone."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch
from conftest import Student
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator


@pytest.fixture
def dckd(student, encoder):
    history = HistoryModel(student, decay=0.0, interval=2)
    return DCKDLoss(student, encoder, history=history)


@pytest.fixture
def optimizer(student):
    return torch.optim.SGD(student.parameters(), 0.1)


@pytest.fixture
def batch(images):
    """lq, teacher_out."""
    return images(2, 3, 8, 8), images(2, 3, 16, 16)


def step(student, optimizer):
    student(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def same(a, b):
    return all(map(torch.equal, a.parameters(), b.parameters()))


def told_by(call, about="student"):
    """The warnings of a call that are about this."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in told if about in str(one.message)]


# attach


def test_attach_counts_steps_and_moves_history(dckd, student, optimizer):
    assert dckd.attach(optimizer) is dckd
    step(student, optimizer)
    assert dckd.history.iteration == 1
    assert not same(dckd.history.model, student)
    step(student, optimizer)
    assert same(dckd.history.model, student)


def test_detach_leaves_no_hook(dckd, student, optimizer):
    dckd.attach(optimizer).watch(student)
    assert dckd.detach() is dckd
    assert not optimizer._optimizer_step_post_hooks
    assert not student._forward_pre_hooks
    step(student, optimizer)
    assert dckd.history.iteration == 0
    dckd.history.reset(student)
    dckd.attach(optimizer).watch(student).detach().detach()


def test_attaching_again_counts_a_step_once_and_takes_the_last_source(dckd, student, optimizer):
    assert dckd.attach(optimizer).attach(optimizer) is dckd
    step(student, optimizer)
    assert dckd.history.iteration == 1
    average = AveragedModel(student)
    dckd.attach(optimizer, source=average)
    step(student, optimizer)
    assert dckd.history.iteration == 2
    assert same(dckd.history.model, average.module) and not same(dckd.history.model, student)


@pytest.mark.parametrize("shared", [True, False])
def test_two_losses_of_one_student_count_a_step_once(dckd, student, encoder, optimizer, shared):
    history = dckd.history if shared else None
    other = DCKDLoss(student, encoder, history=history).attach(optimizer).watch(student)
    dckd.attach(optimizer).watch(student)
    step(student, optimizer)
    assert dckd.history.iteration == other.history.iteration == 1
    other.detach()
    step(student, optimizer)
    assert (dckd.history.iteration, other.history.iteration) == (2, 2 if shared else 1)


def test_losses_that_share_a_history_count_once_for_two_optimizers(dckd, student, encoder):
    """As where a student's parts have an optimizer each."""
    both = [torch.optim.SGD([p], 0.1) for p in student.parameters()]
    losses = [dckd, DCKDLoss(student, encoder, history=dckd.history)]
    for number in (1, 2):
        for loss, optimizer in zip(losses, both, strict=True):
            loss.attach(optimizer)  # again, as trainers do
        for optimizer in both:
            step(student, optimizer)
        assert dckd.history.iteration == number


def test_source_is_followed_and_kept_alive(dckd, student, optimizer):
    average, names = AveragedModel(student), dckd.state_dict().keys()
    dckd.attach(optimizer, source=average)
    assert dckd.state_dict().keys() == names
    expected = copy.deepcopy(average.module)
    del average
    gc.collect()
    for _ in range(2):
        step(student, optimizer)
    assert dckd.history.iteration == 2
    assert same(dckd.history.model, expected) and not same(expected, student)


def test_the_student_is_not_kept_alive(encoder):
    student = Student()
    parameter, gone = student.layers[0].weight, weakref.ref(student)
    optimizer = torch.optim.SGD([parameter], 0.1)
    dckd = DCKDLoss(student, encoder).attach(optimizer)
    del student
    gc.collect()
    assert gone() is None
    parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(RuntimeError, match="the student is gone"):
        optimizer.step()
    dckd.detach()
    optimizer.step()
    with pytest.raises(ValueError, match="does not know its student any more: pass source="):
        dckd.attach(optimizer)


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


def test_made_from_a_wrapped_student(student, encoder, optimizer):
    history = HistoryModel(student, decay=0.0, interval=1)
    dckd = DCKDLoss(nn.DataParallel(student), encoder, history=history)
    gc.collect()  # the wrapper is gone, the student is not
    dckd.attach(optimizer)
    step(student, optimizer)
    assert same(history.model, student)


def test_without_history_attach_counts_nothing_and_works(student, encoder, optimizer):
    DCKDLoss(student, encoder, negatives=lambda lq: lq[None]).attach(optimizer)
    optimizer.step()


def test_refuses_what_it_cannot_follow(dckd, optimizer):
    with pytest.raises(ValueError, match="expected a torch optimizer, got list"):
        dckd.attach([1])
    with pytest.raises(ValueError, match=r"trains no parameter of the student.*source="):
        dckd.attach(torch.optim.SGD(Student().parameters(), 0.1))
    with pytest.raises(ValueError, match="names, such as"):
        dckd.attach(optimizer, source=nn.Conv2d(3, 3, 1))
    assert not optimizer._optimizer_step_post_hooks


def test_reports_another_device_at_the_first_step(dckd, student, optimizer):
    dckd.attach(optimizer).to("meta")
    with pytest.raises(ValueError, match=r"on meta in the history and on cpu.*\.to\(device\)"):
        step(student, optimizer)


# copies


def test_copies_are_detached(dckd, student, optimizer, clone):
    dckd.attach(optimizer).watch(student)
    other = clone(dckd)
    step(student, optimizer)
    assert (dckd.history.iteration, other.history.iteration) == (1, 0)
    with pytest.raises(ValueError, match="lq is missing"):
        other(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))
    assert not told_by(lambda: other.attach(optimizer, source=student))
    step(student, optimizer)
    assert (dckd.history.iteration, other.history.iteration) == (2, 1)


def test_a_deepcopy_knows_the_student_and_an_unpickled_loss_does_not(dckd, student, optimizer):
    copy.deepcopy(dckd).attach(optimizer)
    with pytest.raises(ValueError, match="does not know its student"):
        pickle.loads(pickle.dumps(dckd)).attach(optimizer)
    both = copy.deepcopy(nn.ModuleList([student, dckd]))
    both[1].attach(torch.optim.SGD(both[0].parameters(), 0.1))  # its student was copied along


def test_copies_of_a_watched_student_watch_nothing(dckd, student, batch, clone):
    lq, teacher_out = batch
    dckd.watch(student)
    other = clone(student)
    out = student(lq)
    other(torch.rand(5, 3, 8, 8))
    (watch,) = other._forward_pre_hooks.values()
    assert watch.input is None
    dckd(out, teacher_out)  # the original's input is still its own


def test_copies_check_values_again(dckd, batch, clone):
    lq, teacher_out = batch
    dckd(teacher_out, teacher_out, lq)
    with pytest.raises(ValueError, match="teacher_out must lie"):
        clone(dckd)(teacher_out, 255 * teacher_out, lq)


# watch


def test_watch_gives_the_students_input_once(dckd, student, batch):
    lq, teacher_out = batch
    other = copy.deepcopy(dckd)
    assert dckd.watch(student) is dckd
    for call in (lambda: student(lq), lambda: student(lq=lq)):
        out = call()
        assert torch.equal(dckd(out, teacher_out), other(out, teacher_out, lq))
        with pytest.raises(ValueError, match="has not run with gradient since the last call"):
            dckd(out, teacher_out)


def test_watch_holds_the_last_training_input(dckd, student, batch):
    dckd.watch(student)
    with pytest.raises(ValueError, match="watches a module already"):
        dckd.watch(student)
    out = student(batch[0])
    with torch.no_grad():  # validation
        student(torch.rand(1, 3, 8, 8))
    dckd(out, batch[1])
    student(torch.rand(3, 3, 8, 8))
    with pytest.raises(ValueError, match=r"lq has 3 images, student_out has 2 \(with watch"):
        dckd(batch[1], batch[1])


def test_watch_keeps_what_the_student_overwrites_and_no_graph(encoder, batch):
    class InPlace(Student):
        def forward(self, lq):
            lq *= 255
            return super().forward(lq) / 255

    student = InPlace()
    lq, teacher_out = batch
    dckd = DCKDLoss(student, encoder).watch(student)
    before, x = lq.clone(), 1 * lq.requires_grad_()
    out = student(x)
    assert torch.equal(dckd._watch.input, before) and not dckd._watch.input.requires_grad
    dckd(out, teacher_out)


def test_an_lq_that_is_given_wins(dckd, student, batch):
    dckd.watch(student)
    lq, teacher_out = batch
    other = copy.deepcopy(dckd)
    out = student(lq)
    student(torch.rand_like(lq))
    assert torch.equal(dckd(out, teacher_out, lq), other(out, teacher_out, lq))


def test_check_reads_what_watch_holds_and_leaves_it(dckd, student, batch):
    lq, teacher_out = batch
    dckd.watch(student)
    out = student(255 * lq)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"lq must lie in \[0, 1\]"):
            dckd.check(out, teacher_out)
    out = student(lq)
    dckd.check(out, teacher_out)
    dckd(out, teacher_out)
    dckd.check(out, teacher_out)  # nothing is held, so nothing of lq is looked at
    with pytest.raises(ValueError, match="lq is missing: pass it"):
        dckd.detach().check(out, teacher_out)


# a history that nobody moves


@pytest.fixture
def idle(student, encoder):
    """Makes losses whose history is due every second step."""

    def make(**settings):
        history = HistoryModel(student, interval=2, interval_growth=0, **settings)
        return DCKDLoss(student, encoder, negatives=NegativeGenerator(history, num_negatives=1))

    return make


def train(dckd, student, steps=5, parts=1, after=lambda step: None, size=8):
    """Some optimizer steps of so many calls each; what was warned of."""
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)

    def run():
        for number in range(1, steps + 1):
            for _ in range(parts):
                lq = torch.rand(1, 3, size, size)
                dckd(student(lq), torch.rand(1, 3, 16, 16), lq).backward()
            optimizer.step()
            optimizer.zero_grad()
            after(number)

    return told_by(run, "history")


@pytest.mark.parametrize(("parts", "attached"), [(1, False), (3, False), (1, True)])
def test_an_idle_history_is_told_of_once_when_its_first_update_is_overdue(
    idle, student, optimizer, parts, attached
):
    dckd = idle()
    if attached:
        dckd.attach(optimizer)  # which never steps
    assert not train(dckd, student, steps=2, parts=parts)
    (told,) = train(dckd, student, parts=parts)
    assert "trained for 2 steps and its history never" in told
    assert "attach the loss" in told
    assert not train(dckd, student)


def test_a_copy_that_nobody_attached_is_told_of(idle, student, optimizer, clone):
    dckd = idle(max_interval=4)
    assert not train(dckd.attach(optimizer), student, after=lambda _: optimizer.step())
    assert len(train(clone(dckd), student)) == 1
    assert not train(clone(dckd), student, steps=4)


def test_whoever_follows_by_attach_or_by_hand_hears_nothing(idle, student, optimizer):
    by_step = idle()
    assert not train(by_step, student, after=lambda _: by_step.history.step(student))

    by_update = idle()

    def update(number):
        if number % 2 == 0:
            by_update.history.update(student)

    assert not train(by_update, student, parts=3, after=update)
    assert not train(idle().attach(optimizer), student, after=lambda _: optimizer.step())


def test_a_resumed_run_may_be_anywhere_between_two_updates(idle, student):
    """Those who update by hand may be in the longest interval already."""
    dckd = idle(max_interval=4)
    dckd.load_state_dict(dckd.state_dict())
    assert not train(dckd, student, steps=4)
    assert train(dckd, student, steps=1)


def test_a_history_that_is_followed_no_more_is_told_of(idle, student, optimizer):
    """As when a trainer makes another optimizer, or a wrapper steps in the attached one's place."""
    dckd = idle()
    assert not train(dckd.attach(optimizer), student, after=lambda _: optimizer.step())
    (told,) = train(dckd, student)
    assert "trained for 2 steps since its history last followed" in told
    assert not train(dckd, student)


def test_two_changes_of_the_weights_a_step_are_no_reason(idle, student, optimizer):
    """As sharpness-aware minimisation makes them."""

    def perturb(number):
        with torch.no_grad():
            student.layers[0].weight.mul_(1.001)
        if number % 2 == 0:
            optimizer.step()

    assert not train(idle().attach(optimizer), student, steps=8, after=perturb)


def test_calls_that_train_nothing_do_not_count(idle, student):
    dckd, lq, teacher_out = idle(), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)

    def calls():
        for _ in range(5):  # one step's weights
            dckd(student(lq), teacher_out, lq)
        for _ in range(5):
            with torch.no_grad():
                student.layers[0].weight.add_(0)
                with torch.enable_grad():
                    student_out = student(lq)
                dckd(student_out, teacher_out, lq)

    assert not told_by(calls)


@pytest.mark.parametrize("settings", [{"dcr_weight": 0}, {"negatives": lambda lq: lq[None] / 2}])
def test_without_history_there_is_nothing_to_tell(encoder, settings):
    student = nn.Conv2d(3, 3, 3, padding=1)
    history = None if "negatives" in settings else HistoryModel(student, interval=1)
    assert not train(DCKDLoss(student, encoder, history=history, **settings), student, size=16)


# a history that is not the student's past


def change(student):
    with torch.no_grad():
        student.layers[0].bias += 0.3


def test_weights_that_come_after_the_loss_are_told_of_at_attach(dckd, student, optimizer):
    change(student)
    (told,) = told_by(lambda: dckd.attach(optimizer))
    assert "other weights than the student" in told and "history.reset(student)" in told
    dckd.history.reset(student)
    assert not told_by(lambda: dckd.attach(optimizer))
    step(student, optimizer)
    assert not told_by(lambda: dckd.attach(optimizer)), "steps are counted: it is the past"


@pytest.mark.parametrize("attached", [False, True])
def test_weights_that_come_after_the_loss_are_told_of_in_the_first_call(
    dckd, student, optimizer, batch, attached
):
    lq, teacher_out = batch
    if attached:
        dckd.attach(optimizer)
    change(student)
    with torch.no_grad():
        assert not told_by(lambda: dckd(student(lq), teacher_out, lq)), "validation comes first"
    (told,) = told_by(lambda: dckd(student(lq), teacher_out, lq))
    assert "history.reset(student)" in told
    assert not told_by(lambda: dckd(student(lq), teacher_out, lq))


def test_a_resumed_history_may_be_older(dckd, student, optimizer, batch):
    dckd.history.iteration.fill_(7)
    state = dckd.state_dict()
    change(student)
    dckd.attach(optimizer).load_state_dict(state)
    assert not told_by(lambda: dckd(student(batch[0]), batch[1], batch[0]))


def test_a_moving_average_as_source_is_what_history_is_held_against(
    dckd, student, optimizer, batch
):
    average = AveragedModel(student)
    change(student)
    assert not told_by(lambda: dckd.attach(optimizer, source=average))
    assert not told_by(lambda: dckd(student(batch[0]), batch[1], batch[0]))


@pytest.mark.parametrize(
    ("outside", "reason"),
    [
        (lambda out, lq: out + nn.functional.interpolate(lq, scale_factor=2), "residual"),
        (lambda out, lq: 2 * out + 0.1, "it is 2 times as much plus a constant, so scaling"),
        (lambda out, lq: out.flip(3), r"differ by \d+%\. Negatives come from"),
    ],
    ids=["residual", "scaling", "else"],
)
def test_a_student_that_is_not_all_of_lq_to_image_is_told_of(dckd, student, batch, outside, reason):
    lq, teacher_out = batch
    out = outside(student(lq), lq)
    with pytest.warns(UserWarning, match=f"student_out is not what the student makes of.*{reason}"):
        dckd(out, teacher_out, lq)
    assert not told_by(lambda: dckd(out, teacher_out, lq))


def test_an_lq_that_the_student_was_not_given_is_told_of(dckd, student, batch):
    lq, teacher_out = batch
    out = student((lq - 0.5) / 0.2)
    with pytest.warns(UserWarning, match="pass the lq that it was given"):
        dckd(out, teacher_out, lq)


class Noisy(Student):
    """Whatever makes training differ from evaluation, and one run from the next."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Dropout2d(0.2))

    def forward(self, lq):
        return self.extra(super().forward(lq))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_batch_norm_dropout_and_autocast_are_allowed_for(encoder, batch, training, autocast):
    torch.manual_seed(0)
    student, (lq, teacher_out) = Noisy().train(training), batch
    dckd = DCKDLoss(student, encoder)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = student(lq).clamp(0, 1)  # as many trainers do, too
    before, calls = torch.get_rng_state(), student.calls.clone()
    statistics = student.extra[0].running_mean.clone()
    assert not told_by(lambda: dckd(out, teacher_out, lq))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(student.calls, calls) and dckd.history.model.calls == 0
    assert torch.equal(student.extra[0].running_mean, statistics)
    assert not any(module.training for module in dckd.history.modules())


def test_several_images_in_training_are_allowed_for(encoder, batch):
    class Stages(Student):
        def forward(self, lq):
            out = super().forward(lq)
            return (out, lq) if self.training else out

    student, (lq, teacher_out) = Stages(), batch
    assert not told_by(lambda: DCKDLoss(student, encoder)(student(lq)[0], teacher_out, lq))


@pytest.mark.parametrize("watches", [False, True])
def test_outputs_that_are_swapped_are_told_though_both_have_a_gradient(
    dckd, student, batch, watches
):
    lq, teacher_out = batch
    if watches:
        dckd.watch(student)
    out = student(lq)
    with pytest.raises(
        ValueError, match="teacher_out is what the student makes of lq, student_out"
    ):
        dckd(teacher_out.requires_grad_(), out.clamp(-0.5, 1.5), None if watches else lq)


def test_outputs_that_may_be_swapped_though_they_are_close_are_warned_of(student, encoder, batch):
    nn.init.constant_(student.layers[0].bias, 0.5)
    nn.init.normal_(student.layers[0].weight, std=0.02)
    dckd, lq, out = DCKDLoss(student, encoder), batch[0], student(batch[0])
    close = out.detach() + 0.01 * torch.randn_like(out)
    with pytest.warns(UserWarning, match="are they swapped"):
        dckd(close.requires_grad_(), out, lq)
    assert not told_by(lambda: copy.deepcopy(dckd)(out, close, lq))
