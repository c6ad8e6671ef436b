"""The Triton kernels against their plain twins.

On a CUDA device, or on the CPU where the environment has TRITON_INTERPRET=1 (`test_triton.py` runs
this file so).
"""

import copy
import os
from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dckd_losses import DCKDLoss, VQGANEncoder
from dckd_losses.architecture import Architecture
from dckd_losses.network import VQGANNetwork
from dckd_losses.ops import fused, level_gaps, reference
from dckd_losses.ops.triton import DTYPES, gaps, tiles
from dckd_losses.ops.triton.norm import add_group_norm_silu, group_norm_silu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EPS = 1e-6
FORMATS = [torch.contiguous_format, torch.channels_last]
LAYOUTS = ["contiguous", "channels_last"]
device_only = pytest.mark.skipif(INTERPRETED, reason="the interpreter has no streams")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device is at hand", allow_module_level=True)
pytestmark = (
    pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of numpy, in SiLU's tail
    if INTERPRETED
    else pytest.mark.cuda
)


def features(*shape, dtype=torch.float32, memory_format=torch.channels_last, seed=0):
    """Normal random numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator).to(DEVICE, dtype)
    return x.contiguous(memory_format=memory_format) if len(shape) == 4 else x


def affine(channels):
    """A norm's weight and bias: multiples of 1/16, which every precision holds exactly."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(-32, 33, (2, channels), generator=generator) / 16).to(DEVICE)


def outcome(fn, inputs, grads):
    """Outputs, and what the inputs get for given derivatives by the outputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = fn(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    slopes = torch.autograd.grad(outputs, inputs, [g.to(outputs[0].dtype) for g in grads])
    return [x.detach().double().cpu() for x in (*outputs, *slopes)]


def plain_norm(groups, silu=True):
    """The twin, in the precision and the device of what it gets."""

    def norm(x):
        weight, bias = affine(x.shape[1]).to(x.dtype)
        x = x.contiguous()  # torch's channels_last GroupNorm loses digits on the CPU
        if silu:
            return reference.group_norm_silu(x, weight, bias, groups, EPS)
        return torch.nn.functional.group_norm(x, groups, weight, bias, EPS)

    return norm


def assert_triangle(kernel, plain, truth, tolerance):
    """No further from the truth than the plain way at the same precision, up to rounding."""
    for seen, near, true in zip(kernel, plain, truth, strict=True):
        scale = true.abs().max().clamp_min(1e-3)
        error, allowed = ((x - true).abs().max() / scale for x in (seen, near))
        assert error <= allowed + tolerance


ROUNDING = {
    torch.float32: 1e-6,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-8,  # which the interpreter cuts off
}

SIZES = [  # batch, channels, groups, height, width
    (1, 32, 32, 5, 7),
    (3, 64, 32, 3, 5),
    (1, 96, 6, 4, 9),
    (3, 96, 32, 7, 3),
    (3, 128, 32, 5, 6),
    (1, 256, 32, 1, 11),
    (1, 512, 32, 3, 3),
    (2, 40, 8, 1, 1),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Each goes through several tiles, and the interpreter gets done."""
    monkeypatch.setattr(tiles, "PROGRAMS", 4)


