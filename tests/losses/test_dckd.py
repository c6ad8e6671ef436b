"""Both losses over one pass: values, gradients, state, checks."""

import copy

import pytest
import torch
from conftest import NoNumberLeaves, Student
from torch import nn

from dckd_losses import DCKDLoss, DCRLoss, DMMLoss, HistoryModel, NegativeGenerator


@pytest.fixture
def dckd(student, encoder):
    return DCKDLoss(student, encoder, dcr_weight=0.3, dmm_weight=0.05)


def test_is_the_weighted_sum_of_both(dckd, encoder, student, batch):
    student_out, teacher_out, lq = batch
    negatives = NegativeGenerator(HistoryModel(student))(lq)
    dcr = DCRLoss(encoder)(student_out, teacher_out, negatives)
    dmm = DMMLoss(encoder)(student_out, teacher_out)
    seen = dckd(*batch)
    assert seen.shape == () and seen.dtype == torch.float32
    torch.testing.assert_close(seen, 0.3 * dcr + 0.05 * dmm)
    torch.testing.assert_close(dckd.last["dcr"], dcr)
    torch.testing.assert_close(dckd.last["dmm"], dmm)


def test_last_is_detached_and_has_the_distances(dckd, encoder, student, batch):
    student_out, teacher_out, lq = batch
    dckd(student_out.requires_grad_(), teacher_out, lq)
    assert set(dckd.last) == {"dcr", "dmm", "positive", "negative"}
    assert not any(x.requires_grad for x in dckd.last.values())
    negatives = NegativeGenerator(HistoryModel(student))(lq)
    mine, theirs = encoder(student_out).levels, encoder(teacher_out).levels
    gaps = torch.stack([(a - b).abs().mean() for a, b in zip(mine, theirs, strict=True)])
    torch.testing.assert_close(dckd.last["positive"], gaps)
    others = [encoder(n).levels for n in negatives]
    gaps = [sum((mine[i] - n[i]).abs().mean() for n in others) for i in range(5)]
    torch.testing.assert_close(dckd.last["negative"], torch.stack(gaps))


def test_student_passes_the_encoder_once_and_the_rest_together(dckd, encoder, batch):
    calls = []
    encoder.network.encoder.conv_in.register_forward_hook(
        lambda m, args, out: calls.append((len(args[0]), torch.is_grad_enabled()))
    )
    dckd(*batch)
    assert sorted(calls) == [(2, True), (12, False)]


@pytest.mark.parametrize(("weights", "left"), [((0, 0.05), {"dmm"}), ((0.3, 0), {"dcr"})])
def test_a_term_without_weight_is_not_computed(student, encoder, batch, weights, left):
    dckd = DCKDLoss(student, encoder, dcr_weight=weights[0], dmm_weight=weights[1])
    calls = []
    encoder.network.encoder.mid.register_forward_hook(lambda *_: calls.append("codes"))
    dckd.history.model.register_forward_hook(lambda *_: calls.append("negatives"))
    dckd(*batch[: 3 if weights[0] else 2])  # DMM alone needs no lq
    assert set(dckd.last) - {"positive", "negative"} == left
    assert set(calls) == ({"codes"} if left == {"dmm"} else {"negatives"})


def test_without_weights_it_is_zero_with_a_gradient(student, encoder, batch):
    batch[0].requires_grad_()
    loss = DCKDLoss(student, encoder, dcr_weight=0, dmm_weight=0)(*batch)
    loss.backward()
    assert loss == 0 and not batch[0].grad.any()


def test_state_dict_holds_history_and_counters_and_nothing_of_the_student(dckd, student):
    expected = {f"history.model.{name}" for name in student.state_dict()}
    state = dckd.state_dict()
    assert set(state) == expected | {"history.iteration", "negatives.counter"}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert student not in list(dckd.modules())
    assert {id(p) for p in dckd.parameters()}.isdisjoint(map(id, student.parameters()))
    assert not any(p.requires_grad for p in dckd.parameters())


