"""A history that nobody moves is told of, once, and nothing else is."""

import copy
import pickle
import warnings

import pytest
import torch
from conftest import Student

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")
TOLD = "trained for 2 steps and its history has followed none"


@pytest.fixture
def dckd(student, encoder):
    return DCKDLoss(student, encoder, dmm_weight=0, negatives=negatives(student))


def negatives(student, **settings):
    history = HistoryModel(student, interval=2, interval_growth=0, **settings)
    return NegativeGenerator(history, num_negatives=1)


def train(dckd, student, steps=5, parts=1, after=lambda step: None):
    """Some optimizer steps of so many calls each; what was warned of."""
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            for _ in range(parts):
                lq = torch.rand(1, 3, 8, 8)
                dckd(student(lq), torch.rand(1, 3, 16, 16), lq).backward()
            optimizer.step()
            optimizer.zero_grad()
            after(step)
    return [str(one.message) for one in told if "history" in str(one.message)]


@pytest.mark.parametrize("parts", [1, 3])
def test_is_told_once_when_the_first_update_is_overdue(dckd, student, parts):
    assert not train(dckd, student, steps=2, parts=parts)
    (told,) = train(dckd, student, parts=parts)
    assert TOLD in told and "attach the loss" in told
    assert not train(dckd, student)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_a_copy_that_nobody_attached_is_told_of(student, encoder, clone):
    dckd = DCKDLoss(student, encoder, negatives=negatives(student, max_interval=4))
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    assert not train(dckd.attach(optimizer), student, after=lambda step: optimizer.step())
    assert len(train(clone(dckd), student)) == 1
    assert not train(clone(dckd), student, steps=4)


def test_an_optimizer_that_never_steps_is_told_of_too(dckd, student):
    idle = torch.optim.SGD(student.parameters(), 1e-3)
    assert len(train(dckd.attach(idle), student)) == 1


def test_whoever_follows_by_attach_or_by_hand_hears_nothing(dckd, student, encoder):
    by_step, by_update = (
        DCKDLoss(student, encoder, negatives=negatives(student)) for _ in range(2)
    )
    assert not train(by_step, student, after=lambda step: by_step.history.step(student))

    def update(step):
        if step % 2 == 0:
            by_update.history.update(student)

    assert not train(by_update, student, parts=3, after=update)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    assert not train(dckd.attach(optimizer), student, after=lambda step: optimizer.step())


def test_a_resumed_run_may_be_anywhere_between_two_updates(student, encoder):
    """Those who update by hand may be in the longest interval already."""
    dckd = DCKDLoss(student, encoder, negatives=negatives(student, max_interval=4))
    dckd.load_state_dict(dckd.state_dict())
    assert not train(dckd, student, steps=4)
    assert train(dckd, student, steps=1)


def test_calls_that_train_nothing_do_not_count(dckd, student):
    lq, teacher_out = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):  # one step's weights
            dckd(student(lq), teacher_out, lq)
        with torch.no_grad():
            for _ in range(5):
                student.layers[0].weight.add_(0)
                dckd(student(lq), teacher_out, lq)


@pytest.mark.parametrize("settings", [{"dcr_weight": 0}, {"negatives": lambda lq: 0 * lq[None]}])
def test_without_history_there_is_nothing_to_tell(encoder, settings):
    class Same(Student):
        def forward(self, lq):
            return super().forward(lq)[..., ::2, ::2]

    student = Same()
    history = None if "negatives" in settings else HistoryModel(student, interval=1)
    dckd = DCKDLoss(student, encoder, history=history, **settings)
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            lq = torch.rand(1, 3, 16, 16)
            dckd(student(lq), torch.rand_like(lq), lq).backward()
            optimizer.step()
