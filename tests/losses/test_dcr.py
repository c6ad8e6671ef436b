"""Eq. 5 against plain loops, through features and through the encoder."""

import oracle
import pytest
import torch
from numerics import relative

from dckd_losses import DCRLoss
from dckd_losses.dcr import EPS, LEVEL_WEIGHTS, contrastive_ratio
from dckd_losses.ops.distances import LevelDistances, level_distances

TINY = [(1, 2, 6, 5), (1, 2, 3, 2), (1, 3, 2, 2), (1, 1, 1, 2), (1, 4, 1, 1)]


def features(images, negatives, batch=1, dtype=torch.float64):
    shapes = [(batch, *shape[1:]) for shape in TINY]
    return [tuple(images(*s, dtype=dtype) for s in shapes) for _ in range(2 + negatives)]


def fused_distances(student, teacher, negatives):
    distances = LevelDistances(student.detach(), len(negatives))
    distances.add(torch.stack([teacher, *negatives]), 0, 0)
    return distances.differentiable(student)


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


def test_gradient_through_the_encoder_is_right(encoder, images):
    """Against finite differences of the oracle's own value along random directions."""
    encoder.double()
    dcr = DCRLoss(encoder)
    student, teacher = images(2, 1, 3, 16, 16, dtype=torch.float64)
    negatives = images(2, 1, 3, 16, 16, dtype=torch.float64)
    fixed = [lists(encoder(x).levels) for x in (teacher, *negatives)]
    others = [[other[i] for other in fixed[1:]] for i in range(5)]

    def value(x):
        return oracle.dcr(lists(encoder(x).levels), fixed[0], others, LEVEL_WEIGHTS, EPS)

    student.requires_grad_()
    dcr(student, teacher, negatives).backward()
    for _ in range(2):
        direction = images(*student.shape, dtype=torch.float64) - 0.5
        step = 1e-7
        with torch.no_grad():
            slope = (value(student + step * direction) - value(student - step * direction)) / (
                2 * step
            )
        assert (student.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)


def test_gradcheck(encoder, images):
    loss = DCRLoss(encoder).double()
    student, teacher = images(2, 1, 3, 16, 16, dtype=torch.float64)
    negatives = images(2, 1, 3, 16, 16, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: loss(x, teacher, negatives), student.requires_grad_(), eps=1e-8, atol=1e-5,
        fast_mode=True,
    )  # fmt: skip


def test_float32_agrees_with_float64(encoder, images):
    student, teacher = images(2, 2, 3, 32, 48)
    negatives = images(2, 2, 3, 32, 48)
    gradients, values = [], []
    for dtype in (torch.float32, torch.float64):
        loss = DCRLoss(encoder).to(dtype)
        x = student.to(dtype, copy=True).requires_grad_()
        value = loss(x, teacher.to(dtype), negatives.to(dtype))
        value.backward()
        values.append(value.item())
        gradients.append(x.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert relative(gradients[0], gradients[1]) < 1e-2


def test_result_is_a_float32_scalar_unless_all_is_float64(encoder, images):
    dcr = DCRLoss(encoder)
    single, double = (images(3, 1, 3, 16, 16, dtype=d) for d in (torch.float32, torch.float64))
    assert dcr(single[0], single[1], single[2:]).dtype == torch.float32
    assert dcr(single[0], single[1], single[2:]).shape == ()
    assert dcr(double[0], double[1], double[2:]).dtype == torch.float32
    dcr.double()
    assert dcr(single[0], single[1], single[2:]).dtype == torch.float32
    assert dcr(double[0], double[1], double[2:]).dtype == torch.float64


def test_gradient_reaches_the_student_only(encoder, images):
    student, teacher, negative = (images(1, 3, 16, 16).requires_grad_() for _ in range(3))
    DCRLoss(encoder)(student, teacher, negative[None]).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert negative.grad is None


def test_unchanged_under_autocast(encoder, images):
    student, teacher, negative = images(3, 1, 3, 32, 32)
    dcr = DCRLoss(encoder)
    expected = dcr(student, teacher, negative[None])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dcr(student, teacher, negative[None]), expected)


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


def test_does_not_write_into_its_arguments(encoder, images):
    tensors = images(3, 1, 3, 16, 16)
    before = tensors.clone()
    DCRLoss(encoder)(tensors[0], tensors[1], tensors[2:])
    assert torch.equal(tensors, before)


def test_teacher_made_in_inference_mode(encoder, images):
    student = images(1, 3, 16, 16).requires_grad_()
    with torch.inference_mode():
        teacher, negatives = images(1, 3, 16, 16), images(2, 1, 3, 16, 16)
    DCRLoss(encoder)(student, teacher, negatives).backward()
    assert student.grad.isfinite().all()


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


GOOD = (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("student", "teacher", "negatives", "message"),
    [
        (GOOD, (1, 3, 16, 17), (2, *GOOD), r"teacher \(1, 3, 16, 17\).*\(1, 3, 16, 16\)"),
        (GOOD, (2, 3, 16, 16), (2, *GOOD), "teacher"),
        (GOOD, GOOD, GOOD, r"negatives must be \(N, B, 3, H, W\).*\(1, 3, 16, 16\)"),
        (GOOD, GOOD, (0, *GOOD), "N at least 1"),
        (GOOD, GOOD, (2, 2, 3, 16, 16), "each negative"),
        ((1, 3, 8, 8), (1, 3, 8, 8), (2, 1, 3, 8, 8), "16x16 pixels, got 8x8"),
        ((3, 16, 16), (3, 16, 16), (2, 3, 16, 16), "student must be"),
    ],
)
def test_refuses_shapes(encoder, student, teacher, negatives, message):
    with pytest.raises(ValueError, match=message):
        DCRLoss(encoder)(torch.rand(student), torch.rand(teacher), torch.rand(negatives))


def test_refuses_other_devices_and_kinds(encoder):
    x = torch.rand(GOOD)
    with pytest.raises(ValueError, match="teacher is on meta, student on cpu"):
        DCRLoss(encoder)(x, x.to("meta"), x[None])
    with pytest.raises(ValueError, match=r"negatives .* got list"):
        DCRLoss(encoder)(x, x, [x])
    with pytest.raises(ValueError, match="each negative is on meta"):
        DCRLoss(encoder)(x, x, x[None].to("meta"))
    with pytest.raises(ValueError, match=r"teacher must be floating point.*torch.uint8"):
        DCRLoss(encoder)(x, x.byte(), x[None])
    with pytest.raises(ValueError, match=r"negatives must be floating point.*torch.uint8"):
        DCRLoss(encoder)(x, x, x[None].byte())
