"""Any module as an encoder: what it may do, and what is said of what it may not."""

import math

import pytest
import torch
from torch import nn

from dckd_losses import DCKDLoss, DCRLoss, DMMLoss, Encoding
from dckd_losses.encoder import FeatureEncoder, as_encoder


class Pyramid(nn.Module):
    """Somebody's own features: two levels and three codes."""

    def __init__(self, codes=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.codes = codes

    def forward(self, x):
        small = nn.functional.avg_pool2d(self.conv(x), 16)
        return [self.conv(x), small], small if self.codes else None


def test_any_module_is_an_encoder(images):
    mine = Pyramid()
    encoder = as_encoder(mine)
    assert type(encoder) is FeatureEncoder
    x = images(4, 3, 32, 32)
    seen = encoder(x, num_with_codes=3)
    assert isinstance(seen, Encoding)
    assert [len(level) for level in seen.levels] == [4, 4]
    assert len(seen.code_logits) == 3
    assert math.isfinite(DMMLoss(mine)(x, x.flip(0)))
    assert mine.conv.weight.requires_grad, "the caller's module is left alone"
    with pytest.raises(ValueError, match="2 levels, level_weights has 5"):
        DCRLoss(mine)(x, x, x[None])
    assert math.isfinite(DCRLoss(mine, level_weights=(1, 1))(x, x.flip(0), x.flip(2)[None]))
    with pytest.raises(ValueError, match="no code logits"):
        DMMLoss(Pyramid(codes=False))(x, x)


@pytest.mark.parametrize(
    ("found", "seen"),
    [
        (lambda x: [x] * 5, "a list of Tensor, Tensor, Tensor, Tensor, Tensor"),
        (lambda x: [x, x], "a list of Tensor, Tensor"),
        (lambda x: ([x], [x]), "a tuple of list, list"),
        (lambda x: x, "a Tensor"),
        (lambda x: {"levels": [x]}, "a dict"),
    ],
)
def test_an_encoder_that_returns_something_else_is_told(images, found, seen):
    class Features(nn.Module):
        def forward(self, x):
            return found(x)

    x = images(2, 3, 16, 16)
    with pytest.raises(ValueError, match=rf"Features must return Encoding\(.*, got {seen}$"):
        DMMLoss(Features())(x, x)


class Writing(Pyramid):
    """As many networks do, it brings its input to its own range in place."""

    def forward(self, x):
        return super().forward(x.mul_(2).sub_(1))


class Reading(Pyramid):
    def forward(self, x):
        return super().forward(2 * x - 1)


@pytest.mark.parametrize("balance", [None, 0.3])
def test_an_encoder_may_write_into_what_it_is_given(images, balance):
    student = nn.Conv2d(3, 3, 1)
    x, teacher, lq = images(2, 3, 16, 16), images(2, 3, 16, 16), images(2, 3, 16, 16)
    gradients = []
    weights = Pyramid().state_dict()
    for network in (Writing(), Reading()):
        network.load_state_dict(weights)
        loss = DCKDLoss(student, network, level_weights=(1, 1), balance=balance)
        output = x.clone().requires_grad_()
        before = teacher.clone()
        value = loss(output, teacher, lq)
        assert torch.equal(output, x)
        assert torch.equal(teacher, before)
        (gradient,) = torch.autograd.grad(value, output)
        gradients.append(gradient)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("kind", "weights"), [("levels", (0.1, 0.0)), ("code logits", (0.0, 0.1))])
def test_an_encoder_without_a_gradient_is_refused(images, kind, weights):
    class Cut(Pyramid):
        def forward(self, x):
            levels, codes = super().forward(x)
            return [level.detach() for level in levels], codes.detach()

    student, dcr_weight, dmm_weight = nn.Conv2d(3, 3, 1), *weights
    settings = {"level_weights": (1, 1), "dcr_weight": dcr_weight, "dmm_weight": dmm_weight}
    loss = DCKDLoss(student, Cut(), **settings)
    x, teacher = images(2, 3, 16, 16), images(2, 3, 16, 16)
    assert math.isfinite(loss(x, teacher, x))  # where nobody asks for a gradient
    with pytest.raises(ValueError, match=f"Cut lets no gradient .* its {kind} must be made"):
        loss(student(x), teacher, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_foreign_encoder_is_not_autocast_and_takes_any_dtype(images, dtype):
    dmm = DMMLoss(Pyramid())
    x = images(2, 1, 3, 16, 16).to(dtype)
    expected = dmm(*x)
    with torch.autocast("cpu", torch.bfloat16):
        assert dmm.encoder(x[0]).code_logits.dtype == torch.float32
        assert torch.equal(dmm(*x), expected)
