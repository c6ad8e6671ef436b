"""The fused path against its plain twins, and what it keeps."""

import copy
import gc
import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dckd_losses import DCKDLoss, DCRLoss, DMMLoss, VQGANEncoder
from dckd_losses.architecture import Architecture
from dckd_losses.network import VQGANNetwork, build
from dckd_losses.ops import blocks, fused, level_gaps, reference, winograd

FORMATS = [torch.contiguous_format, torch.channels_last]
LAYOUTS = ["contiguous", "channels_last"]


def relative(seen, expected):
    return ((seen.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(params=[False, True], ids=["direct", "winograd"])
def convolution(request, monkeypatch):
    """Small tensors would never come to Winograd's by themselves."""
    monkeypatch.setattr(winograd, "pays", lambda x, weight: request.param)


WINOGRAD = (1e-12, 1e-12)  # its transforms round


def same_value_and_gradient(operation, x, *rest, bounds=(1e-13, 1e-13)):
    """Fused against plain, with a gradient other than one, and fused against differences."""
    outputs = []
    for ops in (fused, reference):
        inside = x.clone().requires_grad_()
        out = getattr(ops, operation)(inside, *rest)
        slope = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        (out * slope).sum().backward()
        outputs.append((out, inside.grad))
    for seen, expected, bound in zip(*outputs, bounds, strict=True):
        assert relative(seen, expected) < bound
    assert torch.autograd.gradcheck(
        lambda y: getattr(fused, operation)(y, *rest), x.clone().requires_grad_()
    )


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (1, 0)])
def test_frozen_conv2d(images, memory_format, kernel, padding):
    x = images(2, 4, 7, 9, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight = images(6, 4, kernel, kernel, dtype=torch.float64)
    weight = weight.contiguous(memory_format=memory_format)
    same_value_and_gradient("frozen_conv2d", x, weight, images(6, dtype=torch.float64), padding)


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
def test_frozen_conv2d_by_winograd(images, memory_format, convolution):
    x = images(2, 4, 7, 9, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight, bias = images(6, 4, 3, 3, dtype=torch.float64), images(6, dtype=torch.float64)
    same_value_and_gradient("frozen_conv2d", x, weight, bias, 1, bounds=WINOGRAD)


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (2, 3)])
def test_halving_conv2d(images, memory_format, size):
    x = images(2, 4, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight, bias = images(6, 4, 3, 3, dtype=torch.float64), images(6, dtype=torch.float64)
    same_value_and_gradient("halving_conv2d", x, weight, bias)
    assert fused.halving_conv2d(x, weight, bias).shape[2:] == (size[0] // 2, size[1] // 2)


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
def test_group_norm_silu_conv2d(images, memory_format, convolution):
    x = 3 * images(2, 8, 5, 6, dtype=torch.float64).contiguous(memory_format=memory_format) - 1
    norm = (*images(2, 8, dtype=torch.float64), 4, 1e-6)
    weight, bias = images(6, 8, 3, 3, dtype=torch.float64), images(6, dtype=torch.float64)
    same_value_and_gradient("group_norm_silu_conv2d", x, *norm, weight, bias, bounds=WINOGRAD)


@pytest.fixture(params=[1 << 17, 16], ids=["one block", "many blocks"])
def block_size(request, monkeypatch):
    monkeypatch.setattr(blocks, "CACHED", request.param)


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_silu(images, memory_format, silu, block_size):
    x = 3 * images(2, 8, 5, 3, dtype=torch.float64).contiguous(memory_format=memory_format) - 1
    weight, bias = images(2, 8, dtype=torch.float64)
    same_value_and_gradient(
        "group_norm_silu", x, weight, bias, 4, 1e-6, silu, bounds=(1e-13, 1e-12)
    )


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
def test_group_norm_keeps_the_digits_of_features_far_from_zero(images, memory_format):
    """torch's own on CPU loses them in channels_last: it subtracts the mean's square."""
    x = (images(2, 64, 16, 16) + 30).contiguous(memory_format=memory_format)
    weight, bias = torch.ones(64), torch.zeros(64)
    seen = fused.group_norm_silu(x, weight, bias, 32, 1e-6, silu=False)
    expected = reference.group_norm_silu(
        x.double(), weight.double(), bias.double(), 32, 1e-6, False
    )
    assert relative(seen, expected) < 1e-5


def test_add_group_norm_silu(images):
    x, skip, slope, other = (images(2, 8, 5, 3, dtype=torch.float64) for _ in range(4))
    weight, bias = images(2, 8, dtype=torch.float64)
    outputs = []
    for ops in (fused, reference):
        leaves = [x.clone().requires_grad_(), skip.clone().requires_grad_()]
        total, out = ops.add_group_norm_silu(2 * leaves[0], leaves[1], weight, bias, 4, 1e-6)
        (out * slope + total * other).sum().backward()
        outputs.append((total, out, *(leaf.grad for leaf in leaves)))
    for seen, expected in zip(*outputs, strict=True):
        assert relative(seen, expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_norm_is_as_good_as_its_output_can_be(images, dtype):
    x = (4 * images(2, 64, 9, 7) - 1).to(dtype).requires_grad_()
    weight, bias, slope = images(64), images(64), images(2, 64, 9, 7).to(dtype)
    truth = x.detach().double().requires_grad_()
    expected = reference.group_norm_silu(truth, weight.double(), bias.double(), 32, 1e-6)
    (wanted,) = torch.autograd.grad((expected * slope.double()).sum(), truth)
    seen = fused.group_norm_silu(x, weight, bias, 32, 1e-6)
    (found,) = torch.autograd.grad(seen, x, slope)
    assert seen.dtype == found.dtype == dtype
    assert relative(seen, expected) <= relative(expected.to(dtype), expected) + 1e-6
    assert relative(found, wanted) <= relative(wanted.to(dtype), wanted) + 1e-5


def test_group_norm_silu_takes_any_strides(images):
    x = images(2, 8, 10, 6).permute(0, 1, 3, 2)[:, :, ::2].requires_grad_()
    weight, bias = images(2, 8)
    seen = fused.group_norm_silu(x, weight, bias, 4, 1e-6)
    expected = reference.group_norm_silu(x, weight, bias, 4, 1e-6)
    torch.testing.assert_close(seen, expected)
    grads = [torch.autograd.grad((y * x.detach()).sum(), x)[0] for y in (seen, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("count", [1, 5, 42, 43, 300])
def test_level_gaps(images, memory_format, count, block_size):
    shape = (2, 3, 5, 4)
    student, teacher, *others = (
        images(*shape, dtype=torch.float64).contiguous(memory_format=memory_format)
        for _ in range(2 + count)
    )
    outputs = []
    for gaps in (level_gaps.level_gaps, reference.level_gaps):
        inside = student.clone().requires_grad_()
        positive, negative = gaps(inside, teacher, others)
        (positive / negative * 3).backward()
        outputs.append((positive, negative, inside.grad))
    for seen, expected in zip(*outputs, strict=True):
        assert relative(seen, expected) < 1e-12


@pytest.mark.parametrize("count", [1, 42, 43])
def test_exact_ties_and_all_signs_alike(images, count):
    """Where every sign agrees the code is at the end of its range; where none does it is 0."""
    student = images(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    value = student.detach()
    for teacher, other in [
        (value, value),
        (value - 1, value - 1),
        (value + 1, value + 1),
        (value - 1, value),
        (value, value + 1),
        (value + 1, value - 1),
    ]:
        grads = []
        for gaps in (level_gaps.level_gaps, reference.level_gaps):
            positive, negative = gaps(student, teacher, [other] * count)
            grads.append(torch.autograd.grad(2 * positive + 5 * negative, student)[0])
        torch.testing.assert_close(*grads, rtol=1e-12, atol=0)


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
def test_gradcheck_of_level_gaps(images, memory_format):
    student, teacher, *others = (
        x.contiguous(memory_format=memory_format)
        for x in images(5, 1, 2, 3, 3, dtype=torch.float64)
    )
    assert torch.autograd.gradcheck(
        lambda x: level_gaps.level_gaps(x, teacher, others), student.requires_grad_(), eps=1e-9
    )


def test_gradients_of_half_features_are_rounded_once(images):
    student, teacher, *others = images(44, 1, 2, 5, 5).half()
    grads = []
    for x, fixed in ((student, others), (student.double(), [o.double() for o in others])):
        gaps = level_gaps.LevelGaps(x, len(others))
        gaps.add(torch.stack([teacher.to(x), *fixed]), 0, 0)
        x = x.clone().requires_grad_()
        positive, negative = gaps.attach(x)
        grads.append(torch.autograd.grad(30 * positive - 7 * negative, x)[0])
    assert torch.equal(grads[0], grads[1].half())


# the whole path

WAYS = [
    {},
    {"chunk": 1},
    {"chunk": 4},
    {"mode": "twopass"},
    {"mode": "twopass", "chunk": 1},
    {"mode": "twopass", "chunk": 2},
]


@pytest.fixture
def make(tensors):
    def encoder(**settings):
        return VQGANEncoder(build({k: v.clone() for k, v in tensors.items()}), **settings)

    return encoder


def outcome(dckd, batch, grad=1.0):
    student_out = batch[0].clone().requires_grad_()
    loss = dckd(student_out, *batch[1:])
    loss.backward(torch.tensor(grad, dtype=loss.dtype))
    return loss.detach(), student_out.grad, dckd.last


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    ("batch", "size", "count"), [(1, (16, 16), 1), (3, (35, 50), 5), (2, (17, 40), 42)]
)
@pytest.mark.parametrize(
    ("dtype", "loss_bound", "bound"), [(torch.float64, 1e-12, 1e-12), (torch.float32, 1e-6, 2e-2)]
)
def test_fused_equals_plain(
    make, student, images, way, batch, size, count, dtype, loss_bound, bound
):
    others = images(count, batch, 3, *size, dtype=dtype)
    data = [images(batch, 3, *size, dtype=dtype) for _ in range(2)]
    data.append(data[0])
    losses = [
        DCKDLoss(student, make(**settings), dmm_weight=0.05, negatives=lambda lq: others).to(dtype)
        for settings in ({"impl": "plain"}, way)
    ]
    expected, seen = (outcome(loss, data, 3.0) for loss in losses)
    assert losses[1].encoder.path.impl == "fused"
    assert relative(seen[0], expected[0]) < loss_bound
    assert relative(seen[1], expected[1]) < bound
    for name, value in expected[2].items():
        assert relative(seen[2][name], value) < max(loss_bound, 1e-6 if bound > 1e-3 else 0)


WIDE = Architecture(
    stem=96,
    channels=(96, 96, 128, 128, 128),
    blocks=2,
    attention=(False, False, False, True, False),
    z_channels=8,
    code_channels=6,
    codes=11,
)


@pytest.mark.parametrize("way", [{}, {"chunk": 1}, {"mode": "twopass", "chunk": 1}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "loss_bound", "bound"), [(torch.float64, 1e-12, 1e-12), (torch.float32, 1e-6, 2e-2)]
)
def test_fused_equals_plain_where_winograd_pays(
    student, images, monkeypatch, way, dtype, loss_bound, bound
):
    """Two blocks a level, attention elsewhere, and widths that small networks do not have."""
    torch.manual_seed(0)
    network = VQGANNetwork(WIDE)
    used, conv2d = [], winograd.conv2d
    monkeypatch.setattr(winograd, "conv2d", lambda *args: used.append(1) or conv2d(*args))
    others = images(3, 2, 3, 46, 37, dtype=dtype)
    data = [images(2, 3, 46, 37, dtype=dtype) for _ in range(2)]
    data.append(data[0])
    outcomes = []
    for settings in ({"impl": "plain"}, way):
        encoder = VQGANEncoder(copy.deepcopy(network), **settings)
        dckd = DCKDLoss(student, encoder, dmm_weight=0.05, negatives=lambda lq: others).to(dtype)
        outcomes.append(outcome(dckd, data))
        assert bool(used) == ("impl" not in settings)
    assert relative(outcomes[1][0], outcomes[0][0]) < loss_bound
    assert relative(outcomes[1][1], outcomes[0][1]) < bound


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("change", ["transposed", "channels_last", "expanded"])
def test_memory_layouts(make, student, images, way, change):
    size = (32, 32)
    others = images(1, 2, 3, *size, dtype=torch.float64).expand(3, -1, -1, -1, -1)
    data = [images(2, 3, *size, dtype=torch.float64) for _ in range(2)]
    data.append(data[0])
    plain = DCKDLoss(student, make(impl="plain"), negatives=lambda lq: others).double()
    expected = outcome(plain, data)
    if change == "transposed":
        data = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in data]
    elif change == "channels_last":
        data = [x.contiguous(memory_format=torch.channels_last) for x in data]
    given = others if change == "expanded" else others.contiguous()
    seen = outcome(DCKDLoss(student, make(**way), negatives=lambda lq: given).double(), data)
    assert relative(seen[1], expected[1]) < 1e-12


def gradient(loss, student, *others):
    x = student.clone().requires_grad_()
    value = loss(x, *others)
    (slope,) = torch.autograd.grad(value, x)
    return value.detach(), slope


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(("loss", "size"), [(DCRLoss, 24), (DCRLoss, 40), (DMMLoss, 40)])
def test_each_loss_alone(make, images, way, loss, size):
    student, *others = (images(2, 3, size, size, dtype=torch.float64) for _ in range(2))
    if loss is DCRLoss:
        others.append(images(2, 2, 3, size, size, dtype=torch.float64))
    expected = gradient(loss(make(impl="plain")).double(), student, *others)
    for seen, wanted in zip(
        gradient(loss(make(**way)).double(), student, *others), expected, strict=True
    ):
        assert relative(seen, wanted) < 1e-12


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_as_exact_as_plain_where_the_last_norm_sees_two_numbers(make, images, way):
    """There its gradient is a small difference of equals, which no way of computing has exactly."""
    truth, plain = (DMMLoss(make(impl="plain")).to(d) for d in (torch.float64, torch.float32))
    fused_loss, errors = DMMLoss(make(**way)), []
    for _ in range(9):
        student, teacher = images(2, 1, 3, 24, 24)
        (value, slope), *both = (
            gradient(loss, *(x.to(dtype) for x in (student, teacher)))
            for loss, dtype in (
                (truth, torch.float64), (plain, torch.float32), (fused_loss, torch.float32),
            )
        )  # fmt: skip
        errors.append([relative(seen, slope) for _, seen in both])
        assert relative(both[1][0], value) < 1e-5
    plain_error, error = torch.tensor(errors).median(0).values
    assert error < 2 * plain_error < 0.1


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_no_second_derivative_and_says_so(make, images, mode):
    dmm = DMMLoss(make(mode=mode)).double()
    student, teacher = images(2, 1, 3, 16, 16, dtype=torch.float64)
    loss = dmm(student.requires_grad_(), teacher)
    with pytest.raises(RuntimeError, match=r"no second derivative: .*impl='plain'"):
        torch.autograd.grad(loss, student, create_graph=True)
    plain = DMMLoss(make(impl="plain")).double()
    (slope,) = torch.autograd.grad(plain(student, teacher), student, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), student)
    assert curvature.abs().sum() > 0


@pytest.mark.parametrize("memory_format", FORMATS, ids=LAYOUTS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gradcheck_of_the_whole_path(make, student, images, way, memory_format):
    others = images(2, 2, 3, 32, 32, dtype=torch.float64)
    dckd = DCKDLoss(student, make(**way), dmm_weight=0.05, negatives=lambda lq: others).double()
    student_out, teacher_out = (
        x.contiguous(memory_format=memory_format)
        for x in images(2, 2, 3, 32, 32, dtype=torch.float64)
    )
    assert torch.autograd.gradcheck(
        lambda x: dckd(x, teacher_out, teacher_out),
        student_out.requires_grad_(),
        eps=1e-7,
        fast_mode=True,
    )


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_without_gradient(make, images, mode):
    student, teacher = images(2, 1, 3, 16, 16)
    loss = DMMLoss(make(mode=mode))(student, teacher)
    assert not loss.requires_grad
    with torch.no_grad():
        again = DMMLoss(make(mode=mode))(student.clone().requires_grad_(), teacher)
    assert torch.equal(loss, again)


def saved_bytes(dckd, batch):
    """Bytes that tensors hold between forward and backward, weights aside."""
    gc.collect()
    weights = {p.untyped_storage().data_ptr() for p in dckd.encoder.network.parameters()}
    held = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    student_out = batch[0].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        dckd(student_out, *batch[1:])
    return sum(held.values())


def test_saves_a_fraction(make, student, images):
    others = images(5, 1, 3, 64, 64)
    batch = images(1, 3, 64, 64), images(1, 3, 64, 64), images(1, 3, 32, 32)
    by_way = {
        impl: saved_bytes(DCKDLoss(student, make(impl=impl), negatives=lambda lq: others), batch)
        for impl in ("plain", "fused")
    }
    assert by_way["fused"] < by_way["plain"] / 3


def test_saved_bytes_do_not_grow_with_the_negatives(make, student, images):
    batch = images(1, 3, 64, 64), images(1, 3, 64, 64), images(1, 3, 32, 32)
    by_count = []
    for count in (1, 40):
        others = images(count, 1, 3, 64, 64)
        dckd = DCKDLoss(student, make(chunk=1), negatives=lambda lq, n=others: n)
        by_count.append(saved_bytes(dckd, batch))
    assert by_count[0] == by_count[1]


def test_two_pass_holds_the_gradient_only(make, student, images):
    """What its output's graph reaches: one tensor like the images."""
    others = images(5, 2, 3, 64, 64)
    dckd = DCKDLoss(student, make(mode="twopass"), negatives=lambda lq: others)
    student_out = images(2, 3, 64, 64).requires_grad_()
    loss = dckd(student_out, images(2, 3, 64, 64), images(2, 3, 32, 32))
    found, todo = [], [loss.grad_fn]
    while todo:
        node = todo.pop()
        found += getattr(node, "saved_tensors", ()) or ()
        todo += [following for following, _ in node.next_functions if following is not None]
    assert sum(x.numel() for x in found) == student_out.numel()


def peak_bytes(dckd, student_out, teacher_out, lq):
    """Bytes that are allocated at most in forward and backward, beyond what was there before."""
    x = student_out.clone().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        dckd(x, teacher_out, lq).backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes))


def test_peak_does_not_grow_with_the_negatives(make, student, images):
    batch = images(1, 3, 64, 64), images(1, 3, 64, 64), images(1, 3, 32, 32)
    peaks = []
    for count in (5, 41):  # together with the teacher as many as pass the deeper levels at once
        others = images(count, 1, 3, 64, 64)
        dckd = DCKDLoss(student, make(chunk=1), negatives=lambda lq, n=others: n)
        dckd(*batch)  # weights that are made on first use are no growth
        peaks.append(peak_bytes(dckd, *batch))
    assert peaks[1] < 1.01 * peaks[0]


def test_peak_of_two_passes_grows_with_the_gradient_only(make, student, images):
    peaks = []
    for batch in (2, 16):
        others = images(5, batch, 3, 64, 64)
        dckd = DCKDLoss(student, make(mode="twopass", chunk=1), negatives=lambda lq, n=others: n)
        data = images(batch, 3, 64, 64), images(batch, 3, 64, 64), images(batch, 3, 32, 32)
        dckd(*data)
        peaks.append(peak_bytes(dckd, *data))
    image = 3 * 64 * 64 * 4
    allowed = 3 * 14 * image  # its parts, the whole, and what backward hands on
    assert peaks[1] - peaks[0] < allowed + 0.01 * peaks[0]


@pytest.mark.parametrize("mode", ["stream", "twopass"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_memory_does_not_grow_over_200_steps(make, student, images, mode, precision):
    others = images(2, 1, 3, 16, 16)
    dckd = DCKDLoss(student, make(mode=mode, precision=precision), negatives=lambda lq: others)
    batch = images(1, 3, 16, 16), images(1, 3, 16, 16), images(1, 3, 8, 8)
    alive = []
    for step in range(203):
        outcome(dckd, batch)
        if step in (2, 202):
            gc.collect()
            sizes = [x.nbytes for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
            alive.append((len(sizes), sum(sizes)))
    assert alive[0] == alive[1]


# asking


def test_path_says_which_and_why(make):
    assert make().path == ("fused", make().path.reason)
    assert "mode='twopass'" in make(mode="twopass").path.reason
    assert make(impl="plain").path == ("plain", "impl='plain'")


def test_own_networks_take_the_plain_path():
    from dckd_losses.as_encoder import as_encoder

    assert as_encoder(torch.nn.Identity()).path == (
        "plain",
        "Identity is no VQGAN of this package",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"impl": "quick"}, "impl must be one of auto, plain, fused, got 'quick'"),
        ({"mode": "three"}, "mode must be one of stream, twopass, got 'three'"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_refuses_settings(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
