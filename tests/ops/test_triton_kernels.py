"""The Triton kernels against their plain twins.

On a CUDA device, or on the CPU where the environment has TRITON_INTERPRET=1 (`test_triton.py` runs
this file so).
"""

import os
from functools import partial
from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hypothesis import given
from hypothesis import strategies as st
from numerics import FORMATS, LAYOUTS, value_and_gradient

from dckd_losses import DCKDLoss
from dckd_losses.ops import (
    TRITON_DTYPES,
    distances,
    norm,
    triton_distances,
    triton_norm,
    use_triton,
)
from dckd_losses.ops.triton_norm import group_norm_silu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
EPS = 1e-6
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device is at hand", allow_module_level=True)
pytestmark = (
    pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of numpy, in SiLU's tail
    if INTERPRETED
    else pytest.mark.cuda
)
device_only = pytest.mark.skipif(INTERPRETED, reason="the interpreter has no streams")
every_dtype = pytest.mark.parametrize("dtype", TRITON_DTYPES, ids=str)
every_layout = pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
slow = pytest.mark.slow  # in the interpreter
one_dtype_first = pytest.mark.parametrize(
    "dtype", [TRITON_DTYPES[0], *(pytest.param(dtype, marks=slow) for dtype in TRITON_DTYPES[1:])]
)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Each goes through several tiles, and the interpreter gets done."""
    monkeypatch.setattr(triton_norm, "PROGRAMS", 4)


def features(*shape, dtype=torch.float32, memory_format=torch.channels_last, seed=0):
    """Normal random numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator).to(DEVICE, dtype)
    return x.contiguous(memory_format=memory_format) if len(shape) == 4 else x


def affine(channels):
    """A norm's weight and bias: multiples of 1/16, which every precision holds exactly."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(-32, 33, (2, channels), generator=generator) / 16).to(DEVICE)


ROUNDING = {
    torch.float32: 1e-6,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-7 if INTERPRETED else 2.0**-8,  # which the interpreter cuts off
}


def assert_norm(x, dy, groups, silu=True, tolerance=None):
    """No further from float64's result than the plain norm at this precision, but for rounding."""
    tolerance = tolerance or ROUNDING[x.dtype]
    weight, bias = affine(x.shape[1])

    def plain(x):
        kinds = weight.to(x.dtype), bias.to(x.dtype)
        x = x.contiguous()  # torch's channels_last GroupNorm loses digits on the CPU
        return norm.group_norm_silu(x, *kinds, groups, EPS, silu, fused=False)

    kernel = partial(group_norm_silu, weight=weight, bias=bias, groups=groups, eps=EPS, silu=silu)
    truth = value_and_gradient(plain, x.double(), dy.double())
    triangle = zip(
        value_and_gradient(kernel, x, dy), value_and_gradient(plain, x, dy), truth, strict=True
    )
    for seen, near, true in triangle:
        scale = true.abs().max().clamp_min(1e-3)
        error, allowed = ((y - true).abs().max() / scale for y in (seen, near))
        assert error <= allowed + tolerance


# norms


@one_dtype_first
@pytest.mark.parametrize(
    ("batch", "channels", "groups", "height", "width"),
    [
        (2, 96, 6, 4, 9),
        *(
            pytest.param(*size, marks=slow)
            for size in [
                (3, 64, 32, 3, 5),
                (3, 96, 32, 7, 3),
                (3, 128, 32, 5, 6),
                (1, 256, 32, 1, 11),
                (1, 512, 32, 3, 3),
                (2, 40, 8, 1, 1),
            ]
        ),
    ],
    ids=str,
)
def test_group_norm_silu(batch, channels, groups, height, width, dtype):
    layout = FORMATS[channels // 32 % 2]
    shape = batch, channels, height, width
    x = 2 * features(*shape, dtype=dtype, memory_format=layout) + 1
    assert_norm(x, features(*shape, dtype=dtype, seed=2), groups)


@slow
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 12),
    group=st.integers(1, 9),
    height=st.integers(1, 7),
    width=st.integers(4, 9),
    programs=st.integers(1, 40),
    silu=st.booleans(),
)
def test_any_size_and_tiling(batch, groups, group, height, width, programs, silu):
    shape = batch, groups * group, height, width
    x = features(*shape) + 0.5 * features(*shape[:2], 1, 1, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_norm, "PROGRAMS", programs)
        assert_norm(x, features(*shape, seed=2), groups, silu, tolerance=2e-6)


