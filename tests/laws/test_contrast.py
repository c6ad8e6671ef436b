"""The laws of Eq. 5 on given features, for whatever hypothesis thinks of."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numerics import fused_distances

from dckd_losses.dcr import EPS, contrastive_ratio
from dckd_losses.ops.distances import level_distances

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 50)
sizes = st.tuples(*(st.integers(1, 5) for _ in range(4)))


def features(seed, number, size, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(number, *size, generator=generator, dtype=torch.float64)


@pytest.fixture(params=[level_distances, fused_distances])
def distances(request):
    """Either way to the distances of Eq. 5."""
    return request.param


@pytest.fixture
def contrast(distances):
    """Eq. 5 at one level of weight 1."""

    def of(student, teacher, negatives, eps=EPS):
        positive, negative = distances(student, teacher, negatives)
        return contrastive_ratio([positive], [negative], [1.0], eps)

    return of


@given(seeds, counts, sizes)
def test_contrast_is_not_negative(contrast, seed, count, size):
    student, teacher, *negatives = features(seed, 2 + count, size)
    assert contrast(student, teacher, negatives) >= 0


@given(seeds, counts, sizes)
def test_positive_gap_vanishes_at_the_teacher_with_its_gradient(contrast, seed, count, size):
    student, *negatives = features(seed, 1 + count, size)
    student.requires_grad_()
    loss = contrast(student, student.detach().clone(), negatives)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert not gradient.any()


@given(seeds, st.integers(2, 42), sizes, st.randoms())
def test_order_of_negatives_does_not_matter(contrast, seed, count, size, random):
    student, teacher, *negatives = features(seed, 2 + count, size)
    shuffled = random.sample(negatives, count)
    torch.testing.assert_close(
        contrast(student, teacher, negatives),
        contrast(student, teacher, shuffled),
        rtol=1e-12,
        atol=0,
    )


@given(seeds, counts, sizes, st.floats(1e-2, 1e3))
def test_common_scaling_does_not_matter(contrast, distances, seed, count, size, factor):
    student, teacher, *negatives = features(seed, 2 + count, size)
    one = contrast(student, teacher, negatives)
    scaled = contrast(factor * student, factor * teacher, [factor * n for n in negatives])
    negative = distances(student, teacher, negatives)[1]
    slack = 2 * EPS / (min(1, factor) * negative.item()) + 1e-9
    assert math.isclose(one, scaled, rel_tol=slack)


@given(seeds, counts, sizes)
def test_falls_towards_the_teacher_where_negatives_are_far(contrast, distances, seed, count, size):
    """The derivative along teacher - student is below 0 where sum_j d(S,N_j) > N d(S,T)."""
    student, teacher, *negatives = features(seed, 2 + count, size)
    positive, negative = distances(student, teacher, negatives)
    assume(negative > 1.0001 * count * positive)
    step = 1e-6
    moved = student + step * (teacher - student)
    assert contrast(moved, teacher, negatives, 0) < contrast(student, teacher, negatives, 0)


@given(seeds, sizes, st.floats(0, 0.94), st.floats(0.01, 0.05))
def test_grows_from_the_teacher_to_a_negative(contrast, seed, size, at, step):
    teacher, negative = features(seed, 2, size)
    assume((teacher - negative).abs().mean() > 1e-3)
    here, further = (teacher + t * (negative - teacher) for t in (at, at + step))
    assert contrast(here, teacher, [negative]) < contrast(further, teacher, [negative])


@given(seeds, sizes)
def test_moving_every_negative_away_lowers_the_loss(contrast, seed, size):
    student, teacher, negative = features(seed, 3, size)
    further = student + 2 * (negative - student)
    assert contrast(student, teacher, [further]) <= contrast(student, teacher, [negative])


@given(seeds, counts, sizes)
def test_exact_ties_have_gradient_zero(distances, seed, count, size):
    """A negative equal to the student neither pulls nor pushes."""
    student, teacher, *negatives = features(seed, 2 + count, size)
    student.requires_grad_()
    negatives[0] = student.detach().clone()
    negative = distances(student, teacher, negatives)[1]
    (gradient,) = torch.autograd.grad(negative, student)
    expected = sum(torch.sign(student.detach() - n) for n in negatives[1:]) if count > 1 else 0
    torch.testing.assert_close(gradient * student.numel(), expected + 0 * student.detach())