def test_saving_and_resuming_continues_bit_for_bit(student, encoder, images, tmp_path):
    lq, teacher_out = images(2, 3, 8, 8), images(2, 3, 16, 16)

    def steps(student, dckd, optimizer, number):
        losses = []
        for _ in range(number):
            loss = dckd(student(lq), teacher_out, lq)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def make(student):
        optimizer = torch.optim.Adam(student.parameters(), 1e-3)
        history = HistoryModel(student, interval=2, interval_growth=1, growth_every=3)
        dckd = DCKDLoss(student, encoder, history=history)
        return student, dckd.attach(optimizer), optimizer

    one = make(student)
    steps(*one, 5)
    torch.save([x.state_dict() for x in one], tmp_path / "state.pt")
    rest = steps(*one, 6)
    two = make(Student())
    for x, state in zip(two, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        x.load_state_dict(state)
    assert steps(*two, 6) == rest
    for a, b in zip(one[1].state_dict().values(), two[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_copies_compute_the_same(dckd, batch, clone):
    other = clone(dckd)
    assert torch.equal(dckd(*batch), other(*batch))
    assert other.negatives.history is other.history
    assert other.dcr.encoder is other.dmm.encoder is other.encoder
    assert other.encoder is not dckd.encoder


def test_moves_as_a_whole(dckd, batch):
    dckd.double()
    assert dckd(*(x.double() for x in batch)).dtype == torch.float64
    assert dckd(*batch).dtype == torch.float32
    dckd.half().bfloat16()
    dckd.to("meta")
    tensors = [*dckd.state_dict().values(), dckd.encoder.network.quant_conv.weight]
    assert all(t.device.type == "meta" for t in tensors)
    assert dckd.encoder.network.quant_conv.weight.dtype == torch.float64


def test_own_negatives_need_no_history_and_may_write_into_lq(student, encoder, batch):
    before, seen = batch[2].clone(), []

    def negatives(lq):
        seen.append(lq.clone())
        return student(lq.mul_(0.5))[None]

    dckd = DCKDLoss(student, encoder, negatives=negatives)
    dckd(*batch)
    assert torch.equal(seen[0], before) and torch.equal(batch[2], before)
    assert dckd.history is None
    assert not dckd.state_dict()


def test_history_is_taken_from_negatives_or_given(student, encoder):
    history = HistoryModel(student, interval=7)
    assert DCKDLoss(student, encoder, history=history).negatives.history is history
    negatives = NegativeGenerator(history, num_negatives=2)
    assert DCKDLoss(student, encoder, negatives=negatives).history is history
    assert DCKDLoss(student, encoder, negatives=negatives, history=history).history is history
    with pytest.raises(ValueError, match="pass one of the two"):
        DCKDLoss(student, encoder, negatives=negatives, history=HistoryModel(student))


def test_defaults(student, encoder):
    dckd = DCKDLoss(student, encoder)
    assert (dckd.dcr_weight, dckd.dmm_weight, dckd.balance) == (0.1, 1e-3, 0.3)
    assert (dckd.dcr.level_weights, dckd.dcr.eps) == ((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), 1e-7)
    assert (dckd.dmm.temperature, dckd.dmm.form) == (1.0, "cross_entropy")
    assert dckd.negatives.num_negatives == 5 and not dckd.negatives.include_clean
    assert type(dckd.negatives.degradation).__name__ == "RandomNoise"
    assert dckd.history.decay == 0.1


def test_released_settings(student, weights_file, batch):
    history = HistoryModel(student, interval=7)
    dckd = DCKDLoss.released(student, weights_file, history=history, seed=3)
    assert dckd.encoder.input_range == (0.0, 1.0)
    assert dckd.dmm.form == "released" and dckd.dmm.temperature == 1.0
    assert (dckd.dcr_weight, dckd.dmm_weight) == (0.1, 1e-3)
    assert dckd.negatives.include_clean and dckd.negatives.num_negatives == 5
    assert dckd.history is dckd.negatives.history is history and dckd.negatives.seed == 3
    assert dckd(*batch).isfinite()
    with pytest.raises(ValueError, match="expected an encoder's name or path here, got Conv2d"):
        DCKDLoss.released(student, nn.Conv2d(3, 3, 1))


def test_level_weights_reach_dcr(student, encoder, batch):
    weights = (1.0, 0.0, 0.0, 0.0, 0.0)
    dckd = DCKDLoss(student, encoder, dcr_weight=1, dmm_weight=0, level_weights=weights)
    value = dckd(*batch)
    torch.testing.assert_close(value, dckd.last["positive"][0] / dckd.last["negative"][0])


def test_first_step_with_a_clean_negative_is_finite(student, encoder, images):
    """History equals the student at first, so the clean negative's distance is about zero."""
    lq = images(1, 3, 8, 8)
    negatives = NegativeGenerator(HistoryModel(student), include_clean=True)
    loss = DCKDLoss(student, encoder, negatives=negatives)(student(lq), images(1, 3, 16, 16), lq)
    assert loss.isfinite() and loss < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lq: lq[:1], "lq has 1 images, student_out has 2"),
        (lambda lq: lq[0], r"lq must be \(B, C, H, W\)"),
        (lambda lq: lq[..., :9], "each negative"),
        (lambda lq: lq.to("meta"), "lq is on meta, student_out on cpu"),
        (lambda lq: "lq", "lq must be a tensor, got str"),
        (lambda lq: None, r"lq is missing: pass it, or let watch\(student\)"),
    ],
)
def test_looks_at_lq_on_every_call(dckd, batch, change, message):
    dckd(*batch)
    with pytest.raises(ValueError, match=message):
        dckd(*batch[:2], change(batch[2]))


