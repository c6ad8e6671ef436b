"""How many kernels one loss launches on a GPU, counted without one."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="triton is not installed")

import triton

from dckd_losses import DCKDLoss, VQGANEncoder, layers
from dckd_losses.encoder.vqgan import CUDA_PIXELS_IN_FLIGHT
from dckd_losses.network import VQGANNetwork
from dckd_losses.ops import conv, distances, norm
from dckd_losses.weights import F16

NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view",
    "promote_types",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts operations that compute: neither views nor allocations."""

    def __init__(self):
        super().__init__()
        self.by_name = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        alias = [result.alias_info for result in function._schema.returns]
        if name not in NO_KERNEL and not any(a and not a.is_write for a in alias):
            self.by_name[name] += 1
        result = function(*args, **(kwargs or {}))
        if name == "convolution":
            self.by_name["bias"] += args[2] is not None  # which cuDNN adds afterwards
            if args[1].is_contiguous(memory_format=torch.channels_last):  # and so is cuDNN's result
                return result.contiguous(memory_format=torch.channels_last)
        return result


def tf32_proof(x, weight):
    """As `conv.tf32_proof` on CUDA."""
    (x_high, x_low), (high, low) = conv._split(x), conv._split(weight)
    return torch.cat([x_high, x_low, x_high], 1), torch.cat([high, high, low], 1)


@pytest.fixture
def launches(monkeypatch):
    """Counts on meta tensors what CUDA would compute; Triton's kernels are not carried out."""
    counted = Launches()

    def count(kernel, *_, **__):
        counted.by_name[kernel.__name__] += 1

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", count)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not for meta tensors
    for module in (norm, distances):
        monkeypatch.setattr(module, "use_triton", lambda device, dtype: True)
    monkeypatch.setattr(layers, "tf32_proof", tf32_proof)
    return counted


def test_at_most_1200_launches_a_loss(launches):
    """Of 16 images of 192x192 with the paper's encoder in float16, all else by default."""
    size = 192
    with torch.device("meta"):
        network = VQGANNetwork(F16)
        student = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
        student_out, teacher_out = torch.empty(2, 16, 3, size, size)
        lq = torch.empty(16, 3, size // 2, size // 2)
    chunk = CUDA_PIXELS_IN_FLIGHT["stream"] // size**2
    encoder = VQGANEncoder(network, precision="float16", chunk=chunk)
    dckd = DCKDLoss(student, encoder).to("meta")
    dckd._values_checked = True  # meta tensors have none
    with launches:
        dckd(student_out.requires_grad_(), teacher_out, lq).backward()
    print(launches.by_name.total(), launches.by_name.most_common())
    assert launches.by_name["normalise_kernel"] >= 26 + 2 * 23, "the student, the others twice"
    assert launches.by_name["accumulate_kernel"] >= 5
    assert launches.by_name.total() <= 1200