# norms


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_group_norm_silu(size, dtype):
    batch, channels, groups, height, width = size
    layout = FORMATS[channels // 32 % 2]
    shape = batch, channels, height, width
    x = 2 * features(*shape, dtype=dtype, memory_format=layout) + 1
    weight, bias = affine(channels)
    dy = features(*shape, dtype=dtype, seed=2)
    plain = plain_norm(groups)
    kernel = outcome(lambda x: group_norm_silu(x, weight, bias, groups, EPS), [x], [dy])
    assert_triangle(
        kernel, outcome(plain, [x], [dy]), outcome(plain, [x.double()], [dy]), ROUNDING[dtype]
    )


@pytest.mark.parametrize("size", SIZES[2:4], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "norm"])
def test_add_group_norm_silu(size, dtype, silu):
    batch, channels, groups, height, width = size
    shape = batch, channels, height, width
    h, skip, ds, dy = (features(*shape, dtype=dtype, seed=seed) for seed in range(4))
    skip = skip.contiguous()  # layouts may differ
    weight, bias = affine(channels)
    norm = plain_norm(groups, silu)

    def plain(h, skip):
        s = h + skip
        return s, norm(s)

    def exact(h, skip):
        s = h + skip
        stored = s + (s.to(dtype).to(s) - s).detach()  # what is normed is the sum as it is stored
        return stored, norm(stored)

    kernel = outcome(
        lambda h, skip: add_group_norm_silu(h, skip, weight, bias, groups, EPS, silu),
        [h, skip],
        [ds, dy],
    )
    truth = outcome(exact, [h.double(), skip.double()], [ds, dy])
    if ROUNDING[dtype] < 2.0**-7:
        assert torch.equal(kernel[0], truth[0])
    assert torch.equal(kernel[2], kernel[3])
    assert_triangle(kernel, outcome(plain, [h, skip], [ds, dy]), truth, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_is_normed_as_it_is_stored(dtype):
    h, skip = (features(2, 32, 5, 9, dtype=dtype, seed=seed).requires_grad_() for seed in (0, 1))
    s, y = add_group_norm_silu(h, skip, *affine(32), 8, EPS)
    z = group_norm_silu(s.detach().requires_grad_(), *affine(32), 8, EPS)
    assert torch.equal(y, z)
    for one, two in zip(y.grad_fn.saved_tensors, z.grad_fn.saved_tensors, strict=True):
        assert torch.equal(one, two)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 12),
    group=st.integers(1, 9),
    height=st.integers(1, 7),
    width=st.integers(4, 9),
    most=st.integers(1, 40),
    silu=st.booleans(),
)
def test_any_size_and_tiling(batch, groups, group, height, width, most, silu):
    shape = batch, groups * group, height, width
    x, skip, ds, dy = (features(*shape, seed=seed) for seed in range(4))
    x = x + 0.5 * features(*shape[:2], 1, 1, seed=5)
    weight, bias = affine(shape[1])
    norm = plain_norm(groups, silu)

    def plain(x, skip):
        return x + skip, norm(x + skip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "PROGRAMS", most)
        kernel = outcome(
            lambda x, skip: add_group_norm_silu(x, skip, weight, bias, groups, EPS, silu),
            [x, skip],
            [ds, dy],
        )
    truth = outcome(plain, [x.double(), skip.double()], [ds, dy])
    assert_triangle(kernel, outcome(plain, [x, skip], [ds, dy]), truth, 2e-6)