BAD = [
    (0, float("nan"), "student_out must be finite"),
    (0, float("inf"), "student_out must be finite"),
    (1, float("nan"), "teacher_out must be finite, got values from nan"),
    (1, 200.0, r"teacher_out must lie in \[0, 1\], got values from .* to 200"),
    (1, -0.6, r"teacher_out must lie in \[0, 1\], got values from -0.6"),
    (2, 255.0, r"lq must lie in \[0, 1\], got values from .* to 255"),
    (2, float("-inf"), "lq must be finite"),
]


@pytest.mark.parametrize(("which", "value", "message"), BAD)
def test_looks_at_values_in_the_first_call_and_at_will(dckd, batch, which, value, message):
    bad = [x.clone() for x in batch]
    bad[which][0, 0, 0, 0] = value
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            dckd(*bad)
    dckd(*batch)
    dckd(*bad)  # later calls read nothing
    with pytest.raises(ValueError, match=message):
        dckd.check(*bad)


def test_looks_at_values_again_after_new_state(dckd, batch, student):
    parent = nn.ModuleDict({"loss": dckd})
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for change in (
        lambda: dckd.load_state_dict(dckd.state_dict()),
        lambda: dckd.attach(optimizer),
        lambda: parent.load_state_dict(parent.state_dict()),
    ):
        dckd(*batch)
        change()
        with pytest.raises(ValueError, match="teacher_out must lie"):
            dckd(batch[0], 255 * batch[1], batch[2])


def test_overshoot_is_fine(dckd, batch):
    batch[0][0, 0, 0, 0] = 3.0
    batch[1][0, 0, 0, 0] = 1.4
    batch[2][0, 0, 0, 0] = -0.4
    dckd(*batch)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dcr_weight": -1}, "dcr_weight must be finite and at least 0, got -1"),
        ({"dmm_weight": float("nan")}, "dmm_weight must be finite and at least 0, got nan"),
        ({"dmm_weight": "1e-3"}, r"dmm_weight must be a number, .* got '1e-3' as text \(in YAML"),
        ({"dcr_weight": None}, "dcr_weight must be a number, .* got None"),
        ({"balance": "3e-1"}, "balance must be a number, .* or None, got '3e-1' as text"),
    ],
)
def test_refuses_weights(student, encoder, weights, message):
    with pytest.raises(ValueError, match=message):
        DCKDLoss(student, encoder, **weights)


