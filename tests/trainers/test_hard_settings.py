"""What trainers do around a loss: it trains the same student with it as without."""

import copy

import pytest
import torch
from conftest import Student
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from dckd_losses import DCKDLoss, DMMLoss, HistoryModel, VQGANEncoder
from dckd_losses.network import build

PATHS = [{"impl": "plain"}, {}, {"mode": "twopass", "chunk": 1}]


@pytest.fixture
def batch(images):
    """lq, teacher_out."""
    return images(2, 3, 8, 8), images(2, 3, 16, 16)


def fresh(encoder, **settings):
    """A student, its optimizer, and its loss, always the same."""
    torch.manual_seed(0)
    student = Student()
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    history = HistoryModel(student, decay=0.0, interval=2)
    dckd = DCKDLoss(student, copy.deepcopy(encoder), history=history, balance=None, **settings)
    return student, optimizer, dckd.attach(optimizer)


def trained(parts, batch, steps=3, call=None, watches=False):
    """The student after some steps, for which `call` may stand in; the loss gets lq or watches."""
    student, optimizer, dckd = parts
    call = student if call is None else call
    if watches:
        dckd.watch(call)
    lq, teacher_out = batch
    for _ in range(steps):
        loss = dckd(call(lq.clone()), teacher_out, *([] if watches else [lq]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student


def numbers(module):
    return torch.cat([p.detach().flatten().double() for p in module.parameters()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_autocast_with_a_scaler_that_skips(tensors, batch, dtype, path):
    """The whole step under autocast; the step whose gradient overflowed leaves history alone."""
    student, optimizer, dckd = fresh(VQGANEncoder(build(tensors), **path))
    lq, teacher_out = batch
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for factor in (1.0, float("inf"), 1.0):
        before = numbers(student)
        with torch.autocast("cpu", dtype):
            student_out = student(lq)
            assert student_out.dtype == dtype
            loss = dckd(student_out, teacher_out, lq)
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        scaler.scale(factor * loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, numbers(student)) == (factor == float("inf"))
    assert dckd.history.iteration == 2
    assert torch.equal(numbers(dckd.history.model), numbers(student))


@pytest.mark.parametrize("path", [*PATHS, {"precision": "float16"}], ids=str)
def test_validations_under_inference_mode(tensors, batch, path):
    """Before all steps: what the first call keeps for later ones, backward can use. And between."""
    encoder = VQGANEncoder(build(tensors), **path)
    expected = trained(fresh(encoder), batch)
    parts = fresh(encoder)
    lq, teacher_out = batch
    with torch.inference_mode():
        parts[2].encoder(teacher_out)
        DMMLoss(parts[2].encoder)(teacher_out, teacher_out)
    assert torch.equal(numbers(trained(parts, batch)), numbers(expected))
    with torch.inference_mode():
        assert parts[2](parts[0](lq), teacher_out, lq).isfinite()
    trained(parts, batch, steps=1)
    assert parts[2].history.iteration == 4
    assert torch.equal(numbers(parts[2].history.model), numbers(parts[0]))


def test_an_encoder_may_be_made_and_moved_under_inference_mode(weights_file, images):
    with torch.inference_mode():
        encoder = VQGANEncoder.from_pretrained(weights_file).double()
        encoder(images(1, 3, 16, 16))
    student = images(1, 3, 16, 16).requires_grad_()
    DMMLoss(encoder)(student, images(1, 3, 16, 16)).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_channels_last(tensors, batch, path):
    """In float64: in float32 a convolution of another layout flips the sign of tiny gaps."""
    wide = [images.double() for images in batch]
    students = []
    for layout in (torch.contiguous_format, torch.channels_last):
        parts = fresh(VQGANEncoder(build(dict(tensors)), **path))
        for module in (parts[0], parts[2]):
            module.double().to(memory_format=layout)
        inputs = [images.contiguous(memory_format=layout) for images in wide]
        students.append(trained(parts, inputs))
        assert parts[0](inputs[0]).is_contiguous(memory_format=layout)
    torch.testing.assert_close(*map(numbers, students), rtol=1e-9, atol=1e-9)


def test_history_follows_weights_that_lie_otherwise(student):
    history = HistoryModel(student, decay=0.0)
    student.to(memory_format=torch.channels_last)
    nn.init.normal_(student.layers[0].weight)
    history.update(student)
    assert torch.equal(numbers(history.model), numbers(student))


class Checkpointed(Student):
    """Keeps nothing of its layers for backward, and runs them again."""

    reentrant = False

    def forward(self, lq):
        return checkpoint(super().forward, lq.requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("watches", [False, True])
def test_gradient_checkpointing(encoder, batch, reentrant, watches):
    """The student runs twice a step; watch must not take that for the next step's input."""
    expected = numbers(trained(fresh(encoder), batch))
    student, *_ = parts = fresh(encoder)
    student.__class__ = Checkpointed
    student.reentrant = reentrant
    torch.testing.assert_close(numbers(trained(parts, batch, watches=watches)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("watches", [False, True])
def test_a_compiled_student(encoder, batch, watches):
    expected = numbers(trained(fresh(encoder), batch))
    student, optimizer, _ = fresh(encoder)
    compiled = torch.compile(student, backend="aot_eager")
    history = HistoryModel(compiled, decay=0.0, interval=2)
    dckd = DCKDLoss(compiled, encoder, history=history, balance=None).attach(optimizer)
    trained((student, optimizer, dckd), batch, call=compiled, watches=watches)
    torch.testing.assert_close(numbers(student), expected)
    assert dckd.history.iteration == 3
    assert not torch.equal(numbers(history.model), numbers(fresh(encoder)[0]))


@pytest.mark.slow
def test_compiling_the_loss_breaks_no_graph(tensors, batch):
    """On the plain path: one graph for all steps, and compiled training is eager training."""
    encoder = VQGANEncoder(build(tensors), impl="plain")
    expected = numbers(trained(fresh(encoder), batch))
    student, optimizer, dckd = fresh(encoder)
    torch._dynamo.reset()
    counters.clear()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(dckd, backend=backend)  # where graphs may break, so as to count them
    trained((student, optimizer, compiled), batch)
    assert not counters["graph_break"]
    assert backend.frame_count == 1
    torch.testing.assert_close(numbers(student), expected, rtol=1e-4, atol=1e-6)
    assert dckd.history.iteration == 3 and dckd.negatives.counter == 3


def test_a_moving_average_as_source_moves_first_if_its_hook_is_first(encoder, batch):
    student, optimizer, dckd = fresh(encoder)
    dckd.detach()
    average = AveragedModel(student)
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(student))
    trained((student, optimizer, dckd.attach(optimizer, source=average)), batch, steps=4)
    assert torch.equal(numbers(dckd.history.model), numbers(average.module))
    assert not torch.equal(numbers(average.module), numbers(student))


def test_moves_and_casts_between_steps(encoder, batch):
    """Student and loss may go to other dtypes, together or alone, and training goes on."""
    parts = student, _, dckd = fresh(encoder)
    trained(parts, batch, steps=1)
    student.double()
    dckd.double()
    wide = tuple(images.double() for images in batch)
    trained(parts, wide, steps=1)
    assert next(dckd.history.model.parameters()).dtype == torch.float64
    assert torch.equal(numbers(dckd.history.model), numbers(student))
    student.float()
    trained(parts, batch, steps=1)
    dckd.float().half()
    trained(parts, batch, steps=1)
    assert next(dckd.history.model.parameters()).dtype == torch.float32
    assert torch.equal(numbers(dckd.history.model), numbers(student))
    assert dckd.history.iteration == 4
