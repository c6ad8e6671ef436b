"""The power of two by which gradients pass through a float16 network."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dckd_losses.ops import gradient_scale
from dckd_losses.ops.gradient_scale import GradientScale


@given(st.floats(2.0**-120, 2.0**90, allow_subnormal=False))
def test_the_power_of_two_brings_the_largest_gradient_below_one_eighth(largest):
    scale = gradient_scale._power(torch.tensor(largest))
    assert torch.frexp(scale).mantissa == 0.5
    if largest > 2.0**-100:
        assert 1 / 16 <= scale * torch.tensor(largest) < 1 / 8
    assert (1 / scale).isfinite()


def test_gradients_enter_float16_scaled_and_leave_unscaled(images):
    x = images(2, 3, 1, 1).requires_grad_()
    scale, inside = GradientScale(torch.float16), []
    half = (2 * scale.enter(x)).half()
    half.register_hook(inside.append)
    first, second = scale.leave([half, half.sum()], [1.0, 4.0])
    assert first.dtype == second.dtype == torch.float32
    tiny = 2.0**-40  # below float16's smallest number
    (seen,) = torch.autograd.grad(tiny * (first.sum() + second), x)
    torch.testing.assert_close(seen, torch.full_like(x, 4 * tiny), rtol=1e-3, atol=0)
    largest = max(grad.abs().max() for grad in inside)
    assert 1 / 64 <= largest <= 1 / 16, "room for the second result, whose slope may be four"


@pytest.mark.parametrize(("arriving", "dropped"), [(1.0, True), (torch.inf, False)])
def test_only_an_image_whose_gradient_overflows_inside_gets_none(images, arriving, dropped):
    x = images(2, 3, 2, 2)
    x[0] = 0  # as a flat image, whose norms' slopes are large
    x.requires_grad_()
    scale, slopes = GradientScale(torch.float16), torch.tensor([2.0**12, 1.0]).half()
    half = scale.enter(x).half()
    for _ in range(3):
        half = half * slopes[:, None, None, None]
    (left,) = scale.leave([half], [1.0])
    (seen,) = torch.autograd.grad(left.sum(), x, torch.tensor(arriving))
    assert torch.equal(seen[0], torch.zeros_like(seen[0])) == dropped
    assert seen[0].isfinite().all() == dropped
    assert torch.equal(seen[1], torch.full_like(seen[1], arriving))


def test_other_precisions_pass_unscaled(images):
    x = images(2, 3).requires_grad_()
    scale = GradientScale(torch.bfloat16)
    (left,) = scale.leave([2 * scale.enter(x)], [1.0])
    assert left.dtype == torch.float32
    (grad,) = torch.autograd.grad(left.sum(), x)
    assert torch.equal(grad, torch.full_like(grad, 2.0))


def test_float16_does_not_compile_into_one_graph(images):
    """Which would lose the power that backward finds."""
    torch._dynamo.reset()
    enter = torch.compile(GradientScale(torch.float16).enter, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        enter(images(2, 3).requires_grad_())
