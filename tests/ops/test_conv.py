"""Frozen convolutions: fused against plain, in float64, and what they keep."""

from functools import partial

import pytest
import torch
from numerics import FORMATS, LAYOUTS, assert_fused_equals_plain

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


def test_split_is_exact_and_its_parts_fit_tf32(images):
    """So that products of parts lose nothing where CUDA cuts operands to 11 significant bits."""
    x = (200 * images(10_000) - 100) * torch.logspace(-20, 20, 10_000)
    high, low = conv._split(x)
    assert torch.equal(high.double() + low.double(), x.double())
    kept = -1 << 13  # TF32 has 13 bits less than float32
    assert torch.equal(high, (high.view(torch.int32) & kept).view(torch.float32))
    assert (low.abs() <= 2.0**-11 * x.abs()).all()
