"""How far results are from what they should be, and fused operations from their plain twins."""

import itertools

import torch

from dckd_losses.ops.distances import LevelDistances

FORMATS = [torch.contiguous_format, torch.channels_last]
LAYOUTS = ["contiguous", "channels_last"]


def relative(seen, expected):
    """The L2 distance over the expected norm; of tensors, numbers or lists."""
    seen, expected = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (seen, expected))
    return ((seen - expected).norm() / expected.norm()).item()


def cosine(one, two):
    """Of the angle between two tensors of the same number of elements."""
    return torch.cosine_similarity(one.flatten().double(), two.flatten().double(), 0).item()


def value_and_gradient(function, x, slope=None):
    """A function's result, and the gradient of x for a given gradient of the result."""
    x = x.detach().clone().requires_grad_()
    out = function(x)
    if slope is None:  # other than one
        steps = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=out.device)
        slope = steps.view(out.shape)
    return out.detach(), torch.autograd.grad(out, x, slope)[0]


def assert_fused_equals_plain(operation, x, bound=1e-13):
    """In value and gradient; and the fused gradient equals finite differences.

    Args:
        operation: called with x and `fused`.
        x: float64.
        bound: of both relative errors.
    """
    plain, fused = (
        value_and_gradient(lambda x, f=f: operation(x, fused=f), x) for f in (False, True)
    )
    for seen, expected in zip(fused, plain, strict=True):
        assert seen.dtype == expected.dtype
        assert relative(seen, expected) < bound
    assert torch.autograd.gradcheck(lambda x: operation(x, fused=True), x.requires_grad_())


def fused_distances(student, teacher, negatives, groups=()):
    """Of Eq. 5 by `LevelDistances`; sets up to each number of `groups` pass together."""
    distances = LevelDistances(student.detach(), len(negatives))
    others = torch.stack([teacher, *negatives])
    for first, end in itertools.pairwise([0, *groups, len(others)]):
        distances.add(others[first:end], first, 0)
    return distances.differentiable(student)
