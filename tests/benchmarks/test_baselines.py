"""Every rival behind DCKD's call: its gradient, its weight, its hooks, its random numbers."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.baselines import (
    DUKD,
    FAKD,
    METHODS,
    LabelConsistency,
    build,
    contrastive,
    dukd,
    fakd,
)
from dckd_losses import HistoryModel, NegativeGenerator

RIVALS = ("fakd", "dukd", "csd", "aecr", "mclir")
ZERO = {
    "scratch": {},
    "logits": {},
    **{name: {"weight": 0} for name in RIVALS},
    "consistency": {"weight": 0},
    "dckd": {"dcr_weight": 0, "dmm_weight": 0},
    "dckd_star": {"dcr_weight": 0, "dmm_weight": 0, "consistency": {"weight": 0}},
}


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


def test_defaults_are_those_of_their_sources():
    """Written down a second time; images are in [0, 1] and the L1 to the ground truth weighs 1."""
    assert round(255 * fakd.WEIGHT, 9) == 20  # 10 beside 0.5
    assert round(255 * contrastive.CSD_WEIGHT, 9) == 200
    assert contrastive.CSD_NEGATIVES == 10
    assert (contrastive.MCLIR_WEIGHT, contrastive.MCLIR_DECAY) == (0.001, 0.1)
    assert contrastive.MCLIR_INTERVALS == (100, 200, 500, 1000)
    assert contrastive.MCLIR_LEVEL_WEIGHTS == (0.2, 0.3, 0.5)
    assert (dukd.WEIGHT, dukd.PROBABILITY) == (1, 0.3)
    assert (dukd.CONSISTENCY_WEIGHT, dukd.CONSISTENCY_PROBABILITY) == (1, 0.5)
    without_logits = {"scratch", "csd", "aecr", "mclir"}
    assert {name: float(name not in without_logits) for name in METHODS} == METHODS


@pytest.mark.parametrize("balance", [None, 0.3])
def test_dckd_on_every_second_step_weighs_twice_there(networks, encoder, images, balance):
    student, teacher = networks
    lq, found = images(2, 3, 16, 16), []
    for settings in ({}, {"every": 2}):
        loss = build("dckd", student, teacher, encoder, balance=balance, **settings).terms[1]
        if settings:
            assert loss(student(lq), teacher(lq), lq) == 0 and not loss.last
        out = student(lq).detach().requires_grad_()
        loss(out, teacher(lq), lq).backward()
        found.append(out.grad)
    assert torch.equal(found[1], 2 * found[0])


def test_dckd_sees_one_half_of_all_images_alike(networks, encoder, images):
    student, teacher = networks
    lq, seen = images(2, 3, 16, 16), set()
    loss = build("dckd", student, teacher, encoder, half=True).terms[1]
    for _ in range(24):
        out = student(lq).detach().requires_grad_()
        loss(out, teacher(lq), lq).backward()
        rows, columns = (out.grad.abs().amax((0, 1, axis)) > 0 for axis in (3, 2))
        assert sorted([rows.sum().item(), columns.sum().item()]) == [16, 32]
        ends = rows[0], rows[-1], columns[0], columns[-1]
        seen.add(tuple(end.item() for end in ends))
        cut = (loss.cut(x) for x in (student(lq), teacher(lq), loss.negatives.history(lq)))
        assert len({x.shape for x in cut}) == 1
    assert len(seen) == 4


def steps(networks, encoder, name, count=1, **settings):
    """Train a copy of the student on an arm; everything that the last step leaves."""
    student, teacher = copy.deepcopy(networks)
    arm = build(name, student, teacher, encoder, **settings)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    arm.attach(optimizer)
    generator = torch.Generator().manual_seed(6)
    for _ in range(count):
        lq, target = (torch.rand(3, 3, side, side, generator=generator) for side in (8, 16))
        with torch.inference_mode():
            taught = teacher(lq)
        output = student(lq)
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
def test_every_method_changes_the_student_and_nothing_else(networks, encoder, name):
    """Not the teacher, which may run in inference mode, and no global generator."""
    before = torch.get_rng_state(), random.getstate()
    student, teacher, arm, _ = steps(networks, encoder, name, 2)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    scratch = steps(networks, encoder, "scratch", 2)[0]
    pairs = zip(student.parameters(), scratch.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in pairs)
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
    assert name != "fakd" or student.tail.weight.grad is None  # through features alone


@pytest.mark.parametrize("name", ["csd", "aecr", "mclir"])
def test_a_balanced_rival_pulls_as_hard_as_said_in_its_own_direction(
    networks, encoder, images, name
):
    student, teacher, arm, _ = steps(networks, encoder, name, 2)  # MCLIR's starts at 0
    term, lq, target = arm.terms[-1], images(3, 3, 8, 8), images(3, 3, 16, 16)
    output, gradients = student(lq), {}
    for balance in (None, 0.3):
        term.balance = balance
        value = term(output, teacher(lq), lq, target=target)
        (gradients[balance],) = torch.autograd.grad(2 * value, output, retain_graph=True)
    plain, balanced = gradients.values()
    assert balanced.norm().item() == pytest.approx(2 * 0.3 / output.numel() ** 0.5, rel=1e-4)
    assert F.cosine_similarity(plain.flatten(), balanced.flatten(), 0) > 0.9999
    built = build(name, student, teacher, encoder, balance=0.3).terms[-1]
    assert built.balance == 0.3


def hooks_of(*owners):
    modules = [m for owner in owners if isinstance(owner, nn.Module) for m in owner.modules()]
    hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
    hooks += [o._optimizer_step_post_hooks for o in owners if hasattr(o, "param_groups")]
    return sum(map(len, hooks))


@pytest.mark.parametrize(("name", "count"), [("fakd", 6), ("mclir", 1), ("dckd", 1), ("csd", 0)])
def test_detach_removes_every_hook(networks, encoder, name, count):
    student, teacher, arm, optimizer = steps(networks, encoder, name)
    assert hooks_of(student, teacher, optimizer) == count
    arm.detach()
    assert hooks_of(student, teacher, optimizer) == 0
    arm.attach(optimizer)
    assert hooks_of(student, teacher, optimizer) == count


def test_features_are_not_kept_where_they_are_not_wanted(networks, images):
    student, teacher = networks
    fakd, lq = FAKD(student, teacher).attach(None), images(2, 3, 8, 8)
    output, taught = student(lq), teacher(lq)
    with torch.no_grad():
        student(lq.flip(3))  # a validation between
    expected = fakd(output, taught, lq, target=output)
    with pytest.raises(KeyError):
        fakd(output, taught, lq, target=output)
    output, taught = student(lq), teacher(lq)
    assert torch.equal(fakd(output, taught, lq, target=output), expected)
    student(lq), teacher(lq)
    fakd.detach()
    with pytest.raises(KeyError):
        fakd(output, taught, lq, target=output)


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


def test_what_cannot_be_zoomed_or_checked_is_refused(networks, encoder, images):
    good, lq = images(2, 3, 16, 16), images(2, 3, 8, 8)
    with pytest.raises(ValueError, match="16x16 pixels times 2 or more, got 16x16"):
        build("dukd", *networks)(good, good, good, target=good)
    arm = build("dckd", *networks, encoder)
    arm.check(good, good, lq)
    with pytest.raises(ValueError, match="student_out must be finite"):
        arm.check(good / 0 * 0, good, lq)
