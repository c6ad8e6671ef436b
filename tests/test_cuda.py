"""What only a CUDA device can show (`-m cuda`)."""

import pytest
import torch
from conftest import Student
from numerics import relative, value_and_gradient

from dckd_losses import DCKDLoss, HistoryModel
from dckd_losses.negatives.draws import Draws

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand"),
]


def test_draws_the_same_bits_as_the_cpu():
    one, two = (Draws(3, 1, torch.tensor(9, device=device)) for device in ("cpu", "cuda"))
    assert torch.equal(one.uniform(1000), two.uniform(1000).cpu())


@pytest.fixture
def outcome(make_encoder, images):
    """Loss and gradient of always the same images, with an encoder of given settings."""
    student_out, teacher_out, *negatives = images(7, 2, 3, 35, 50).double().cuda()
    negatives = torch.stack(negatives)

    def make(dtype=torch.float32, **settings):
        own = negatives.to(dtype)
        dckd = DCKDLoss(Student(), make_encoder(**settings), negatives=lambda lq: own)
        dckd = dckd.to(dtype).cuda()
        teacher = teacher_out.to(dtype)
        return value_and_gradient(lambda x: dckd(x, teacher, teacher), student_out.to(dtype))

    return make


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_fused_equals_plain(outcome, mode):
    plain = outcome(torch.float64, impl="plain")
    for seen, expected in zip(outcome(torch.float64, mode=mode, chunk=1), plain, strict=True):
        assert relative(seen.cpu(), expected.cpu()) < 1e-12


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_results_do_not_depend_on_the_chunk(outcome, mode, float32_is_exact):
    whole, parts = outcome(mode=mode), outcome(mode=mode, chunk=1)
    assert relative(parts[0].cpu(), whole[0].cpu()) < 1e-6
    assert relative(parts[1].cpu(), whole[1].cpu()) < 2e-2  # signs of tiny distances flip


@pytest.mark.parametrize("impl", ["plain", "fused"])
def test_tf32_does_not_reach_the_first_convolution(make_encoder, images, monkeypatch, impl):
    """Rounded images would be closer to each other than a good student is to its teacher."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    conv_in = make_encoder(impl=impl).cuda().network.encoder.conv_in
    x = 2 * images(2, 3, 64, 64).cuda() - 1
    seen = value_and_gradient(conv_in, x)
    expected = value_and_gradient(
        lambda x: torch.conv2d(x, conv_in.weight.double(), conv_in.bias.double(), padding=1),
        x.double(),
    )
    assert relative(seen[0].cpu(), expected[0].cpu()) < 1e-6


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_never_waits_for_the_device(make_encoder, images, mode):
    student = Student().cuda()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    dckd = DCKDLoss(student, make_encoder(mode=mode)).attach(optimizer).cuda()
    lq, teacher_out = images(2, 3, 16, 16).cuda(), images(2, 3, 32, 32).cuda()

    def step():
        optimizer.zero_grad()
        dckd(student(lq), teacher_out, lq).backward()
        optimizer.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("balance", [None, 0.3])
def test_training_with_a_graph_is_training_without(make_encoder, images, precision, balance):
    """Same losses and numbers drawn, `last` of each step, and a history that moves outside."""
    lq, teacher_out = images(2, 3, 16, 16).cuda(), images(2, 3, 32, 32).cuda()
    results = []
    for graphed in (False, True):
        torch.manual_seed(0)
        student = Student().cuda()
        optimizer = torch.optim.SGD(student.parameters(), 0.01)
        history = HistoryModel(student, decay=0.0, interval=2)
        encoder = make_encoder(precision=precision)
        dckd = DCKDLoss(student, encoder, history=history, balance=balance)
        dckd = dckd.attach(optimizer).cuda()
        call = dckd.graphed(student(lq), teacher_out, lq) if graphed else dckd
        numbers = []
        for _ in range(5):
            loss = call(student(lq), teacher_out, lq)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            numbers.append(torch.stack([loss.detach(), dckd.last["dcr"], dckd.last["dmm"]]).cpu())
        assert (dckd.negatives.counter, history.iteration) == (5, 5)
        assert all(map(torch.equal, student.parameters(), history.model.parameters())) is False
        results.append(torch.stack(numbers))
    torch.testing.assert_close(*results, rtol=1e-3, atol=0)
