"""The laws of the losses on given features, for whatever hypothesis thinks of."""

import math

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dckd_losses.dcr import EPS
from dckd_losses.ops import reference

settings.register_profile("laws", deadline=None, max_examples=60)
settings.load_profile("laws")

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 42)
sizes = st.tuples(*(st.integers(1, 5) for _ in range(4)))


def features(seed, number, size, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(number, *size, generator=generator, dtype=torch.float64)


def contrast(student, teacher, negatives, eps=EPS):
    positive, negative = reference.level_gaps(student, teacher, negatives)
    return reference.contrast([positive], [negative], [1.0], eps)


@given(seeds, counts, sizes)
def test_contrast_is_not_negative(seed, count, size):
    student, teacher, *negatives = features(seed, 2 + count, size)
    assert contrast(student, teacher, negatives) >= 0


@given(seeds, counts, sizes)
def test_positive_gap_vanishes_at_the_teacher_with_its_gradient(seed, count, size):
    student, *negatives = features(seed, 1 + count, size)
    student.requires_grad_()
    loss = contrast(student, student.detach().clone(), negatives)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0
    assert not gradient.any()


@given(seeds, st.integers(2, 42), sizes, st.randoms())
def test_order_of_negatives_does_not_matter(seed, count, size, random):
    student, teacher, *negatives = features(seed, 2 + count, size)
    shuffled = random.sample(negatives, count)
    torch.testing.assert_close(
        contrast(student, teacher, negatives),
        contrast(student, teacher, shuffled),
        rtol=1e-12,
        atol=0,
    )


@given(seeds, counts, sizes, st.floats(1e-2, 1e3))
def test_common_scaling_does_not_matter(seed, count, size, factor):
    student, teacher, *negatives = features(seed, 2 + count, size)
    one = contrast(student, teacher, negatives)
    scaled = contrast(factor * student, factor * teacher, [factor * n for n in negatives])
    negative = reference.level_gaps(student, teacher, negatives)[1]
    slack = 2 * EPS / (min(1, factor) * negative.item()) + 1e-9
    assert math.isclose(one, scaled, rel_tol=slack)


@given(seeds, counts, sizes)
def test_falls_towards_the_teacher_where_negatives_are_far_enough(seed, count, size):
    """The derivative along teacher - student is below 0 where sum_j d(S,N_j) > N d(S,T)."""
    student, teacher, *negatives = features(seed, 2 + count, size)
    positive, negative = reference.level_gaps(student, teacher, negatives)
    assume(negative > 1.0001 * count * positive)
    step = 1e-6
    moved = student + step * (teacher - student)
    assert contrast(moved, teacher, negatives, 0) < contrast(student, teacher, negatives, 0)


@given(seeds, sizes, st.floats(0, 0.94), st.floats(0.01, 0.05))
def test_grows_from_the_teacher_to_a_negative(seed, size, at, step):
    teacher, negative = features(seed, 2, size)
    assume((teacher - negative).abs().mean() > 1e-3)
    here, further = (teacher + t * (negative - teacher) for t in (at, at + step))
    assert contrast(here, teacher, [negative]) < contrast(further, teacher, [negative])


@given(seeds, sizes)
def test_moving_every_negative_away_lowers_the_loss(seed, size):
    student, teacher, negative = features(seed, 3, size)
    further = student + 2 * (negative - student)
    assert contrast(student, teacher, [further]) <= contrast(student, teacher, [negative])


@given(seeds, counts, sizes)
def test_exact_ties_have_gradient_zero(seed, count, size):
    """A negative equal to the student neither pulls nor pushes."""
    student, teacher, *negatives = features(seed, 2 + count, size)
    student.requires_grad_()
    negatives[0] = student.detach().clone()
    negative = reference.level_gaps(student, teacher, negatives)[1]
    (gradient,) = torch.autograd.grad(negative, student)
    expected = sum(torch.sign(student.detach() - n) for n in negatives[1:]) if count > 1 else 0
    torch.testing.assert_close(gradient * student.numel(), expected + 0 * student.detach())


@given(seeds, sizes, st.floats(0.1, 30), st.floats(0.2, 5))
def test_cross_entropy_is_least_at_the_teacher(seed, size, spread, temperature):
    """At least the teacher's entropy, which it is only where the distributions are equal."""
    batch, codes, height, width = size
    shape = (batch, codes + 1, height, width)
    student, teacher = features(seed, 2, shape, spread)
    p = (teacher / temperature).softmax(1)
    entropy = torch.special.entr(p).sum(1).mean()
    at_teacher = reference.cross_entropy(teacher, teacher, temperature)
    shifted = reference.cross_entropy(teacher + 7.0, teacher, temperature)
    elsewhere = reference.cross_entropy(student, teacher, temperature)
    torch.testing.assert_close(at_teacher, entropy, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shifted, entropy, rtol=1e-9, atol=1e-12)
    q = (student / temperature).softmax(1)
    if (p - q).abs().max() > 1e-3:
        assert elsewhere > entropy
    else:
        assert elsewhere >= entropy - 1e-12


@given(seeds, sizes)
def test_gradient_of_the_cross_entropy_vanishes_at_the_teacher(seed, size):
    batch, codes, height, width = size
    (teacher,) = features(seed, 1, (batch, codes + 1, height, width), 3.0)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reference.cross_entropy(student, teacher, 1.0), student)
    assert gradient.abs().max() < 1e-14
