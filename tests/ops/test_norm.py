"""GroupNorm and SiLU: fused against plain, in float64 and in half precision, and what it keeps."""

from functools import partial

import pytest
import torch
from numerics import (
    FORMATS,
    LAYOUTS,
    assert_fused_equals_plain,
    relative,
    value_and_gradient,
)

from dckd_losses.ops.norm import group_norm_silu

EPS = 1e-6


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("size", [(5, 3), (1, 1)])
def test_group_norm_silu(images, memory_format, silu, size):
    x = (3 * images(2, 8, *size).double() - 1).contiguous(memory_format=memory_format)
    weight, bias = images(2, 8).double()
    norm = partial(group_norm_silu, weight=weight, bias=bias, groups=4, eps=EPS, silu=silu)
    assert_fused_equals_plain(norm, x, 1e-11 if size == (1, 1) else 1e-12)


def test_keeps_the_digits_of_features_far_from_zero(images):
    x, weight, bias = images(2, 64, 16, 16) + 30, torch.ones(64), torch.zeros(64)
    seen = group_norm_silu(x, weight, bias, 32, EPS, False, fused=True)
    exact = (t.double() for t in (x, weight, bias))
    assert relative(seen, group_norm_silu(*exact, 32, EPS, False, fused=False)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fused", [False, True])
def test_in_half_precision_it_is_as_good_as_its_output_can_be(images, dtype, fused):
    x = (4 * images(2, 64, 9, 7) - 1).to(dtype)
    weight, bias, slope = images(64), images(64), images(2, 64, 9, 7).to(dtype)
    exact = partial(
        group_norm_silu, weight=weight.double(), bias=bias.double(), groups=32, eps=EPS, fused=False
    )
    norm = partial(group_norm_silu, weight=weight, bias=bias, groups=32, eps=EPS, fused=fused)
    expected = value_and_gradient(exact, x.double(), slope.double())
    for seen, true in zip(value_and_gradient(norm, x, slope), expected, strict=True):
        assert seen.dtype == dtype
        assert relative(seen, true) <= relative(true.to(dtype), true) + 1e-5


def test_takes_any_strides(images):
    x = images(2, 8, 10, 6).double().permute(0, 1, 3, 2)[:, :, ::2]
    weight, bias = images(2, 8).double()
    norm = partial(group_norm_silu, weight=weight, bias=bias, groups=4, eps=EPS)
    assert not x.is_contiguous()
    for slope in (x, x.new_ones(()).expand_as(x)):  # the second as from a sum
        seen, expected = (
            value_and_gradient(partial(norm, fused=fused), x, slope) for fused in (True, False)
        )
        for one, two in zip(seen, expected, strict=True):
            assert relative(one, two) < 1e-12


def test_fused_keeps_its_input_and_statistics_only(images):
    x = images(2, 8, 5, 3).half().requires_grad_()
    weight, bias = images(2, 8)
    out = group_norm_silu(x, weight, bias, 4, EPS, fused=True)
    own = {t.data_ptr() for t in (x, weight, bias)}
    small = [t for t in out.grad_fn.saved_tensors if t.data_ptr() not in own]
    assert [t.numel() for t in small] == [8, 8]
