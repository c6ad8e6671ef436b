"""What the fused paths hold: between forward and backward, at the peak, and over many steps."""

import gc
import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dckd_losses import DCKDLoss

SIZE = 48
IMAGE = 3 * SIZE * SIZE * 4  # bytes
TENSORS = (torch.Tensor, torch.nn.Parameter)  # not those with which torch.compile traces


@pytest.fixture
def step(make_encoder, images):
    """A loss, and a step's images: a batch of some images with so many negatives."""

    def make(batch, count, size=SIZE, **settings):
        student_out, teacher_out, *negatives = images(2 + count, batch, 3, size, size)
        negatives = torch.stack(negatives)
        encoder = make_encoder(**settings)
        dckd = DCKDLoss(torch.nn.Identity(), encoder, negatives=lambda lq: negatives)
        return dckd, (student_out, teacher_out, student_out)

    return make


def saved_bytes(dckd, batch):
    """Bytes that tensors hold between forward and backward, weights and given images aside."""
    gc.collect()
    known = {p.untyped_storage().data_ptr() for p in dckd.encoder.network.parameters()}
    known |= {x.untyped_storage().data_ptr() for x in batch}
    held = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return x

    student_out = batch[0].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        dckd(student_out, *batch[1:])
    return sum(held.values())


def test_saves_a_fraction_of_what_plain_saves(step):
    fused, plain = (saved_bytes(*step(1, 5, impl=impl)) for impl in ("fused", "plain"))
    assert fused < plain / 3


def test_saved_bytes_do_not_grow_with_the_negatives(step):
    assert saved_bytes(*step(1, 1, chunk=1)) == saved_bytes(*step(1, 40, chunk=1))


def peak_bytes(dckd, batch):
    """Bytes that are allocated at most in forward and backward, beyond what was there before."""
    dckd(*batch)  # what is made on first use is no growth
    x = batch[0].clone().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        dckd(x, *batch[1:]).backward()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes))


def test_peak_does_not_grow_with_the_negatives(step):
    few, many = (peak_bytes(*step(1, count, chunk=1)) for count in (5, 41))
    assert many < 1.01 * few


def test_peak_of_two_passes_grows_with_the_gradient_only(step):
    few, many = (peak_bytes(*step(batch, 2, mode="twopass", chunk=1)) for batch in (2, 8))
    allowed = 3 * (8 - 2) * IMAGE  # its parts, the whole, and what backward hands on
    assert many - few < allowed + 0.01 * few


@pytest.mark.parametrize(
    "steps", [10, pytest.param(200, marks=pytest.mark.slow)], ids="{} steps".format
)
@pytest.mark.parametrize(("mode", "precision"), [("stream", "float32"), ("twopass", "float16")])
def test_memory_does_not_grow_over_steps(step, mode, precision, steps):
    dckd, batch = step(1, 2, 16, mode=mode, precision=precision)
    alive = []
    for number in range(steps):
        student_out = batch[0].clone().requires_grad_()
        dckd(student_out, *batch[1:]).backward()
        if number in (2, steps - 1):
            gc.collect()
            sizes = [x.nbytes for x in gc.get_objects() if type(x) in TENSORS]
            alive.append((len(sizes), sum(sizes)))
    assert alive[0] == alive[1]