@pytest.mark.parametrize("most", [4, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_hold_under_a_large_mean(dtype, most, monkeypatch):
    monkeypatch.setattr(tiles, "PROGRAMS", most)
    x = (features(2, 32, 9, 11) + 30).to(dtype).requires_grad_()
    y = group_norm_silu(x, *affine(32), 8, EPS)
    _, mean, rstd, *_ = y.grad_fn.saved_tensors
    grouped = x.detach().double().reshape(2, 8, -1)
    variance = grouped.var(2, unbiased=False)
    assert (mean - grouped.mean(2)).abs().max() < 6e-6
    assert (rstd.double() ** -2 - EPS - variance).abs().max() < 1e-5 * variance.min()


def test_statistics_hold_where_image_parts_differ():
    """Blocks whose means lie far from each other and from the whole's."""
    x = features(1, 32, 16, 18)
    x = x + torch.arange(16, device=DEVICE).view(1, 1, 16, 1) * 100
    y = group_norm_silu(x.requires_grad_(), *affine(32), 32, EPS)
    _, mean, rstd, *_ = y.grad_fn.saved_tensors
    grouped = x.detach().double().reshape(1, 32, -1)
    torch.testing.assert_close(mean.double(), grouped.mean(2), rtol=1e-6, atol=0)
    variance = grouped.var(2, unbiased=False)
    torch.testing.assert_close(rstd.double() ** -2 - EPS, variance, rtol=2e-6, atol=0)


def test_gradient_over_several_tiles():
    x, dy = features(2, 32, 17, 13), features(2, 32, 17, 13, seed=2)
    weight, bias = affine(32)
    plain = plain_norm(8)
    kernel = outcome(lambda x: group_norm_silu(x, weight, bias, 8, EPS), [x], [dy])
    truth = outcome(plain, [x.double()], [dy])
    assert_triangle(kernel, outcome(plain, [x], [dy]), truth, 1e-6)


def test_tails_of_silu_are_finite():
    x = features(1, 32, 3, 3).requires_grad_()
    y = group_norm_silu(x, torch.full((32,), 500.0, device=DEVICE), affine(32)[1], 32, EPS)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert dx.isfinite().all()
    assert y.min() < 0 < y.max()


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
def test_keeps_its_input_and_statistics_only(memory_format):
    x = features(2, 32, 5, 3, dtype=torch.float16, memory_format=memory_format).requires_grad_()
    weight, bias = affine(32)
    y = group_norm_silu(x, weight, bias, 32, EPS)
    s, z = add_group_norm_silu(x, x, weight, bias, 32, EPS)
    for out, kept in ((y, x), (z, s)):
        saved, *small = out.grad_fn.saved_tensors
        if kept.is_contiguous(memory_format=torch.channels_last):
            assert saved.data_ptr() == kept.data_ptr()
        assert sorted(t.numel() for t in small) == [32, 32, 64, 64]
    for out in (y, s, z):
        assert out.dtype == x.dtype
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_takes_any_strides_and_a_broadcast_derivative():
    x = features(2, 32, 10, 6).transpose(2, 3)[:, :, ::2].requires_grad_()
    weight, bias = affine(32)
    seen = group_norm_silu(x, weight, bias, 32, EPS)
    expected = plain_norm(32)(x)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (seen, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("used", ["sum", "norm"])
def test_one_output_alone_has_a_gradient(used):
    h, skip = (features(1, 32, 4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    weight, bias = affine(32)
    seen = add_group_norm_silu(h, skip, weight, bias, 32, EPS)[used == "norm"]
    expected = h + skip if used == "sum" else plain_norm(32)(h + skip)
    grads = [torch.autograd.grad(y.square().sum(), (h, skip)) for y in (seen, expected)]
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)


def test_no_second_derivative():
    x = features(1, 32, 2, 2).requires_grad_()
    weight, bias = affine(32)
    s, y = add_group_norm_silu(x, x, weight, bias, 32, EPS)
    for out in (group_norm_silu(x, weight, bias, 32, EPS), s + y):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(out.sum(), x, create_graph=True)


def test_refuses_what_it_cannot_compute():
    weight, bias = affine(32)
    for bad in (features(1, 32, 2, 2).double(), features(1, 64, 2, 2), features(32, 2, 2)):
        with pytest.raises(ValueError, match=r"expected features \(B, 32, H, W\) in float32"):
            group_norm_silu(bad, weight, bias, 32, EPS)
    with pytest.raises(ValueError, match="5 groups"):
        group_norm_silu(features(1, 32, 2, 2), weight, bias, 5, EPS)
    x = features(1, 32, 2, 2)
    with pytest.raises(ValueError, match="expected summands alike"):
        add_group_norm_silu(x, x.half(), weight, bias, 32, EPS)


# contrast


def compare(student, others, cuts, code=torch.int8):
    """Sums of distances and the code, from groups of the others that end at given numbers."""
    code = torch.zeros_like(student, dtype=code)
    sums = torch.zeros(2, device=DEVICE)
    for first, end in pairwise((0, *cuts, len(others))):
        gaps.accumulate(student, others[first:end], first, code, sums[0], sums[1])
    return code, *sums


def truth(student, others, d_positive, d_negative):
    """By the twin in float64: sums, and the gradient for given derivatives by them."""
    student = student.detach().double().requires_grad_()
    teacher, *negatives = others.double()
    positive, negative = (
        mean * student.numel() for mean in reference.level_gaps(student, teacher, negatives)
    )
    loss = d_positive * positive + d_negative * negative
    return positive, negative, torch.autograd.grad(loss, student)[0]


def assert_contrast(student, others, cuts=(), dtype=torch.float32):
    code = torch.int8 if len(others) - 1 <= 42 else torch.int32
    code, *sums = compare(student, others, cuts, code)
    d_positive, d_negative = torch.tensor([0.75, -2.5], device=DEVICE)
    grad = gaps.decode(code, d_positive, d_negative, dtype)
    *expected, slope = truth(student, others, d_positive, d_negative)
    for one, two in zip(sums, expected, strict=True):
        torch.testing.assert_close(one.double(), two.detach(), rtol=5e-7, atol=0)
    cut_off = ROUNDING[dtype] if INTERPRETED and dtype == torch.bfloat16 else 0
    torch.testing.assert_close(grad, slope.to(dtype), rtol=cut_off, atol=0)
    assert grad.stride() == code.stride() == student.stride()


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negatives", [1, 5, 42, 43])
def test_contrast(memory_format, dtype, negatives):
    shape = 3, 32, 5, 3
    student = features(*shape, dtype=dtype, memory_format=memory_format)
    others = torch.stack(
        [
            features(*shape, dtype=dtype, memory_format=memory_format, seed=1 + seed)
            for seed in range(1 + negatives)
        ]
    )
    assert_contrast(student, others, dtype=dtype)


@pytest.mark.parametrize("cuts", [(1,), (3,), (2, 3), (1, 2, 3, 4, 5), (17,)], ids=str)
def test_groups_add_up(cuts):
    student = features(2, 8, 3, 5)
    assert_contrast(student, features(20, 2, 8, 3, 5, seed=1), cuts)


def test_exact_ties_and_all_signs_alike():
    """Where every sign agrees the code is at the end of its range; where none does it is 0."""
    value = features(1, 4, 3, 3)
    for to_teacher, to_negatives in [(0, 0), (-1, -1), (1, 1), (-1, 0), (0, 1), (1, -1)]:
        for count in (1, 42, 43):
            others = torch.stack([value + to_teacher] + [value + to_negatives] * count)
            assert_contrast(value, others)
    half = value.half()
    assert_contrast(half, torch.stack([half] * 3))
    assert not compare(value, torch.stack([value] * 5), ())[0].any()


def test_contrast_of_rows_and_of_mixed_layouts():
    """A part of the batch at an odd offset; others and student in another order than the code."""
    student = features(3, 8, 3, 5, memory_format=torch.contiguous_format)
    others = features(4, 3, 8, 3, 5, seed=1)
    code = torch.zeros(3, 8, 3, 5, dtype=torch.int8, device=DEVICE)
    code = code.contiguous(memory_format=torch.channels_last)
    positive, negative = torch.zeros(2, device=DEVICE)
    for rows in (slice(1, 3), slice(0, 1)):  # the second must not touch what follows it
        gaps.accumulate(student[rows], others[:, rows], 0, code[rows], positive, negative)
    expected = truth(student, others, 1.0, 2.0)
    one = torch.ones((), device=DEVICE)
    grad = gaps.decode(code, one, 2 * one, torch.float32)
    assert torch.equal(grad, expected[2].float())
    torch.testing.assert_close(positive.double(), expected[0].detach(), rtol=5e-7, atol=0)
    torch.testing.assert_close(negative.double(), expected[1].detach(), rtol=5e-7, atol=0)


def test_contrast_of_one_element():
    assert_contrast(features(1, 1, 1, 1), features(3, 1, 1, 1, 1, seed=1))


def test_contrast_refuses_other_shapes():
    student, others = features(1, 4, 2, 2), features(2, 1, 4, 2, 2)
    code, total = torch.zeros_like(student, dtype=torch.int8), torch.zeros((), device=DEVICE)
    for bad in ((student[:, :2], others, code), (student, others[:, :, :2], code)):
        with pytest.raises(ValueError, match=r"expected features \(1, 4, 2, 2\)"):
            gaps.accumulate(bad[0], bad[1], 0, bad[2], total, total)
    with pytest.raises(ValueError, match="a dense code"):
        gaps.accumulate(student[..., :1], others[..., :1], 0, code[..., :1], total, total)


# the device


def whole_path(x, others, weight, bias):
    """Every kernel once."""
    x = x.detach().requires_grad_()
    s, y = add_group_norm_silu(x, group_norm_silu(x, weight, bias, 32, EPS), weight, bias, 32, EPS)
    code, positive, negative = compare(y.detach(), others, ())
    grad = gaps.decode(code, 1 / positive, 1 / negative, y.dtype)
    (dx,) = torch.autograd.grad((s, y), x, (grad, grad))
    return dx, positive, negative


@device_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_again_without_waiting_and_in_a_graph(dtype):
    x, others = features(2, 128, 33, 20, dtype=dtype), features(6, 2, 128, 33, 20, dtype=dtype)
    weight, bias = affine(128)
    others = torch.stack([o.contiguous(memory_format=torch.channels_last) for o in others])
    expected = whole_path(x, others, weight, bias)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = whole_path(x, others, weight, bias)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = whole_path(x, others, weight, bias)
    graph.replay()
    for first, second, third in zip(expected, again, captured, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@device_only
def test_more_than_two_to_the_31_elements():
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of the device's memory")
    weight, bias = affine(128)
    x = torch.randn(2, 3000, 3000, 128, device=DEVICE, dtype=torch.float16).permute(0, 3, 1, 2)
    seen = group_norm_silu(x, weight, bias, 32, EPS)[1:]
    expected = group_norm_silu(x[1:], weight, bias, 32, EPS)
    torch.testing.assert_close(seen, expected, rtol=2e-3, atol=1e-3)
    student = x[:1, :, :1000]
    student = student.contiguous(memory_format=torch.channels_last)
    others = torch.zeros(8, *student.permute(0, 2, 3, 1).shape, device=DEVICE, dtype=torch.float16)
    others = others.permute(0, 1, 4, 2, 3)
    others[7] = student
    code, _, negative = compare(student, others, ())
    sign = student.sign().to(torch.int8)
    assert torch.equal(code, 19 * sign)  # the teacher's once, 3 times those of 6 negatives
    expected = 6 * student.double().abs().sum()
    torch.testing.assert_close(negative.double(), expected, rtol=1e-5, atol=0)


def test_are_what_the_fused_operations_call(monkeypatch):
    """As on a CUDA device: the same arguments in the same order as the twins take."""
    for module in (fused, level_gaps):
        monkeypatch.setattr(module, "triton_takes", lambda device, dtype: dtype in DTYPES)
    h, skip, slope, *others = (features(2, 32, 3, 5, seed=seed) for seed in range(6))
    weight, bias = affine(32)
    for silu in (True, False):
        results = [
            outcome(
                lambda x, ops=ops, silu=silu: ops.group_norm_silu(x, weight, bias, 32, EPS, silu),
                [h],
                [slope],
            )
            for ops in (fused, reference)
        ]
        for seen, expected in zip(*results, strict=True):
            torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    results = [
        outcome(
            lambda x, y, ops=ops: ops.add_group_norm_silu(2 * x, y, weight, bias, 32, EPS),
            [h, skip],
            [slope, skip],
        )
        for ops in (fused, reference)
    ] + [
        outcome(lambda x, ops=ops: ops.level_gaps(x, skip, others), [h], [h.sum(), h.max()])
        for ops in (level_gaps, reference)
    ]
    for seen, expected in zip(results[0] + results[2], results[1] + results[3], strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mode", "precision"), [("stream", "float32"), ("twopass", "float16")])
@device_only
def test_carry_the_whole_loss(mode, precision):
    torch.manual_seed(0)
    architecture = Architecture(
        stem=32, channels=(32, 32, 32, 64, 64), blocks=2,
        attention=(False, False, False, False, True), z_channels=8, code_channels=6, codes=11,
    )  # fmt: skip
    network = VQGANNetwork(architecture)
    student, teacher, other = torch.rand(3, 2, 3, 32, 33).to(DEVICE)
    results = []
    for way in ({"impl": "plain"}, {"mode": mode, "chunk": 1, "precision": precision}):
        encoder = VQGANEncoder(copy.deepcopy(network), **way)
        dckd = DCKDLoss(
            torch.nn.Identity(), encoder, dmm_weight=0.05, negatives=lambda lq: other[None]
        ).to(DEVICE)
        assert "Triton" in encoder.path.reason or encoder.path.impl == "plain"
        x = student.clone().requires_grad_()
        loss = dckd(x, teacher, teacher)
        loss.backward()
        results.append((loss.detach(), x.grad))
    (expected, slope), (seen, found) = results
    exact = precision == "float32"
    assert abs(seen - expected) < (1e-6 if exact else 2e-3) * expected
    assert (found - slope).norm() < (2e-2 if exact else 0.1) * slope.norm()
