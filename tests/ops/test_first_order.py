"""What every fused backward does alike: it ignores autocast, and refuses to be differentiated."""

import pytest
import torch

from dckd_losses.ops.conv import frozen_conv2d, halving_conv2d
from dckd_losses.ops.distances import LevelDistances
from dckd_losses.ops.gradient_scale import GradientScale
from dckd_losses.ops.norm import group_norm_silu


def of_distances(x):
    distances = LevelDistances(x.detach(), 1)
    distances.add(torch.stack([x.detach() + 1, x.detach().flip(0)]), 0, 0)
    return sum(distances.differentiable(x))


def of_a_scaled_pass(x):
    scale = GradientScale(torch.float16)
    return scale.leave([scale.enter(x).square().half()], [1.0])[0]


WEIGHT = torch.linspace(-1, 1, 6 * 4 * 9).view(6, 4, 3, 3)
BIAS = torch.linspace(0, 1, 6)
OPERATIONS = {
    "frozen_conv2d": lambda x: frozen_conv2d(x, WEIGHT, BIAS, 1, fused=True),
    "halving_conv2d": lambda x: halving_conv2d(x, WEIGHT, BIAS, fused=True),
    "group_norm_silu": lambda x: group_norm_silu(x, BIAS[:4], BIAS[:4], 2, 1e-6, fused=True),
    "distances": of_distances,
    "gradient scale": of_a_scaled_pass,
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@every_operation
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_backward_under_autocast_is_backward_outside(images, operation, dtype):
    x = images(2, 4, 9, 8).requires_grad_()
    out = operation(x)
    slope = torch.linspace(-1, 2, out.numel()).view(out.shape)
    (expected,) = torch.autograd.grad(out, x, slope, retain_graph=True)
    with torch.autocast("cpu", dtype):
        (seen,) = torch.autograd.grad(out, x, slope)
    assert expected.any()
    assert torch.equal(seen, expected)


@every_operation
def test_a_second_derivative_is_refused(images, operation):
    """It would be missing without a word from a gradient penalty."""
    x = images(2, 4, 8, 8).requires_grad_()
    with pytest.raises(RuntimeError, match=r"no second derivative: .*impl='plain'"):
        torch.autograd.grad(operation(x).sum(), x, create_graph=True)
