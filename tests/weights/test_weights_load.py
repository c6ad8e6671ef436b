"""A converted file is mapped, not copied, and what is made of it owns or shares nothing else."""

import copy
import gc
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dckd_losses import DMMLoss, VQGANEncoder
from dckd_losses.network import VQGANNetwork
from dckd_losses.weights import F16, load
from dckd_losses.weights.files import write_safetensors

MAPS = Path("/proc/self/maps")
linux = pytest.mark.skipif(not MAPS.exists(), reason="looks into /proc")


def maps_of(path):
    """Where a file is mapped into this process."""
    lines = [line.split() for line in MAPS.read_text().splitlines() if line.endswith(str(path))]
    return [range(*(int(end, 16) for end in span.split("-"))) for span, *_ in lines]


def shows(path, address):
    return any(address in part for part in maps_of(path))


@pytest.fixture
def path(tensors, tmp_path):
    write_safetensors(tensors, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def addresses(encoder):
    return [p.data_ptr() for p in encoder.network.parameters()]


@linux
def test_a_file_is_mapped_not_copied_and_given_back(path):
    first, second = VQGANEncoder.from_pretrained(path), DMMLoss(path).encoder
    for encoder in (first, second):
        assert all(shows(path, p.data_ptr()) for p in encoder.network.parameters())
    del encoder, first, second
    gc.collect()
    assert not maps_of(path)


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_a_file_replaced_as_a_whole_leaves_the_living_alone(tensors, path, images):
    x, encoder = images(1, 3, 32, 32), VQGANEncoder.from_pretrained(path)
    before = encoder(x).code_logits
    write_safetensors({name: tensor + 1 for name, tensor in tensors.items()}, path)
    assert torch.equal(encoder(x).code_logits, before)
    other = VQGANEncoder.from_pretrained(path)
    assert torch.equal(other.network.quant_conv.weight, tensors["quant_conv.weight"] + 1)
    path.unlink()
    assert torch.equal(encoder(x).code_logits, before)


def test_files_that_others_wrote_are_copied(tensors, tmp_path, images):
    """Whoever wrote them may cut them or write into them; a digest is what ours are told by."""
    path = tmp_path / "foreign.safetensors"
    save_file(tensors, path)
    x, encoder = images(1, 3, 32, 32), VQGANEncoder.from_pretrained(path)
    before = encoder(x).code_logits
    path.write_bytes(b"")
    assert torch.equal(encoder(x).code_logits, before)


def test_half_precision_is_copied_into_float32(tensors, tmp_path):
    path = tmp_path / "half.safetensors"
    write_safetensors({k: v.half() for k, v in tensors.items()}, path)
    one, two = load(path), load(path)
    assert {t.dtype for t in one.values()} == {torch.float32}
    assert one["quant_conv.weight"].data_ptr() != two["quant_conv.weight"].data_ptr()


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda encoder: pickle.loads(pickle.dumps(encoder)),
        lambda encoder: VQGANEncoder(copy.deepcopy(encoder.network)),
    ],
)
def test_copies_are_separate(path, copied):
    alive = VQGANEncoder.from_pretrained(path)
    before = path.read_bytes()
    other = copied(VQGANEncoder.from_pretrained(path))
    state = {k: torch.zeros_like(v) for k, v in other.network.state_dict().items()}
    other.network.load_state_dict(state)
    assert not any(p.any() for p in other.network.parameters())
    assert torch.equal(alive.network.quant_conv.weight, load(path)["quant_conv.weight"])
    assert path.read_bytes() == before


def test_moves_are_separate(path):
    alive, other = VQGANEncoder.from_pretrained(path), VQGANEncoder.from_pretrained(path)
    other.double()
    assert other.network.quant_conv.weight.dtype == torch.float64
    other.float()
    assert not set(addresses(alive)) & set(addresses(other))
    assert torch.equal(alive.network.quant_conv.weight, other.network.quant_conv.weight)


def test_writing_reaches_no_file(path):
    before = path.read_bytes()
    load(path)["quant_conv.weight"].zero_()
    assert path.read_bytes() == before


def test_one_tensor_is_saved_without_the_others(path):
    file = io.BytesIO()
    torch.save(load(path)["quant_conv.weight"], file)
    assert len(file.getvalue()) < path.stat().st_size / 100


def test_workers_may_share_it(path):
    alive, other = VQGANEncoder.from_pretrained(path), VQGANEncoder.from_pretrained(path)
    other.network.share_memory()
    assert other.network.quant_conv.weight.is_shared()
    for a, b in zip(alive.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_the_first_load_of_a_process_imports_no_compiler(tmp_path):
    """It would take longer than all the rest."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_safetensors(VQGANNetwork(F16).state_dict(), tmp_path / "f16.safetensors")
    code = f"""
import sys, time
from dckd_losses import VQGANEncoder
known, start = set(sys.modules), time.process_time()
VQGANEncoder.from_pretrained({str(tmp_path / "f16.safetensors")!r})
assert time.process_time() - start < 1  # second of computing, on a busy machine too
assert not {{"sympy", "torch._inductor"}} & (set(sys.modules) - known)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
