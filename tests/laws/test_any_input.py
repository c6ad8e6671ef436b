"""What holds for every public piece, whatever images hypothesis thinks of."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numerics import relative
from torch import nn

from dckd_losses import (
    DCKDLoss,
    DCRLoss,
    DMMLoss,
    HistoryModel,
    NegativeGenerator,
    gradient_ratio,
)
from dckd_losses.negatives import DEGRADATIONS
from dckd_losses.negatives.draws import Draws

PIXELS = 2**13  # of all images of an example, which bounds its time
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
VALUES = {
    "uniform": lambda x: x,
    "black and white": lambda x: x.round(),
    "constant": lambda x: x.flatten()[0].expand(x.shape),
    "nearly constant": lambda x: 0.5 + 1e-6 * x,
    "zero": lambda x: 0 * x,
    "huge": lambda x: 1e4 * (x - 0.5),
    "subnormal": lambda x: 1e-40 * x,
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}
seeds = st.integers(0, 2**32 - 1)
seldom_huge = st.sampled_from(list(VALUES)[:5])  # what a teacher or an lq may be


@st.composite
def shapes(draw, others=0, least=16):
    """A number of sets of images beside `others` more, a batch, and an image's sides."""
    height = draw(st.integers(least, 200))
    width = draw(st.integers(least, max(least, min(200, PIXELS // (others + 1) // height))))
    if draw(st.booleans()):
        height, width = width, height
    room = max(others + 1, PIXELS // (height * width))
    batch = draw(st.integers(1, max(1, min(5, room // (others + 1)))))
    return draw(st.integers(1, max(1, min(50, room // batch - others)))), batch, height, width


def images(seed, *shape, dtype=torch.float64, value="uniform", layout="contiguous"):
    generator = torch.Generator().manual_seed(seed)
    x = VALUES[value](torch.rand(shape, generator=generator, dtype=torch.float64))
    return LAYOUTS[layout](x.to(dtype))


def network_losses(encoder, negatives):
    """Every loss as a function of student and teacher, and the module behind it."""

    def dckd(**settings):
        loss = DCKDLoss(nn.Identity(), encoder, negatives=lambda lq: negatives, **settings)
        return loss, lambda s, t: loss(s, t, t)

    dcr, dmm, released = DCRLoss(encoder), DMMLoss(encoder), DMMLoss(encoder, form="released")
    return {
        "dcr": (dcr, lambda s, t: dcr(s, t, negatives)),
        "dmm": (dmm, dmm),
        "released": (released, released),
        "dckd": dckd(balance=None),
        "balanced": dckd(balance=0.3),
    }


FLAT = {"name": "dcr", "dtype": torch.float16, "seed": 0, "layout": "contiguous"}


@example(
    **FLAT,
    settings={"impl": "plain"},
    precision="float32",
    double=False,
    shape=(1, 1, 16, 16),
    values=("nearly constant", "nearly constant"),
)
@example(
    **FLAT,
    settings={},
    precision="float16",
    double=True,
    shape=(1, 1, 17, 16),
    values=("nearly constant", "uniform"),
)
@given(
    name=st.sampled_from(["dcr", "dmm", "released", "dckd", "balanced"]),
    settings=st.sampled_from([{"impl": "plain"}, {}, {"mode": "twopass", "chunk": 2}]),
    precision=st.sampled_from(["float32", "float16", "bfloat16"]),
    double=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    shape=shapes(others=2),
    seed=seeds,
    values=st.tuples(st.sampled_from(list(VALUES)), seldom_huge),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_losses_are_finite_scalars_of_untouched_images(
    make_encoder, name, settings, precision, double, dtype, shape, seed, values, layout
):
    count, batch, *size = shape
    student, teacher, *negatives = (
        images(seed + i, batch, 3, *size, dtype=dtype, value=values[i > 0], layout=layout)
        for i in range(2 + count)
    )
    negatives = torch.stack(negatives)
    before = [x.clone() for x in (student, teacher, negatives)]
    loss, call = network_losses(make_encoder(precision=precision, **settings), negatives)[name]
    if double:
        loss.double()
    results = []
    for _ in range(2):
        x = student.detach().requires_grad_()
        value = call(x, teacher)
        results.append((value.detach(), *torch.autograd.grad(value, x)))
    (value, gradient), again = results
    assert value.shape == () and value.isfinite() and value >= 0
    exact = double and dtype == torch.float64 and precision == "float32"
    assert exact <= (value.dtype == torch.float64) <= (double and dtype == torch.float64)
    assert gradient.shape == student.shape and gradient.dtype == dtype
    if not gradient.isfinite().all():  # a float16 image's own gradient leaves its range
        assert dtype == torch.float16 and not gradient.isnan().any()
        x = student.float().requires_grad_()
        (wider,) = torch.autograd.grad(call(x, teacher), x)
        assert wider.isfinite().all() and wider.abs().max() > torch.finfo(dtype).max
    assert torch.equal(value, again[0]) and torch.equal(gradient, again[1])
    assert all(map(torch.equal, before, (student, teacher, negatives)))


@example(
    seed=141,  # an ill-conditioned one
    shape=(1, 1, 16, 16),
    settings={"chunk": 1},
    layout="contiguous",
    weights=(0.1, 0.05),
    balance=None,
)
@given(
    seed=seeds,
    shape=shapes(others=2),
    settings=st.sampled_from([{"chunk": 1}, {"chunk": 3}, {}]).flatmap(
        lambda x: st.sampled_from([x, {**x, "mode": "twopass"}])
    ),
    layout=st.sampled_from(list(LAYOUTS)),
    weights=st.sampled_from([(0.1, 0.05), (0.1, 0.0), (0.0, 0.05)]),
    balance=st.sampled_from([None, 0.3]),
)
def test_path_and_layout_do_not_matter(
    make_encoder, seed, shape, settings, layout, weights, balance
):
    """But for rounding: the plain path, given images 5e-14 away, says how far that may lead.

    Far where a norm sees two nearly equal numbers, as in images of 16 by 16 pixels.
    """
    count, batch, *size = shape

    def run(way, scale=1):
        student, teacher, *negatives = (
            LAYOUTS[layout](scale * images(seed + i, batch, 3, *size)) for i in range(2 + count)
        )
        if way == {"impl": "plain"}:
            student, teacher = student.contiguous(), teacher.contiguous()
        dckd = DCKDLoss(
            nn.Identity(),
            make_encoder(**way),
            dcr_weight=weights[0],
            dmm_weight=weights[1],
            negatives=lambda lq: torch.stack(negatives),
            balance=balance,
        ).double()
        x = student.requires_grad_()
        value = dckd(x, teacher, teacher)
        (gradient,) = torch.autograd.grad(value, x)
        return {"value": value.detach(), "gradient": gradient, **dckd.last}

    expected, seen = run({"impl": "plain"}), run(settings)
    generator = torch.Generator().manual_seed(seed)
    ulps = [torch.randint(-256, 257, size, generator=generator).double() for _ in range(3)]
    nudged = [run({"impl": "plain"}, 1 + torch.finfo(torch.float64).eps * x) for x in ulps]
    assert seen.keys() == expected.keys()
    for name, wanted in expected.items():
        moved = max(relative(x[name], wanted) for x in nudged)
        assert relative(seen[name], wanted) < 1e-12 + moved
    if balance is not None:
        gradient = seen["gradient"]
        assert gradient.norm() == pytest.approx(0.3 / gradient.numel() ** 0.5, rel=1e-12)


@given(seed=seeds, shape=shapes(others=2), dtype=st.sampled_from(DTYPES))
def test_a_loss_at_its_teacher(make_encoder, seed, shape, dtype):
    """DCR is 0 there, Eq. 9 least, for float64's rounding; negatives have no order."""
    count, batch, *size = shape
    encoder = make_encoder()
    dcr, dmm = DCRLoss(encoder).double(), DMMLoss(encoder).double()
    student, teacher, *negatives = images(seed, 2 + count, batch, 3, *size, dtype=dtype).double()
    negatives = torch.stack(negatives)
    away = dcr(student, teacher, negatives)
    assert 0 <= dcr(teacher, teacher, negatives) < 1e-9
    assert dcr(student, teacher, negatives.flip(0)) == pytest.approx(away.item(), rel=1e-12)
    assert dmm(student, teacher) >= dmm(teacher, teacher) - 1e-12


@given(
    seed=seeds,
    shape=shapes(),
    value=st.sampled_from(list(VALUES)[:5]),
    layout=st.sampled_from(list(LAYOUTS)),
    input_range=st.sampled_from([(-1, 1), (0, 1), (0, 255)]),
)
def test_encoder_sees_each_image_alone(make_encoder, seed, shape, value, layout, input_range):
    _, batch, height, width = shape
    x = images(seed, batch, 3, height, width, value=value, layout=layout)
    encoder = make_encoder(input_range=input_range).double()
    levels, logits = encoder(x)
    channels = encoder.network.architecture.channels
    sizes = [(batch, c, height >> i, width >> i) for i, c in enumerate(channels)]
    assert [tuple(level.shape) for level in levels] == sizes
    assert logits.shape == (batch, 11, height >> 4, width >> 4)
    alone = encoder(x[-1:].contiguous())
    for mine, theirs in zip((*levels, logits), (*alone.levels, alone.code_logits), strict=True):
        torch.testing.assert_close(mine[-1:], theirs, rtol=1e-6, atol=1e-8)


class Weight(nn.Module):
    """One weight vector, which remembers whose it was."""

    def __init__(self, number):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(number, dtype=torch.float64))

    def set(self, step):
        self.weight.data = torch.eye(len(self.weight), dtype=torch.float64)[step]
        return self


@given(
    decay=st.floats(0, 0.99),
    interval=st.integers(1, 7),
    growth=st.integers(0, 4),
    every=st.integers(1, 20),
    steps=st.integers(1, 60),
)
def test_ages_of_the_history(decay, interval, growth, every, steps):
    """Of k updates the j-th source's share is (1 - a) a^(k - j), and the start's is a^k."""
    source = Weight(steps + 1).set(0)
    history = HistoryModel(
        source, decay=decay, interval=interval, interval_growth=growth, growth_every=every
    )
    updates = [step for step in range(1, steps + 1) if history.step(source.set(step))]
    shares = torch.zeros(steps + 1, dtype=torch.float64)
    shares[0] = decay ** len(updates)
    for number, step in enumerate(updates, 1):
        assert step % (interval + growth * ((step - 1) // every)) == 0
        shares[step] = (1 - decay) * decay ** (len(updates) - number)
    torch.testing.assert_close(history.model.weight, shares, rtol=1e-12, atol=1e-15)
    assert shares.sum() == pytest.approx(1)
    if growth == 0 and len(updates) > 0:  # mean age in intervals: a (1 - a^k) / (1 - a)
        ages = (updates[-1] - torch.arange(steps + 1)) / interval
        mean = decay * (1 - decay ** len(updates)) / (1 - decay)
        assert (shares * ages).sum() == pytest.approx(mean, abs=1e-12)


@given(
    seed=seeds,
    shape=shapes(least=1),
    channels=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    value=seldom_huge,
    layout=st.sampled_from(list(LAYOUTS)),
    degradation=st.sampled_from(sorted(DEGRADATIONS)),
    clean=st.booleans(),
)
def test_negatives(seed, shape, channels, dtype, value, layout, degradation, clean):
    """The same bytes for the same seed and counter, others for others; the clean one first."""
    count, batch, *size = shape
    lq = images(seed, batch, channels, *size, dtype=dtype, value=value, layout=layout)
    before = lq.clone()
    settings = {"num_negatives": count + clean, "include_clean": clean, "degradation": degradation}
    one, two, other = (
        NegativeGenerator(HistoryModel(nn.Identity()), seed=number, **settings)
        for number in (seed, seed, seed + 1)
    )
    first, second = one(lq), one(lq)
    assert first.shape == (count + clean, *lq.shape) and first.dtype == dtype
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(lq, before)
    assert torch.equal(first, two(lq.contiguous()))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(lq), two(lq))
    if clean:
        assert torch.equal(first[0], lq)
    if degradation == "noise" and value == "uniform" and lq.numel() > 200:
        assert not torch.equal(first[clean:], second[clean:])
        assert not torch.equal(first[clean:], other(lq)[clean:])


@given(
    seed=seeds,
    shape=shapes(least=1),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(["blur", "resize"]),
    level=st.floats(0, 1),
)
def test_resampling_keeps_what_is_constant(seed, shape, dtype, name, level):
    _, batch, *size = shape
    x = torch.full((batch, 3, *size), level, dtype=torch.float64).to(dtype)
    seen = DEGRADATIONS[name]()(x, Draws(seed, 0, torch.tensor(0)))
    assert seen.dtype == dtype
    atol = max(4 * torch.finfo(dtype).eps, 4e-6)
    torch.testing.assert_close(seen, x, rtol=0, atol=atol)


@given(
    seed=seeds,
    shape=shapes(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    factor=st.floats(1e-3, 1e3),
)
def test_gradient_ratio_is_a_ratio_of_norms(seed, shape, dtype, layout, factor):
    x = images(seed, shape[1], 3, *shape[2:], dtype=dtype, layout=layout).requires_grad_()
    mean, signs = x.double().mean(), (x.double() - 0.3).abs().mean()
    summed = torch.promote_types(dtype, torch.float32)  # over thousands of elements
    rounding = 20 * torch.finfo(dtype).eps + 500 * torch.finfo(summed).eps
    assert gradient_ratio(mean, mean, x) == pytest.approx(1, rel=rounding)
    seen = gradient_ratio(factor * signs, mean, x)
    assert seen.dtype == torch.promote_types(dtype, torch.float32)
    assert seen == pytest.approx(factor, rel=rounding)
    assert x.grad is None


@given(
    seed=seeds,
    shape=shapes(others=2),
    dtype=st.sampled_from(DTYPES[:2]),
    factor=st.floats(1e-6, 1e6),
    fraction=st.floats(1e-3, 1e3),
)
def test_balance_sets_the_norm_and_keeps_the_direction(
    make_encoder, seed, shape, dtype, factor, fraction
):
    _, batch, *size = shape
    student, teacher = images(seed, 2, batch, 3, *size, dtype=dtype)
    gradients = []
    for balance in (None, fraction):
        dckd = DCKDLoss(nn.Identity(), make_encoder(), dcr_weight=0, balance=balance)
        x = student.clone().requires_grad_()
        value = factor * dckd.to(dtype)(x, teacher)
        gradients.append(torch.autograd.grad(value, x)[0].double())
    (free, balanced), norm = gradients, factor * fraction / student.numel() ** 0.5
    assert balanced.norm() == pytest.approx(norm, rel=1e-5)
    assert relative(balanced / balanced.norm(), free / free.norm()) < 1e-5
