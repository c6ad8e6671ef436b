"""Winograd's convolution against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dckd_losses.ops import winograd


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    out_channels=st.integers(1, 5),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    scratch=st.sampled_from([1, 4000, 1 << 22]),
    biased=st.booleans(),
    last=st.booleans(),
)
def test_equals_a_convolution(batch, channels, out_channels, height, width, scratch, biased, last):
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight = torch.randn(out_channels, channels, 3, 3, dtype=torch.float64)
    bias = torch.randn(out_channels, dtype=torch.float64) if biased else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "SCRATCH_BYTES", scratch)  # from a row of tiles to all of them
        seen = winograd.conv2d(x, weight, bias)
    torch.testing.assert_close(seen, F.conv2d(x, weight, bias, 1, 1), rtol=1e-11, atol=1e-11)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_rounds_a_few_times_more_than_a_convolution():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 128, 40, 40), torch.randn(128, 128, 3, 3) / 34
    truth = F.conv2d(x.double(), weight.double(), None, 1, 1)
    assert (winograd.conv2d(x, weight, None) - truth).norm() < 3e-6 * truth.norm()


@pytest.mark.parametrize(
    ("shape", "out_channels", "dtype", "expected"),
    [
        ((1, 128, 32, 32), 128, torch.float32, True),
        ((4, 96, 16, 16), 256, torch.float64, True),
        ((1, 128, 31, 32), 128, torch.float32, False),
        ((1, 64, 64, 64), 128, torch.float32, False),
        ((1, 128, 64, 64), 512, torch.float32, False),
        ((1, 128, 64, 64), 128, torch.bfloat16, False),
    ],
)
def test_where_it_pays(shape, out_channels, dtype, expected):
    x = torch.empty(shape, dtype=dtype)
    assert winograd.pays(x, torch.empty(out_channels, shape[1], 3, 3)) is expected
    assert not winograd.pays(x, torch.empty(out_channels, shape[1], 1, 1))


@pytest.mark.parametrize("scratch", [1, 4000, 1 << 22])
def test_prepares_every_pixel_once_and_no_border(monkeypatch, scratch):
    """What is done to the features before must not reach the zeros around them."""
    monkeypatch.setattr(winograd, "SCRATCH_BYTES", scratch)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 9, 14).double(), torch.randn(4, 3, 3, 3).double()
    steps = [lambda x, out, n=n: torch.add(x, 1 + n, out=out) for n in range(2)]
    moved = x + torch.tensor([1, 2]).view(2, 1, 1, 1)
    seen = winograd.conv2d(x, weight, None, steps)
    torch.testing.assert_close(seen, F.conv2d(moved, weight, None, 1, 1))
