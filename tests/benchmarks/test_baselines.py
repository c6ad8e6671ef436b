"""Every rival against its formula in plain loops, and the way its gradient takes."""

import copy
import itertools
import math
import random

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines import (
    AECR,
    CSD,
    DUKD,
    FAKD,
    MCLIR,
    METHODS,
    LabelConsistency,
    Logits,
    build,
)
from benchmarks.baselines.fakd import body_thirds
from benchmarks.baselines.transforms import Transform
from dckd_losses import HistoryModel, NegativeGenerator
from dckd_losses.dcr import EPS, LEVEL_WEIGHTS
from dckd_losses.draws import Draws
from dckd_losses.encoder import as_encoder
from examples.restoration.backbones import ResidualSR

pytestmark = pytest.mark.usefixtures("one_thread")
COMBINATIONS = list(itertools.product([False, True], repeat=4))
RIVALS = ("fakd", "dukd", "csd", "aecr", "mclir")
ZERO = {
    "scratch": {},
    "logits": {},
    **{name: {"weight": 0} for name in RIVALS},
    "dckd": {"dcr_weight": 0, "dmm_weight": 0},
    "dckd_star": {"dcr_weight": 0, "dmm_weight": 0, "consistency_weight": 0},
}


class Pyramid(nn.Module):
    """The least encoder of five levels."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        x = self.conv(x).tanh()
        return [F.avg_pool2d(x, 2**i) for i in range(5)], None


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


@pytest.fixture
def pyramid():
    return as_encoder(Pyramid()).double()


@pytest.fixture
def networks():
    """A student and a wider teacher, both trained a little away from bicubic interpolation."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        pair = [ResidualSR(4, 3, 2), ResidualSR(6, 7, 2)]
        for network in pair:
            nn.init.normal_(network.tail.weight, std=0.01)
    return pair


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
    close(loss(student, teacher, lq), 0.7 * oracle.mean_l1(student.tolist(), teacher.tolist()))
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
    loss = FAKD(*nets, student_layers=names, teacher_layers=names, weight=0.3).attach()
    for net, maps in zip(nets, features, strict=True):
        for module, x in zip(net, maps, strict=True):
            module(x.flatten(2).transpose(1, 2) if tokens else x)
    seen = loss(*(images(2, 3, 4, 4, dtype=torch.float64) for _ in range(3)))
    expected = 0.0
    for mine, theirs in zip(*features, strict=True):
        ours, wanted = ([cosines(x.flatten(1).tolist()) for x in y] for y in (mine, theirs))
        expected += oracle.mean_l1(ours, wanted)
    close(seen, 0.3 * expected)


