"""The loss as a CUDA graph, with a stand-in that runs what would be captured."""

import copy

import pytest
import torch

from dckd_losses import DCKDLoss


@pytest.fixture
def batch(images):
    """student_out, teacher_out, lq."""
    return images(2, 3, 16, 20), images(2, 3, 16, 20), images(2, 3, 8, 10)


@pytest.fixture
def captured(monkeypatch):
    """What was captured: function and samples; it is run anew in place of a replay."""
    seen = []

    def make_graphed_callables(function, samples):
        seen.append((function, samples))
        for _ in range(3):  # warming up and capturing
            function(*samples).backward()
        return function

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return seen


def test_a_graph_gives_what_a_call_gives(student, encoder, batch, captured):
    dckd = DCKDLoss(student, encoder)
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


def test_a_graph_takes_no_bad_images(student, encoder, batch, captured):
    dckd = DCKDLoss(student, encoder)
    with pytest.raises(ValueError, match="teacher_out must lie"):
        dckd.graphed(batch[0], 255 * batch[1], batch[2])
    assert not captured


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(student, encoder, batch):
    dckd = DCKDLoss(student, encoder)
    with pytest.raises(RuntimeError, match=r"cannot be captured as a CUDA graph .* is on cpu"):
        dckd.graphed(*batch)
