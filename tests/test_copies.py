"""What a copy of a student takes along, and what it must not share."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from dckd_losses.copies import frozen_copy


def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1))


class EveryOther(prune.BasePruningMethod):
    """Somebody's own way of pruning."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


def pruned(student):
    EveryOther.apply(student[0], "weight")


class EqualRate:
    def __call__(self, module, arguments):
        module.weight = module.weight_orig * 0.5


def equal_rate(student, hook=None):
    """A weight that a pre-hook makes in each call, as StyleGAN's equalized learning rate does."""
    weight = student[0].weight
    del student[0].weight
    student[0].weight_orig, student[0].weight = nn.Parameter(weight.detach()), weight.detach()
    student[0].register_forward_pre_hook(hook or EqualRate())


def equal_rate_by_a_function(student):
    equal_rate(student, lambda module, arguments: EqualRate()(module, arguments))


def patched_by_a_partial(student):
    def forward(self, scale, x):
        return scale * nn.Sequential.forward(self, x)

    student.forward = functools.partial(forward, student, 0.5)


def of_the_first_layer(change):
    return lambda student: change(student[0]) and None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        *map(of_the_first_layer, (weight_norm, spectral_norm)),
        *map(of_the_first_layer, (parametrizations.weight_norm, parametrizations.spectral_norm)),
        *(pruned, equal_rate, equal_rate_by_a_function, patched_by_a_partial, torch.jit.script),
    ],
)
def test_the_copy_computes_by_weights_of_its_own(images, change):
    student, x = network(), images(1, 3, 8, 8)
    student = (change(student) or student).eval()
    model = frozen_copy(student)
    with torch.no_grad():
        before = student(x)
        for weight in student.parameters():
            weight.mul_(1.5)
        after = student(x)
        assert torch.equal(model(x), before)
        for mine, theirs in zip(model.parameters(), student.parameters(), strict=True):
            mine.copy_(theirs)
        assert torch.equal(model(x), after)
    assert not torch.equal(before, after)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(weight.requires_grad for weight in student.parameters())


def halved(function):
    return lambda x: 0.5 * function(x)


@pytest.mark.parametrize(
    "patch",
    [
        lambda student: halved(student.forward),
        lambda student: halved(halved(student[0].forward)),
        lambda student: lambda x, layer=student[0]: layer(x),
    ],
    ids=["method", "nested", "default"],
)
def test_a_function_that_would_call_the_student_is_refused(patch):
    """The copy's `forward` would run with the student's weights of today."""
    student = nn.Sequential(network())
    student[0].forward = patch(student[0])
    with pytest.raises(ValueError, match=r"because 0\.forward is a function that refers to the st"):
        frozen_copy(student)


def test_functions_that_hold_nothing_of_the_student_are_copied(images):
    other, scale = nn.Conv2d(3, 3, 1), 0.5
    student = network()
    student.activation = lambda x: scale * other(x)
    assert frozen_copy(student).activation is student.activation


class Keeps(nn.Module):
    """Reads what its own hook kept."""

    def __init__(self, hook):
        super().__init__()
        self.conv, self.kept = nn.Conv2d(3, 3, 1), []
        self.conv.register_forward_hook(hook(self))

    def keep(self, module, arguments, out):
        self.kept.append(out)

    def forward(self, x):
        self.kept.clear()
        return self.conv(x) + self.kept[0]


@pytest.mark.parametrize(
    "hook",
    [lambda self: self.keep, lambda self: functools.partial(Keeps.keep, self)],
    ids=["method", "partial"],
)
def test_a_networks_own_hook_writes_into_the_copy(images, hook):
    student, x = Keeps(hook), images(1, 3, 4, 4)
    out = student(x)
    kept = copy.copy(student.kept)
    assert torch.equal(frozen_copy(student)(x), out)
    assert student.kept[0] is kept[0]