def test_fakd_takes_the_thirds_of_a_body(networks):
    assert body_thirds(networks[0]) == ["body.0", "body.1", "body.2"]
    assert body_thirds(networks[1]) == ["body.1", "body.4", "body.6"]
    with pytest.raises(ValueError, match="Conv2d has no body of 3 modules"):
        body_thirds(nn.Conv2d(3, 3, 1))


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
    close(loss(student, teacher, lq), 0.5 * expected)


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
    assert loss(student(lq), lq, lq) == 0, "negative models start as the student"
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
    close(loss(student(lq), lq, lq), 0.5 * expected)


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
        seen = loss(student, torch.zeros_like(student), lq)
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
    expected = oracle.mean_l1(mine, wanted)
    if zoom_out:
        small = teacher.seen[1]
        assert torch.equal(small, student.seen[1])
        assert small.shape[2:] == (height // 2, width // 2)
        cropped = lq[..., : height // 2 * 2, : width // 2 * 2]
        assert (small - F.avg_pool2d(cropped, 2)).abs().mean() < 0.1
        out = student(small.clone()).tolist()
        expected += oracle.mean_l1(out, cropped.tolist())
        expected += oracle.mean_l1(out, teacher(small.clone()).tolist())
    close(seen, 0.5 * expected)


@pytest.mark.parametrize("name", ["consistency", "dukd"])
def test_draws_resume_from_the_counter(images, networks, name):
    student, teacher = networks
    make = {"consistency": lambda: LabelConsistency(teacher), "dukd": lambda: DUKD(*networks)}[name]
    lq, target = images(4, 3, 8, 8), images(4, 3, 16, 16)

    def value(loss):
        return loss(student(lq), teacher(lq), lq, target=target).item()

    loss, resumed = make(), make()
    values = [value(loss) for _ in range(3)]
    assert len(set(values)) == 3
    resumed.load_state_dict({"counter": torch.tensor(2)}, strict=True)
    assert value(resumed) == values[2]


def steps(networks, encoder, name, count=1, **settings):
    """Train a copy of the student on an arm; everything that the last step leaves."""
    student, teacher = copy.deepcopy(networks)
    arm = build(name, student, teacher, encoder, **settings)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    arm.attach(optimizer)
    generator = torch.Generator().manual_seed(6)
    for _ in range(count):
        lq, target = (torch.rand(3, 3, side, side, generator=generator) for side in (8, 16))
        output, taught = student(lq), teacher(lq)
        loss = arm(output, taught, lq, target=target)
        optimizer.zero_grad()
        (F.l1_loss(output, target) + loss).backward()
        optimizer.step()
    return student, teacher, arm, optimizer


@pytest.mark.parametrize("name", METHODS)
def test_zero_weights_are_the_scratch_run_bit_for_bit(networks, encoder, name):
    for seen, expected in zip(
        steps(networks, encoder, name, 3, logits_weight=0, **ZERO[name])[0].parameters(),
        steps(networks, encoder, "scratch", 3)[0].parameters(),
        strict=True,
    ):
        assert torch.equal(seen, expected)
        assert torch.equal(seen.grad, expected.grad)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "scratch"])
def test_every_method_changes_the_student_and_not_the_teacher(networks, encoder, name):
    student, teacher, arm, _ = steps(networks, encoder, name, 2)
    scratch = steps(networks, encoder, "scratch", 2)[0]
    assert any(
        not torch.equal(p, q)
        for p, q in zip(student.parameters(), scratch.parameters(), strict=True)
    )
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(x.isfinite().all() and not x.requires_grad for x in arm.last.values())