@pytest.mark.parametrize("programs", [4, pytest.param(4096, marks=slow)])
@pytest.mark.parametrize("shift", ["whole", "by rows"])
@one_dtype_first
def test_statistics_hold_under_large_means(dtype, shift, programs, monkeypatch):
    """Of the whole image, or of its blocks, which then lie far from each other."""
    monkeypatch.setattr(triton_norm, "PROGRAMS", programs)
    rows = torch.arange(16, device=DEVICE).view(1, 1, 16, 1)
    x = features(2, 32, 16, 11) + (30 if shift == "whole" else 8 * rows)
    x = x.to(dtype).requires_grad_()
    mean, rstd = group_norm_silu(x, *affine(32), 8, EPS).grad_fn.saved_tensors[1:3]
    grouped = x.detach().double().reshape(2, 8, -1)
    variance = grouped.var(2, unbiased=False)
    torch.testing.assert_close(mean.double(), grouped.mean(2), rtol=3e-7, atol=0)
    torch.testing.assert_close(rstd.double() ** -2 - EPS, variance, rtol=1e-5, atol=0)


def test_tails_of_silu_are_finite():
    weight, bias = torch.full((32,), 500.0, device=DEVICE), affine(32)[1]
    x = features(1, 32, 3, 3)
    y, dx = value_and_gradient(lambda x: group_norm_silu(x, weight, bias, 32, EPS), x)
    assert y.isfinite().all() and dx.isfinite().all()
    assert y.min() < 0 < y.max()


@every_layout
def test_keeps_its_input_and_statistics_only(memory_format):
    x = features(2, 32, 5, 3, dtype=torch.float16, memory_format=memory_format).requires_grad_()
    y = group_norm_silu(x, *affine(32), 32, EPS)
    saved, *small = y.grad_fn.saved_tensors
    if memory_format == torch.channels_last:
        assert saved.data_ptr() == x.data_ptr()
    assert sorted(t.numel() for t in small) == [32, 32, 64, 64]
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@slow
def test_takes_any_strides_and_a_broadcast_derivative():
    x = features(2, 32, 10, 6).transpose(2, 3)[:, :, ::2]
    assert_norm(x, x.new_ones(()).expand_as(x), 32, tolerance=2e-6)


def test_no_second_derivative():
    x = features(1, 32, 2, 2).requires_grad_()
    y = group_norm_silu(x, *affine(32), 32, EPS)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_norm_refuses_what_it_cannot_compute():
    weight, bias = affine(32)
    for bad in (features(1, 32, 2, 2).double(), features(1, 64, 2, 2), features(32, 2, 2)):
        with pytest.raises(ValueError, match=r"expected features \(B, 32, H, W\) in float32"):
            group_norm_silu(bad, weight, bias, 32, EPS)
    with pytest.raises(ValueError, match="5 groups"):
        group_norm_silu(features(1, 32, 2, 2), weight, bias, 5, EPS)


# distances


def compare(student, others, cuts, code=torch.int8):
    """The code and the sums of distances, from groups of the others that end at given numbers."""
    code = torch.zeros_like(student, dtype=code)
    sums = torch.zeros(2, device=DEVICE)
    for first, end in pairwise((0, *cuts, len(others))):
        triton_distances.accumulate(student, others[first:end], first, code, sums)
    return code, *sums


def truth(student, others, d_positive, d_negative):
    """By the twin in float64: sums, and the gradient for given derivatives by them."""
    student = student.detach().double().requires_grad_()
    teacher, *negatives = others.double()
    positive, negative = (
        mean * student.numel() for mean in distances.level_distances(student, teacher, negatives)
    )
    loss = d_positive * positive + d_negative * negative
    return positive.detach(), negative.detach(), torch.autograd.grad(loss, student)[0]


def assert_distances(student, others, cuts=(), dtype=torch.float32):
    code = torch.int8 if len(others) - 1 <= 42 else torch.int32
    code, *sums = compare(student, others, cuts, code)
    d_positive, d_negative = torch.tensor([0.75, -2.5], device=DEVICE)
    grad = triton_distances.decode(code, d_positive, d_negative, dtype)
    *expected, slope = truth(student, others, d_positive, d_negative)
    for one, two in zip(sums, expected, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=5e-7, atol=0)
    cut_off = ROUNDING[dtype] if INTERPRETED and dtype == torch.bfloat16 else 0
    torch.testing.assert_close(grad, slope.to(dtype), rtol=cut_off, atol=0)
    assert grad.stride() == code.stride() == student.stride()


@every_layout
@every_dtype
@pytest.mark.parametrize("negatives", [5, *(pytest.param(n, marks=slow) for n in (1, 42, 43))])
def test_distances(memory_format, dtype, negatives):
    student, *others = (
        features(3, 32, 5, 3, dtype=dtype, memory_format=memory_format, seed=seed)
        for seed in range(2 + negatives)
    )
    assert_distances(student, torch.stack(others), dtype=dtype)


@pytest.mark.parametrize("cuts", [(1,), (3,), (1, 2, 3, 4, 5), (17,)], ids=str)
def test_groups_add_up(cuts):
    assert_distances(features(2, 8, 3, 5), features(20, 2, 8, 3, 5, seed=1), cuts)


