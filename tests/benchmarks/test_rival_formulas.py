"""Every rival's loss against its formula in plain loops, in float64."""

import math

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines import AECR, CSD, FAKD, MCLIR, Logits
from benchmarks.baselines.fakd import body_thirds
from dckd_losses.dcr import EPS, LEVEL_WEIGHTS
from examples.restoration.networks.small import ResidualSR


def close(seen, expected):
    assert seen.dtype == torch.float64
    assert seen.item() == pytest.approx(expected, rel=1e-10)


def lists(levels):
    return [level.tolist() for level in levels]


def doubles(images, batch=2, side=16):
    """student_out, teacher_out, target, and lq of half the size."""
    large = images(3, batch, 3, side, side, dtype=torch.float64)
    return *large, images(batch, 3, side // 2, side // 2, dtype=torch.float64)


def test_logits_equals_its_formula(images):
    student, teacher, _, lq = doubles(images)
    loss = Logits(weight=0.7)
    close(
        loss(student, teacher, lq, target=student),
        0.7 * oracle.mean_l1(student.tolist(), teacher.tolist()),
    )
    close(loss.last["logits"], oracle.mean_l1(student.tolist(), teacher.tolist()))


def cosines(features):
    """FAKD's affinity of one image's features, given as C lists of HW numbers."""
    columns = list(zip(*features, strict=True))
    units = []
    for column in columns:
        norm = math.sqrt(math.fsum(v * v for v in column))
        units.append([v / max(norm, 1e-8) for v in column])
    return [[math.fsum(a * b for a, b in zip(p, q, strict=True)) for q in units] for p in units]


@pytest.mark.parametrize("tokens", [False, True])
def test_fakd_equals_its_formula(images, tokens):
    features = [
        [images(2, width, 3, 2, dtype=torch.float64) - 0.5 for _ in range(2)] for width in (2, 5)
    ]
    features[0][0][1, :, 2, 1] = 0  # a pixel without features
    nets = [nn.ModuleList(nn.Identity() for _ in range(2)) for _ in range(2)]
    names = ["0", "1"]
    loss = FAKD(*nets, student_layers=names, teacher_layers=names, weight=0.3).attach(None)
    for net, maps in zip(nets, features, strict=True):
        for module, x in zip(net, maps, strict=True):
            module(x.flatten(2).transpose(1, 2) if tokens else x)
    x = images(2, 3, 4, 4, dtype=torch.float64)
    seen = loss(x, x, x, target=x)
    expected = 0.0
    for mine, theirs in zip(*features, strict=True):
        ours, wanted = ([cosines(x.flatten(1).tolist()) for x in y] for y in (mine, theirs))
        expected += oracle.mean_l1(ours, wanted)
    close(seen, 0.3 * expected)


def test_fakd_takes_the_thirds_of_a_body():
    assert body_thirds(ResidualSR(4, 3, 2)) == ["body.0", "body.1", "body.2"]
    assert body_thirds(ResidualSR(4, 7, 2)) == ["body.1", "body.4", "body.6"]


def upsampled(lq, mode):
    return [F.interpolate(x[None], scale_factor=2, mode=mode)[0] for x in lq]


@pytest.mark.parametrize(("wanted", "count"), [(2, 2), (10, 3)])
def test_csd_equals_its_formula(images, pyramid, wanted, count):
    student, teacher, _, lq = doubles(images, batch=4)
    up = upsampled(lq, "bicubic")
    negatives = [torch.stack([up[(b + k) % 4] for b in range(4)]) for k in range(1, count + 1)]
    levels = [lists(pyramid(x).levels) for x in (student, teacher, *negatives)]
    by_level = [[other[i] for other in levels[2:]] for i in range(5)]
    expected = oracle.dcr(levels[0], levels[1], by_level, LEVEL_WEIGHTS, EPS)
    loss = CSD(pyramid, weight=0.5, num_negatives=wanted)
    close(loss(student, teacher, lq, target=student), 0.5 * expected)


@pytest.mark.parametrize("same_size", [False, True])
def test_aecr_equals_its_formula(images, pyramid, same_size):
    student, teacher, target, lq = doubles(images)
    if same_size:
        lq = images(*student.shape, dtype=torch.float64)
    negative = lq if same_size else lq.repeat_interleave(2, 2).repeat_interleave(2, 3)
    mine, positive, other = (lists(pyramid(x).levels) for x in (student, target, negative))
    expected = oracle.dcr(mine, positive, [[x] for x in other], LEVEL_WEIGHTS, EPS)
    seen = AECR(pyramid, weight=0.5)(student, teacher, lq, target=target)
    close(seen, 0.5 * expected)


def test_aecr_is_moderate_where_residual_networks_start(images, encoder):
    lq, target = images(2, 3, 16, 16), images(2, 3, 32, 32)
    student = ResidualSR(4, 1, 2)
    assert AECR(encoder)(student(lq), target, lq, target=target) < 10


def test_mclir_equals_its_formula(images, pyramid):
    """Two negative models, which follow at their own intervals and keep a tenth."""
    student = nn.Conv2d(3, 3, 3, padding=1).double()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    loss = MCLIR(student, pyramid, weight=0.5, intervals=(1, 2), level_weights=(0.2, 0.3, 0.5))
    loss.double().attach(optimizer)
    lq = images(2, 3, 16, 16, dtype=torch.float64)
    assert loss(student(lq), lq, lq, target=lq) == 0, "negative models start as the student"
    models, weights = [], [student.weight.detach().clone()]
    for _ in range(3):
        student.weight.grad = torch.ones_like(student.weight)
        optimizer.step()
        weights.append(student.weight.detach().clone())
    every = 0.1 * (0.1 * (0.1 * weights[0] + 0.9 * weights[1]) + 0.9 * weights[2])
    for weight in (every + 0.9 * weights[3], 0.1 * weights[0] + 0.9 * weights[2]):
        models.append(F.conv2d(lq, weight, student.bias, padding=1))
    mine, *others = (lists(pyramid(x).levels) for x in (student(lq), *models))
    expected = 0.0
    for other in others:
        for i, weight in enumerate((0.2, 0.3, 0.5)):
            expected -= weight * oracle.mean_l1(mine[i], other[i]) / 2
    close(loss(student(lq), lq, lq, target=lq), 0.5 * expected)
