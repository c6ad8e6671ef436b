"""DUKD's transforms and their inverse, its label consistency and its zoom, in plain loops."""

import itertools

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines import DUKD, LabelConsistency
from benchmarks.baselines.dukd import Transform
from dckd_losses.negatives.draws import Draws

COMBINATIONS = list(itertools.product([False, True], repeat=4))


class Recorder(nn.Module):
    """Doubles an image's size unevenly, remembers what it saw, and spoils its input."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        out = self.factor * F.interpolate(x, scale_factor=2).square()
        out = out + torch.linspace(0, 0.1, out.shape[3], dtype=out.dtype)
        x.mul_(255)  # as spandrel's RCAN does
        return out


def close(seen, expected):
    assert seen.dtype == torch.float64
    assert seen.item() == pytest.approx(expected, rel=1e-10)


def moved(rows, combination):
    """F's moves on one image's plane, a list of rows."""
    _, flip_rows, flip_columns, swap = combination
    rows = rows[::-1] if flip_rows else rows
    rows = [row[::-1] for row in rows] if flip_columns else rows
    return [list(column) for column in zip(*rows, strict=True)] if swap else rows


def transformed(image, combination):
    """F of one image, planes of rows of numbers."""
    values = [[[1 - v for v in row] for row in plane] for plane in image]
    return [moved(plane, combination) for plane in (values if combination[0] else image)]


def restored(image, combination, height, width):
    """F^-1, by sending every pixel back to where F took it from."""
    places = moved([[(y, x) for x in range(width)] for y in range(height)], combination)
    planes = []
    for plane in image:
        out = [[0.0] * width for _ in range(height)]
        for place_row, row in zip(places, plane, strict=True):
            for (y, x), v in zip(place_row, row, strict=True):
                out[y][x] = 1 - v if combination[0] else v
        planes.append(out)
    return planes


def exact_images(*shape):
    """Distinct images of whole 256ths, on which 1 - x is exact."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 257, shape, generator=generator) / 256


@pytest.mark.parametrize("size", [(6, 6), (7, 7), (5, 8), (9, 4)])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_the_inverse_undoes_every_combination(size, combination):
    images = exact_images(2, 3, *size)
    transform = Transform(*(torch.tensor([flag, flag]) for flag in combination))
    there = transform(images)
    assert there.tolist() == [transformed(image, combination) for image in images.tolist()]
    assert torch.equal(transform.undo(there), images)
    larger = exact_images(2, 3, *(2 * side for side in there.shape[2:]))  # a network's output
    back = [restored(x, combination, 2 * size[0], 2 * size[1]) for x in larger.tolist()]
    assert transform.undo(larger).tolist() == back


def test_square_images_are_transformed_each_on_its_own():
    images = exact_images(16, 3, 5, 5)
    transform = Transform(*torch.tensor(COMBINATIONS).unbind(1))
    there = transform(images)
    pairs = zip(images.tolist(), COMBINATIONS, strict=True)
    assert there.tolist() == [transformed(image, combination) for image, combination in pairs]
    assert torch.equal(transform.undo(there), images)
    with pytest.raises(ValueError, match="all or none"):
        transform(exact_images(16, 3, 5, 6))


@pytest.mark.parametrize("probability", [0, 0.3, 1])
def test_transforms_are_drawn_with_their_probability(probability):
    draws = Draws(0, 0, torch.tensor(0))
    transform = Transform.draw(draws, probability, torch.zeros(4000, 1, 2, 2))
    flags = [transform.inverted, transform.rows, transform.columns, transform.transposed]
    for flag in flags:
        assert flag.float().mean().item() == pytest.approx(probability, abs=0.03)
    assert probability != 0.3 or (flags[0] ^ flags[3]).any()
    uneven = Transform.draw(draws, 0.5, torch.zeros(64, 1, 2, 3))
    assert uneven.transposed.unique().numel() == 1


def combination_of(seen, image):
    """Which of the combinations made `seen` of an image."""
    found = [c for c in COMBINATIONS if transformed(image.tolist(), c) == seen.tolist()]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_label_consistency_equals_its_formula(images, size):
    teacher = Recorder(0.7)
    loss = LabelConsistency(teacher, weight=0.5)
    lq = exact_images(6, 3, *size).double()
    student = images(6, 3, 2 * size[0], 2 * size[1], dtype=torch.float64)
    used = set()
    for _ in range(3):
        teacher.seen.clear()
        before = lq.clone()
        seen = loss(student, torch.zeros_like(student), lq, target=student)
        assert torch.equal(lq, before)
        wanted = []
        for x, image in zip(teacher.seen[0].clone(), lq, strict=True):
            used.add(combination_of(x, image))
            out = teacher(x[None].clone())[0].tolist()
            wanted.append(restored(out, combination_of(x, image), 2 * size[0], 2 * size[1]))
        close(seen, 0.5 * oracle.mean_l1(student.tolist(), wanted))
    assert len(used) > 1


@pytest.mark.parametrize("zoom_out", [False, True])
@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_dukd_equals_its_formula(images, size, zoom_out):
    student, teacher = Recorder(0.7), Recorder(0.6)
    loss = DUKD(student, teacher, weight=0.5, probability=0.5, zoom_out=zoom_out)
    (height, width), doubled = size, (2 * size[0], 2 * size[1])
    lq = images(6, 3, *size, dtype=torch.float64)
    target = exact_images(6, 3, *doubled).double()
    before = target.clone(), lq.clone()
    seen = loss(images(6, 3, *doubled, dtype=torch.float64), target, lq, target=target)
    assert torch.equal(target, before[0])
    assert torch.equal(lq, before[1])
    zoomed, mine, wanted, cells = teacher.seen[0], [], [], set()
    for z, x, image in zip(zoomed, student.seen[0], target, strict=True):
        corners = [
            (i, j)
            for i, j in itertools.product(range(2), repeat=2)
            if torch.equal(
                z, image[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
            )
        ]  # fmt: skip
        assert len(corners) == 1
        cells.add(corners[0])
        out = student(x[None].clone())[0].tolist()
        mine.append(restored(out, combination_of(x, z), *doubled))
        wanted.append(teacher(z[None].clone())[0].tolist())
    assert len(cells) > 1
    expected = 0.5 * oracle.mean_l1(mine, wanted)
    if zoom_out:
        small = teacher.seen[1]
        assert torch.equal(small, student.seen[1])
        assert small.shape[2:] == (height // 2, width // 2)
        cropped = lq[..., : height // 2 * 2, : width // 2 * 2]
        assert (small - F.avg_pool2d(cropped, 2)).abs().mean() < 0.1
        out = student(small.clone()).tolist()
        expected += oracle.mean_l1(out, cropped.tolist())  # the ground truth weighs 1 everywhere
        expected += 0.5 * oracle.mean_l1(out, teacher(small.clone()).tolist())
    close(seen, expected)