@pytest.mark.parametrize("count", [1, *(pytest.param(n, marks=slow) for n in (42, 43))])
def test_exact_ties_and_all_signs_alike(count):
    """Where every sign agrees the code is at the end of its range; where none does it is 0."""
    value = features(1, 4, 3, 3)
    for to_teacher, to_negatives in [(0, 0), (-1, -1), (1, 1), (-1, 0), (0, 1), (1, -1)]:
        others = torch.stack([value + to_teacher] + [value + to_negatives] * count)
        assert_distances(value, others)
    half = value.half()
    assert_distances(half, torch.stack([half] * 3))
    assert not compare(value, torch.stack([value] * 5), ())[0].any()


def test_distances_of_rows_and_of_mixed_layouts():
    """A part of the batch at an odd offset; others and student in another order than the code."""
    student = features(3, 8, 3, 5, memory_format=torch.contiguous_format)
    others = features(4, 3, 8, 3, 5, seed=1)
    code = torch.zeros(3, 8, 3, 5, dtype=torch.int8, device=DEVICE)
    code = code.contiguous(memory_format=torch.channels_last)
    sums = torch.zeros(2, device=DEVICE)
    for rows in (slice(1, 3), slice(0, 1)):  # the second must not touch what follows it
        triton_distances.accumulate(student[rows], others[:, rows], 0, code[rows], sums)
    expected = truth(student, others, 1.0, 2.0)
    one = torch.ones((), device=DEVICE)
    grad = triton_distances.decode(code, one, 2 * one, torch.float32)
    assert torch.equal(grad, expected[2].float())
    torch.testing.assert_close(sums.double(), torch.stack(expected[:2]), rtol=5e-7, atol=0)


def test_distances_refuse_other_shapes():
    student, others = features(1, 4, 2, 2), features(2, 1, 4, 2, 2)
    code, sums = torch.zeros_like(student, dtype=torch.int8), torch.zeros(2, device=DEVICE)
    for bad in ((student[:, :2], others, code), (student, others[:, :, :2], code)):
        with pytest.raises(ValueError, match=r"expected features \(1, 4, 2, 2\)"):
            triton_distances.accumulate(bad[0], bad[1], 0, bad[2], sums)
    with pytest.raises(ValueError, match="a dense code"):
        triton_distances.accumulate(student[..., :1], others[..., :1], 0, code[..., :1], sums)


# the package


def test_are_what_the_fused_operations_call(monkeypatch):
    """As on a CUDA device: the same arguments in the same order as the twins take."""
    called = []
    for module in (norm, distances):
        monkeypatch.setattr(module, "use_triton", lambda device, dtype: called.append(1) or True)
    x, slope, teacher, *negatives = (features(2, 32, 3, 5, seed=seed) for seed in range(5))
    weight, bias = affine(32)
    for silu in (True, False):
        seen, expected = (
            value_and_gradient(
                lambda x, fused=fused, silu=silu: norm.group_norm_silu(
                    x, weight, bias, 32, EPS, silu, fused=fused
                ),
                x,
                slope,
            )
            for fused in (True, False)
        )
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)

    def fused(x):
        level = distances.LevelDistances(x.detach(), 2)
        level.add(torch.stack([teacher, *negatives]), 0, 0)
        return torch.stack(level.differentiable(x))

    seen, expected = (
        value_and_gradient(of, x)
        for of in (fused, lambda x: torch.stack(distances.level_distances(x, teacher, negatives)))
    )
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert len(called) == 4, "norm twice, and the distances there and back"


def whole_path(x, others, weight, bias):
    """Every kernel once."""
    x = x.detach().requires_grad_()
    y = group_norm_silu(x, weight, bias, 32, EPS)
    code, positive, negative = compare(y.detach(), others, ())
    grad = triton_distances.decode(code, 1 / positive, 1 / negative, y.dtype)
    (dx,) = torch.autograd.grad(y, x, grad)
    return dx, positive, negative


@device_only
@every_dtype
def test_same_bits_again_without_waiting_and_in_a_graph(dtype):
    x = features(2, 128, 33, 20, dtype=dtype)
    others = torch.stack([features(2, 128, 33, 20, dtype=dtype, seed=s) for s in range(1, 7)])
    weight, bias = affine(128)
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


@device_only
@pytest.mark.parametrize(("mode", "precision"), [("stream", "float32"), ("twopass", "float16")])
def test_carry_the_whole_loss(make_encoder, mode, precision, float32_is_exact):
    student, teacher, other = features(3, 2, 3, 32, 33).sigmoid()
    assert use_triton(student.device, student.dtype)
    results = []
    for way in ({"impl": "plain"}, {"mode": mode, "chunk": 1, "precision": precision}):
        encoder = make_encoder(**way)
        dckd = DCKDLoss(
            torch.nn.Identity(), encoder, dmm_weight=0.05, negatives=lambda lq: other[None]
        ).to(DEVICE)
        results.append(value_and_gradient(lambda x, dckd=dckd: dckd(x, teacher, teacher), student))
    (expected, slope), (seen, found) = results
    exact = precision == "float32"
    assert abs(seen - expected) < (1e-6 if exact else 2e-3) * abs(expected)
    assert (found - slope).norm() < (2e-2 if exact else 0.1) * slope.norm()
