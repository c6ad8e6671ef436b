"""Frozen convolutions: fused against plain, in float64, and what they keep."""

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

from dckd_losses.ops import conv
from dckd_losses.ops.conv import frozen_conv2d, halving_conv2d


@pytest.fixture(params=FORMATS, ids=LAYOUTS)
def x(request, images):
    """(2, 4, H, W) in either layout."""

    def make(*size):
        x = images(2, 4, *size, dtype=torch.float64)
        return x.contiguous(memory_format=request.param)

    return make


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (1, 0)])
def test_frozen_conv2d(images, x, kernel, padding):
    weight, bias = images(6, 4, kernel, kernel).double(), images(6).double()
    operation = partial(frozen_conv2d, weight=weight, bias=bias, padding=padding)
    assert_fused_equals_plain(operation, x(7, 9))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (2, 3)])
def test_halving_conv2d(images, x, size):
    """Padded on the right and at the bottom only, so that odd sizes lose their last row."""
    weight, bias = images(6, 4, 3, 3).double(), images(6).double()
    assert_fused_equals_plain(partial(halving_conv2d, weight=weight, bias=bias), x(*size))
    out = halving_conv2d(x(*size), weight, bias, fused=True)
    assert out.shape[2:] == (size[0] // 2, size[1] // 2)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("layout", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("size", [(10, 2), (20, 3), (10, 4), (2, 10), (3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halving_conv2d_of_narrow_images_in_half_precision(images, dtype, size, layout, fused):
    """torch's own is wrong on a CPU in bfloat16 where the result is one pixel wide."""
    x, weight = images(2, 64, *size) - 0.5, (images(64, 64, 3, 3) - 0.5) / 10
    x, weight, bias = (t.to(dtype) for t in (x, weight, images(64)))
    expected = value_and_gradient(
        lambda x: halving_conv2d(x, weight.double(), bias.double(), fused=False), x.double()
    )
    x = x.contiguous(memory_format=layout)
    seen = value_and_gradient(lambda x: halving_conv2d(x, weight, bias, fused=fused), x)
    for one, two in zip(seen, expected, strict=True):
        assert relative(one, two) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("operation", [frozen_conv2d, halving_conv2d])
def test_fused_keep_neither_their_input_nor_a_copy(images, x, operation):
    weight, bias = images(6, 4, 3, 3).double(), images(6).double()
    out = operation(x(8, 8).requires_grad_(), weight, bias, fused=True)
    (kept,) = out.grad_fn.saved_tensors
    assert kept.data_ptr() == weight.data_ptr()
    assert out.untyped_storage().nbytes() == out.numel() * out.element_size()


@pytest.mark.parametrize("operation", [frozen_conv2d, halving_conv2d])
@pytest.mark.parametrize("layout", FORMATS, ids=LAYOUTS)
def test_layout_passes_through(images, operation, layout):
    x = images(2, 4, 8, 8).contiguous(memory_format=layout).requires_grad_()
    weight = images(6, 4, 3, 3).contiguous(memory_format=layout)
    out = operation(x, weight, images(6), fused=True)
    assert out.is_contiguous(memory_format=layout)


def as_tf32(x):
    """What CUDA may make of a convolution's operands: 13 bits fewer, rounded."""
    return ((x.view(torch.int32) + (1 << 12)) & (-1 << 13)).view(torch.float32).double()


def test_split_operands_lose_nothing_that_float32_has(images):
    x, weight = 2 * images(2, 3, 32, 32) - 1, images(8, 3, 3, 3) - 0.5
    (x_high, x_low), (high, low) = conv._split(x), conv._split(weight)
    for part, rest, whole in ((x_high, x_low, x), (high, low, weight)):
        assert torch.equal(part.double() + rest.double(), whole.double())
        assert torch.equal(as_tf32(part), part.double())
    operands = torch.cat([x_high, x_low, x_high], 1), torch.cat([high, high, low], 1)
    truth = torch.conv2d(x.double(), weight.double())
    assert relative(torch.conv2d(as_tf32(x), as_tf32(weight)), truth) > 1e-4
    assert relative(torch.conv2d(*map(as_tf32, operands)), truth) < 3e-7


def test_gradient_passes_a_split_once(images):
    x = images(2, 3, 4, 4).requires_grad_()
    high, low = conv._split(x)
    (grad,) = torch.autograd.grad((2 * high + 5 * low).sum(), x)
    assert torch.equal(grad, torch.full_like(x, 2.0))