def test_refuses_student_and_encoder_in_the_wrong_order(student):
    with pytest.raises(ValueError, match="student must be a module, got 'compact': the student co"):
        DCKDLoss("compact", student)


def test_outputs_in_the_wrong_order_are_told_in_the_first_call(dckd, student, batch):
    student_out, teacher_out = student(batch[2]).clamp(0, 1), batch[1]
    with pytest.raises(ValueError, match="teacher_out requires grad and student_out does not"):
        dckd(teacher_out, student_out, batch[2])
    with torch.no_grad():
        dckd(teacher_out, student_out, batch[2])
    again = copy.deepcopy(dckd)
    again(student_out, 0.5 * student_out, batch[2])  # a teacher that nobody switched off
    again(teacher_out, student_out, batch[2])


def test_leaves_the_global_generator_alone_and_prints_nothing(dckd, batch, capfd):
    state = torch.get_rng_state()
    dckd(*batch).item()
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("degradation", ["blur", "noise", "resize", "mix"])
def test_waits_for_no_number_after_the_first_call(student, encoder, batch, degradation):
    negatives = NegativeGenerator(HistoryModel(student), degradation=degradation)
    dckd = DCKDLoss(student, encoder, negatives=negatives)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoNumberLeaves():
        dckd(*batch)
    dckd(*batch)
    with NoNumberLeaves():
        dckd(batch[0].requires_grad_(), *batch[1:]).backward()


@pytest.mark.parametrize(
    ("backend", "steps"), [("eager", 1), pytest.param("aot_eager", 3, marks=pytest.mark.slow)]
)
def test_compiles_in_one_graph(dckd, batch, backend, steps):
    torch._dynamo.reset()  # or what other tests compiled would count
    expected = copy.deepcopy(dckd)
    compiled = torch.compile(dckd, fullgraph=True, backend=backend)
    for _ in range(steps):
        student_out = batch[0].clone().requires_grad_()
        plain_out = batch[0].clone().requires_grad_()
        seen, value = compiled(student_out, *batch[1:]), expected(plain_out, *batch[1:])
        torch.testing.assert_close(seen, value)
        seen.backward()
        value.backward()
        torch.testing.assert_close(student_out.grad, plain_out.grad, rtol=1e-3, atol=1e-6)
    assert dckd.negatives.counter == steps


def test_looks_at_no_values_while_capturing(dckd, batch, monkeypatch):
    bad = batch[0], 255 * batch[1], batch[2]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    dckd(*bad)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="teacher_out must lie"):
        dckd(*bad)


@pytest.fixture
def captured(monkeypatch):
    """What a CUDA graph captures, function and samples; it is run anew in place of a replay."""
    seen = []

    def make_graphed_callables(function, samples):
        seen.append((function, samples))
        for _ in range(3):  # warming up and capturing
            function(*samples).backward()
        return function

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return seen


def test_a_graph_gives_what_a_call_gives(dckd, batch, captured):
    eager = copy.deepcopy(dckd)
    call = dckd.graphed(*batch)
    (_, (student_out, *fixed)) = captured[0]
    assert student_out.requires_grad and not any(x.requires_grad for x in fixed)
    assert dckd.negatives.counter == 0, "warming up uses no random numbers up"
    last = dckd.last
    for number in (1, 2):
        assert torch.equal(call(*batch), eager(*batch))
        assert dckd.negatives.counter == number
        assert dckd.last is last, "the graph writes where it wrote when it was captured"


def test_a_graph_takes_no_bad_images(dckd, batch, captured):
    with pytest.raises(ValueError, match="teacher_out must lie"):
        dckd.graphed(batch[0], 255 * batch[1], batch[2])
    assert not captured


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_graph_without_a_device_is_refused(dckd, batch):
    with pytest.raises(RuntimeError, match=r"cannot be captured as a CUDA graph .* is on cpu"):
        dckd.graphed(*batch)