@pytest.mark.parametrize("name", [*RIVALS, "dckd_star"])
def test_gradient_of_the_rivals_own_term_reaches_the_student(networks, encoder, images, name):
    student, teacher, arm, optimizer = steps(networks, encoder, name, 2)  # MCLIR's starts at 0
    lq, target = images(3, 3, 8, 8), images(3, 3, 16, 16)
    taught = teacher(lq)
    optimizer.zero_grad()
    arm.terms[-1](student(lq), taught, lq, target=target).backward()
    gradients = [p.grad for p in student.body.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_fakd_reaches_the_student_through_its_features_alone(networks, images):
    student, teacher = networks
    fakd = FAKD(student, teacher).attach()
    lq = images(2, 3, 8, 8)
    output = student(lq)
    fakd(output.detach().requires_grad_(), teacher(lq), lq).backward()
    assert student.body[2].layers[0].weight.grad.any()
    assert student.head.weight.grad.any()
    assert student.tail.weight.grad is None


def hooks_of(*owners):
    modules = [m for owner in owners if isinstance(owner, nn.Module) for m in owner.modules()]
    hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
    hooks += [o._optimizer_step_post_hooks for o in owners if hasattr(o, "param_groups")]
    return sum(map(len, hooks))


@pytest.mark.parametrize(("name", "count"), [("fakd", 6), ("mclir", 4), ("dckd", 1), ("csd", 0)])
def test_detach_removes_every_hook(networks, encoder, name, count):
    student, teacher, arm, optimizer = steps(networks, encoder, name)
    assert hooks_of(student, teacher, optimizer) == count
    if count:
        with pytest.raises(ValueError, match="attached"):
            arm.attach(optimizer)
        copy.deepcopy(arm).detach()  # a copy has none to remove
        assert hooks_of(student, teacher, optimizer) == count
    arm.detach()
    assert hooks_of(student, teacher, optimizer) == 0
    arm.attach(optimizer)
    assert hooks_of(student, teacher, optimizer) == count


def test_features_are_not_kept_where_they_are_not_wanted(networks, images):
    student, teacher = networks
    fakd, lq = FAKD(student, teacher).attach(), images(2, 3, 8, 8)
    history = HistoryModel(student)  # copies hooks and all
    output, taught = student(lq), teacher(lq)
    history(lq)
    with torch.no_grad():
        student(lq.flip(3))  # a validation between
    expected = fakd(output, taught, lq)
    with pytest.raises(ValueError, match="the student has not run since the last call"):
        fakd(output, taught, lq)
    output, taught = student(lq), teacher(lq)
    assert torch.equal(fakd(output, taught, lq), expected)
    student(lq), teacher(lq)
    fakd.detach()
    with pytest.raises(ValueError, match="has not run"):
        fakd(output, taught, lq)


@pytest.mark.parametrize("name", METHODS)
def test_global_generators_are_untouched(networks, encoder, name):
    before = torch.get_rng_state(), random.getstate()
    steps(networks, encoder, name)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_an_arm_resumes_from_its_state(networks, encoder):
    *_, arm, _ = steps(networks, encoder, "dckd_star", 3)
    fresh = build("dckd_star", *networks, encoder)
    assert all("teacher" not in name and "encoder" not in name for name in arm.state_dict())
    fresh.load_state_dict(arm.state_dict())
    assert fresh.terms[1].history.iteration == 3
    assert fresh.terms[2].counter == 3


def test_dckd_and_label_consistency_draw_other_numbers():
    negatives = NegativeGenerator(HistoryModel(nn.Identity()))
    assert LabelConsistency(nn.Identity()).seed != negatives.seed


GOOD = (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("crd", {}, "method must be one of scratch, logits, .*got 'crd'"),
        ("logits", {"logits_weight": -1}, "weight must be at least 0, got -1"),
        ("fakd", {"student_layers": ["body.9"] * 3}, r"ResidualSR has no modules \['body.9'\]"),
        ("fakd", {"teacher_layers": ["head"]}, "as many in both"),
        ("dukd", {"probability": 2}, "probability must be in"),
        ("csd", {"num_negatives": 0}, "num_negatives must be at least 1, got 0"),
        ("mclir", {"intervals": (5,)}, "intervals must be at least two"),
    ],
)
def test_refuses_settings(networks, encoder, name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, *networks, encoder, **settings)


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("aecr", (GOOD, GOOD, GOOD, None), "target is missing: aecr needs the ground truth"),
        ("dukd", (GOOD, GOOD, GOOD, None), "target is missing: dukd needs the ground truth"),
        ("dukd", (GOOD, GOOD, GOOD, GOOD), "16x16 pixels times 2 or more, got 16x16"),
        ("csd", ((1, *GOOD[1:]),) * 4, "needs 2 images, got 1"),
        ("logits", (GOOD, (2, 3, 16, 17), GOOD, None), "teacher_out .*student_out"),
        ("logits", (GOOD, GOOD, (1, *GOOD[1:]), None), "lq has 1 images, student_out has 2"),
        ("aecr", (GOOD, GOOD, GOOD, (2, 3, 8, 8)), "target .*student_out"),
        ("fakd", (GOOD, GOOD, GOOD, None), r"attach\(\) before it runs"),
    ],
)
def test_refuses_images(networks, encoder, images, name, shapes, message):
    tensors = [None if shape is None else images(*shape) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        build(name, *networks, encoder)(*tensors[:3], target=tensors[3])


def test_check_looks_at_values(networks, images):
    arm = build("logits", *networks)
    good, lq = images(1, 3, 8, 8), images(1, 3, 4, 4)
    arm.check(good, good, lq)
    with pytest.raises(ValueError, match="student_out must be finite"):
        arm.check(good / 0 * 0, good, lq)
    with pytest.raises(ValueError, match=r"lq must lie in \[0, 1\]"):
        arm.check(good, good, 255 * lq)
