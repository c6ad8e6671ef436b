"""However images pass through the encoder, the losses and their gradients are the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import relative

from dckd_losses import DCKDLoss


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 5),
    size=st.tuples(st.integers(16, 41), st.integers(16, 41)),
    count=st.integers(1, 6),
    mode=st.sampled_from(["stream", "twopass"]),
    chunk=st.none() | st.integers(1, 4),
    weights=st.sampled_from([(0.1, 0.05), (0.1, 0.0), (0.0, 0.05)]),
)
def test_fused_equals_plain(make_encoder, seed, batch, size, count, mode, chunk, weights):
    generator = torch.Generator().manual_seed(seed)
    shape = 2 + count, batch, 3, *size
    student_out, teacher_out, *negatives = torch.rand(shape, generator=generator).double()
    negatives, results = torch.stack(negatives), []
    for settings in ({"impl": "plain"}, {"impl": "fused", "mode": mode, "chunk": chunk}):
        dckd = DCKDLoss(
            torch.nn.Identity(),
            make_encoder(**settings),
            dcr_weight=weights[0],
            dmm_weight=weights[1],
            negatives=lambda lq: negatives,
        ).double()
        x = student_out.clone().requires_grad_()
        loss = dckd(x, teacher_out, teacher_out)
        loss.backward()
        results.append((loss.item(), x.grad, dckd.last))
    (loss, gradient, last), (expected, slope, wanted) = results[1], results[0]
    assert loss == pytest.approx(expected, rel=1e-12)
    assert last.keys() == wanted.keys()
    assert all(relative(last[name], wanted[name]) < 1e-12 for name in last)
    if min(size) >= 32:  # below, the last norm sees few numbers and its gradient is ill-conditioned
        assert relative(gradient, slope) < 1e-11
