"""The ways through the encoder, plain, streamed and in two passes: one result, one gradient."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from numerics import relative, value_and_gradient

from dckd_losses import DCKDLoss, DMMLoss, VQGANEncoder
from dckd_losses.network import Architecture, VQGANNetwork

FUSED = [
    {},
    {"chunk": 1},
    {"chunk": 4},
    {"mode": "twopass"},
    {"mode": "twopass", "chunk": 1},
    {"mode": "twopass", "chunk": 2},
]
every_way = pytest.mark.parametrize("way", FUSED, ids=str)
some_ways = pytest.mark.parametrize("way", [FUSED[1], FUSED[5]], ids=str)
dtypes = pytest.mark.parametrize(
    ("dtype", "bounds"),
    [(torch.float64, (1e-12, 1e-12)), (torch.float32, (1e-6, 2e-2))],
    ids=["float64", "float32"],
)


@pytest.fixture
def batch(images):
    """student_out, teacher_out, lq, negatives; by images a set, size and number of negatives."""

    def make(number, size, count, dtype=torch.float64):
        student_out, teacher_out, *negatives = images(2 + count, number, 3, *size).to(dtype)
        return student_out, teacher_out, student_out, torch.stack(negatives)

    return make


def outcome(encoder, batch, slope=1.0):
    """Loss, gradient and `last`, for a given derivative by the loss."""
    *outputs, negatives = batch
    dckd = DCKDLoss(torch.nn.Identity(), encoder, dmm_weight=0.05, negatives=lambda lq: negatives)
    student_out = outputs[0].clone().requires_grad_()
    loss = dckd.to(student_out.dtype)(student_out, *outputs[1:])
    loss.backward(torch.full_like(loss, slope))
    return loss.detach(), student_out.grad, dckd.last


WIDE = Architecture(
    stem=96,
    channels=(96, 96, 128, 128, 128),
    blocks=2,
    attention=(False, False, False, True, False),
    z_channels=8,
    code_channels=6,
    codes=11,
)


def assert_equals_plain(make, way, images, loss_bound, gradient_bound):
    (*seen, last), (*expected, terms) = (
        outcome(make(**settings), images, 3.0) for settings in (way, {"impl": "plain"})
    )
    assert relative(seen[0], expected[0]) < loss_bound
    assert relative(seen[1], expected[1]) < gradient_bound
    assert last.keys() == {"dcr", "dmm", "positive", "negative"}
    assert all(relative(last[name], terms[name]) < 1e-5 for name in last)


@every_way
@dtypes
@pytest.mark.parametrize(
    ("number", "size", "count"), [(3, (19, 34), 5), (2, (17, 40), 42), (1, (16, 16), 1)]
)
def test_fused_equals_plain(make_encoder, batch, way, number, size, count, dtype, bounds):
    assert_equals_plain(make_encoder, way, batch(number, size, count, dtype), *bounds)


@some_ways
@dtypes
def test_fused_equals_plain_in_another_network(batch, way, dtype, bounds):
    """Two blocks a level, attention elsewhere, and widths that small networks do not have."""
    torch.manual_seed(0)
    network = VQGANNetwork(WIDE)

    def make(**settings):
        return VQGANEncoder(copy.deepcopy(network), **settings)

    assert_equals_plain(make, way, batch(2, (34, 19), 2, dtype), *bounds)


@some_ways
def test_as_exact_as_plain_where_the_last_norm_sees_two_numbers(make_encoder, images, way):
    """There its gradient is a small difference of equals, which no way of computing has exactly."""
    truth = DMMLoss(make_encoder(impl="plain")).double()
    plain, fused, errors = DMMLoss(make_encoder(impl="plain")), DMMLoss(make_encoder(**way)), []
    for _ in range(9):
        student, teacher = images(2, 1, 3, 24, 24)
        (value, slope), *both = (
            value_and_gradient(partial(loss, teacher=teacher.to(dtype)), student.to(dtype))
            for loss, dtype in (
                (truth, torch.float64),
                (plain, torch.float32),
                (fused, torch.float32),
            )
        )
        errors.append([relative(found, slope) for _, found in both])
        assert relative(both[1][0], value) < 1e-5
    plain_error, error = torch.tensor(errors).median(0).values
    assert error < 2 * plain_error < 0.1


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_only_the_plain_path_has_a_second_derivative(make_encoder, images, mode):
    student, teacher = images(2, 1, 3, 16, 16).double()
    loss = DMMLoss(make_encoder(mode=mode)).double()(student.requires_grad_(), teacher)
    with pytest.raises(RuntimeError, match=r"no second derivative: .*impl='plain'"):
        torch.autograd.grad(loss, student, create_graph=True)
    plain = DMMLoss(make_encoder(impl="plain")).double()
    (slope,) = torch.autograd.grad(plain(student, teacher), student, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), student)
    assert curvature.abs().sum() > 0


@some_ways
def test_gradient_equals_differences(make_encoder, batch, way):
    student_out, teacher_out, lq, negatives = batch(2, (32, 32), 2)
    dckd = DCKDLoss(
        torch.nn.Identity(), make_encoder(**way), dmm_weight=0.05, negatives=lambda lq: negatives
    ).double()
    assert torch.autograd.gradcheck(
        lambda x: dckd(x, teacher_out, lq), student_out.requires_grad_(), eps=1e-7, fast_mode=True
    )


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_without_gradient(make_encoder, images, mode):
    student, teacher = images(2, 1, 3, 16, 16)
    loss = DMMLoss(make_encoder(mode=mode))(student, teacher)
    assert not loss.requires_grad
    with torch.no_grad():
        again = DMMLoss(make_encoder(mode=mode))(student.clone().requires_grad_(), teacher)
    assert torch.equal(loss, again)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("way", [{"impl": "plain"}, {}, {"mode": "twopass", "chunk": 1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_neither_forward_nor_backward(make_encoder, batch, precision, way, dtype):
    """Inside or outside, also where only one of the two runs under it."""
    student_out, teacher_out, lq, negatives = batch(2, (32, 48), 2, torch.float32)
    encoder = make_encoder(precision=precision, **way)
    dckd = DCKDLoss(torch.nn.Identity(), encoder, dmm_weight=1, negatives=lambda lq: negatives)
    results = []
    for forward, backward in [(False, False), (True, False), (False, True), (True, True)]:
        x = student_out.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=forward):
            loss = dckd(x, teacher_out, lq)
        with torch.autocast("cpu", dtype, enabled=backward):
            loss.backward()
        results.append((loss.detach(), x.grad))
        assert torch.equal(loss, results[0][0])
        assert torch.equal(x.grad, results[0][1])


def test_default_chunk_is_the_devices(make_encoder):
    """On CUDA launches decide, elsewhere memory does; both by pixels, and at least one image."""
    images = {
        cuda: SimpleNamespace(is_cuda=cuda, shape=(16, 3, 192, 192)) for cuda in (True, False)
    }
    stream, twopass = make_encoder(), make_encoder(mode="twopass")
    assert stream._default_chunk(images[True]) == 2**21 // 192**2 == 56
    assert twopass._default_chunk(images[True]) == 2**18 // 192**2 == 7
    assert stream._default_chunk(images[False]) == 1
    assert stream._default_chunk(SimpleNamespace(is_cuda=True, shape=(1, 3, 2048, 2048))) == 1
