"""Eq. 5 against plain loops, through features and through the encoder."""

import oracle
import pytest
import torch
from numerics import fused_distances, relative

from dckd_losses import DCRLoss
from dckd_losses.dcr import EPS, LEVEL_WEIGHTS, contrastive_ratio
from dckd_losses.ops.distances import level_distances

TINY = [(1, 2, 6, 5), (1, 2, 3, 2), (1, 3, 2, 2), (1, 1, 1, 2), (1, 4, 1, 1)]


def features(images, negatives, batch=1, dtype=torch.float64):
    shapes = [(batch, *shape[1:]) for shape in TINY]
    return [tuple(images(*s, dtype=dtype) for s in shapes) for _ in range(2 + negatives)]


def by_level(student, teacher, negatives, distances):
    """Both distances of Eq. 5 at each level, positive and negative."""
    levels = zip(student, teacher, *negatives, strict=True)
    return zip(*(distances(s, t, n) for s, t, *n in levels), strict=True)


ways = pytest.mark.parametrize(
    "distances", [level_distances, fused_distances], ids=["plain", "fused"]
)


def lists(levels):
    return [level.tolist() for level in levels]


@ways
@pytest.mark.parametrize(("count", "batch"), [(1, 1), (5, 3), (43, 1)])
def test_equals_oracle_on_features(images, count, batch, distances):
    student, teacher, *negatives = features(images, count, batch)
    for level in student:
        level.requires_grad_()
    positive, negative = by_level(student, teacher, negatives, distances)
    others = [[n[i].tolist() for n in negatives] for i in range(5)]
    arguments = lists(student), lists(teacher), others, LEVEL_WEIGHTS, EPS
    loss = contrastive_ratio(positive, negative, LEVEL_WEIGHTS, EPS)
    assert relative(loss.item(), oracle.dcr(*arguments)) < 1e-10
    loss.backward()
    for level, expected in zip(student, oracle.dcr_gradient(*arguments), strict=True):
        assert relative(level.grad, expected) < 1e-10
    for i in range(5):
        gap = oracle.mean_l1(student[i].tolist(), teacher[i].tolist())
        assert positive[i].item() == pytest.approx(gap, rel=1e-12)
        gap = sum(oracle.mean_l1(student[i].tolist(), n) for n in others[i])
        assert negative[i].item() == pytest.approx(gap, rel=1e-12)


def test_equals_oracle_through_the_encoder(encoder, images):
    dcr = DCRLoss(encoder, level_weights=(5, 4, 3, 2, 1), eps=0.01).double()
    student, teacher = images(2, 1, 3, 16, 19, dtype=torch.float64)
    negatives = images(2, 1, 3, 16, 19, dtype=torch.float64)
    levels = [lists(encoder(x).levels) for x in (student, teacher, *negatives)]
    others = [[other[i] for other in levels[2:]] for i in range(5)]
    expected = oracle.dcr(levels[0], levels[1], others, (5, 4, 3, 2, 1), 0.01)
    seen = dcr(student, teacher, negatives)
    assert seen.dtype == torch.float64
    assert relative(seen, expected) < 1e-10


@ways
def test_half_precision_features_are_compared_in_float32(images, distances):
    student, teacher, *negatives = features(images, 2)
    half = [tuple(level.bfloat16() for level in x) for x in (student, teacher, *negatives)]
    wide = [tuple(level.float() for level in x) for x in half]
    seen, expected = (
        contrastive_ratio(*by_level(x[0], x[1], x[2:], distances), LEVEL_WEIGHTS, EPS)
        for x in (half, wide)
    )
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level_weights": ()}, "level_weights"),
        ({"level_weights": (1, 1, 1, 1, -1)}, "-1"),
        ({"level_weights": 1.0}, "one number a level, got 1.0"),
        ({"level_weights": ("1e-3",)}, "each of level_weights must be a number.* as text"),
        ({"eps": 0}, "eps must be finite and above 0, got 0"),
        ({"eps": "1e-7"}, "eps must be a number, finite and above 0, got '1e-7' as text"),
    ],
)
def test_refuses_settings(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        DCRLoss(encoder, **arguments)


@pytest.mark.parametrize(
    ("negatives", "message"),
    [
        (torch.rand(1, 3, 16, 16), r"negatives must be \(N, B, 3, H, W\).*\(1, 3, 16, 16\)"),
        (torch.rand(0, 1, 3, 16, 16), "N at least 1"),
        (torch.rand(2, 2, 3, 16, 16), r"each negative \(2, 3, 16, 16\) and student"),
        (torch.rand(2, 1, 3, 16, 16).byte(), "negatives must be floating point.*uint8"),
        (torch.rand(2, 1, 3, 16, 16).to("meta"), "each negative is on meta"),
        ([torch.rand(1, 3, 16, 16)], "negatives .* got list"),
    ],
    ids=["4 axes", "none", "batch", "bytes", "device", "list"],
)
def test_refuses_negatives(encoder, images, negatives, message):
    with pytest.raises(ValueError, match=message):
        DCRLoss(encoder)(*images(2, 1, 3, 16, 16), negatives)
