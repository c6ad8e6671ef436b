"""Eq. 5's distances at one level: sums as features pass, and their gradient from small integers."""

import pytest
import torch
from numerics import FORMATS, LAYOUTS, fused_distances, relative, value_and_gradient

from dckd_losses.ops.distances import LevelDistances, level_distances


def loss(distances, teacher, negatives):
    """A function of the student's features whose derivatives by both distances differ."""

    def of(student):
        positive, negative = distances(student, teacher, negatives)
        return torch.stack([positive, negative, positive / (negative + 1e-3)])

    return of


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("count", [1, 5, 42, 43, 300])
def test_fused_equals_plain(images, memory_format, count):
    student, teacher, *negatives = (
        x.contiguous(memory_format=memory_format) for x in images(2 + count, 2, 3, 5, 4).double()
    )
    seen, expected = (
        value_and_gradient(loss(distances, teacher, negatives), student)
        for distances in (fused_distances, level_distances)
    )
    for one, two in zip(seen, expected, strict=True):
        assert relative(one, two) < 1e-12
    assert LevelDistances(student, count).code.dtype == (torch.int8 if count < 43 else torch.int32)


def test_gradient_equals_differences(images):
    student, teacher, *negatives = images(5, 1, 2, 3, 3).double()
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: fused_distances(x, teacher, negatives), student, eps=1e-9
    )


@pytest.mark.parametrize("count", [1, 42, 43])
@pytest.mark.parametrize(
    ("to_teacher", "to_negatives"), [(0, 0), (-1, -1), (1, 1), (-1, 0), (0, 1), (1, -1)]
)
def test_ties_and_all_signs_alike(images, count, to_teacher, to_negatives):
    """Where all signs agree the code is at an end of its range; where student ties it is 0."""
    student = images(1, 2, 4, 4).double()
    arguments = student + to_teacher, [student + to_negatives] * count
    slope = torch.tensor([2.0, 5.0, 0.5]).double()
    seen, expected = (
        value_and_gradient(loss(distances, *arguments), student, slope)
        for distances in (fused_distances, level_distances)
    )
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("groups", [(1,), (3,), (1, 2, 3, 4, 5)], ids=str)
def test_groups_of_sets_and_parts_of_the_batch_add_up(images, groups):
    student, teacher, *negatives = images(8, 5, 3, 4, 4).double()
    whole = fused_distances(student, teacher, negatives)
    torch.testing.assert_close(fused_distances(student, teacher, negatives, groups), whole)
    parts, others = LevelDistances(student, len(negatives)), torch.stack([teacher, *negatives])
    for start, end in [(3, 5), (0, 3)]:
        parts.add(others[:, start:end], 0, start)
    torch.testing.assert_close(parts.differentiable(student), whole)


def test_gradient_of_half_features_is_rounded_once(images):
    student, teacher, *negatives = images(44, 1, 2, 5, 5).half()
    slope = torch.tensor([30.0, -7.0, 0.0])
    half, exact = (
        value_and_gradient(
            loss(fused_distances, teacher.to(dtype), [n.to(dtype) for n in negatives]),
            student.to(dtype),
            slope.to(sums),
        )
        for dtype, sums in ((torch.half, torch.float32), (torch.double, torch.double))
    )
    assert half[0].dtype == torch.float32
    assert torch.equal(half[1], exact[1].half())


def test_slopes_are_bounded_as_it_says(images):
    """What keeps float16's gradients in range."""
    student = images(1, 2, 3, 3).double()
    teacher, negatives = student + 1, [student + 1] * 4
    distances = LevelDistances(student, 4)
    for i, bound in enumerate(distances.max_slope):
        slope = torch.eye(3).double()[i]
        (_, gradient) = value_and_gradient(
            loss(fused_distances, teacher, negatives), student, slope
        )
        torch.testing.assert_close(gradient.abs().max().item(), bound)
