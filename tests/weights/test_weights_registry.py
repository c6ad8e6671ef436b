"""Named weights: where they are looked for, and what they promise."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dckd_losses import VQGANEncoder, weights
from dckd_losses.network import VQGANNetwork
from dckd_losses.weights.files import write_safetensors


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("DCKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)


def test_compact_is_what_its_card_says():
    path = weights.find("compact")
    assert path.stat().st_size <= 8 * 1024**2
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    encoder = VQGANEncoder.from_pretrained("compact")
    codes = encoder.network.architecture.codes
    perplexity = float(re.search(r"perplexity[^|]*\|\s*([\d.]+)", card)[1])
    assert perplexity >= codes / 4


def test_compact_uses_its_codes_on_photographs():
    """On photographs that it never saw: no collapsed codebook."""
    pytest.importorskip("skimage")
    from restoration.data.images import photographs
    from restoration.results.metrics import to_tensor

    encoder = VQGANEncoder.from_pretrained("compact")
    used = []
    for image in photographs("held_out").values():
        x = to_tensor(image).unfold(1, 96, 96).unfold(2, 96, 96)
        x = x.permute(1, 2, 0, 3, 4).reshape(-1, 3, 96, 96)
        used.append(encoder(x).code_logits.argmax(1).flatten())
    share = torch.bincount(torch.cat(used)) / len(torch.cat(used))
    perplexity = torch.special.entr(share).sum().exp()
    assert perplexity >= encoder.network.architecture.codes / 4


@pytest.fixture
def small(monkeypatch, architecture):
    """Lets both names promise an encoder of the test's size, and of other numbers of codes."""
    for name, codes in (("vqgan-f16-1024", 12), ("vqgan-f16-16384", 11)):
        promised = dataclasses.replace(architecture, codes=codes)
        source = dataclasses.replace(weights.SOURCES[name], architecture=promised)
        monkeypatch.setitem(weights.SOURCES, name, source)


def test_a_file_in_the_home_folder_needs_no_network(small, tensors, home, no_network):
    home.mkdir()
    write_safetensors(tensors, home / "vqgan-f16-16384.safetensors")
    encoder = VQGANEncoder.from_pretrained("vqgan-f16-16384")
    assert encoder.network.architecture.codes == 11


def test_a_file_in_the_home_folder_has_to_be_what_it_is_called(
    small, tensors, home, no_network, monkeypatch
):
    """By its header alone: nothing else is read."""
    monkeypatch.setattr(weights, "load", None)
    home.mkdir()
    write_safetensors(tensors, home / "vqgan-f16-1024.safetensors")
    message = r"f16-1024\.safetensors is not vqgan-f16-1024: it has codes 11 where .* has 12"
    with pytest.raises(RuntimeError, match=message):
        VQGANEncoder.from_pretrained("vqgan-f16-1024")


def test_both_names_promise_what_is_published():
    """29,298,176 in the encoder, 65,792 in quant_conv, 256 for each code."""
    for name, codes in (("vqgan-f16-1024", 1024), ("vqgan-f16-16384", 16384)):
        with torch.device("meta"):
            network = VQGANNetwork(weights.SOURCES[name].architecture)
        counts = [sum(p.numel() for p in part.parameters()) for part in network.children()]
        assert counts == [29_298_176, 65_792, 256 * codes]


def test_unknown_names_are_refused_with_the_known_ones():
    expected = "unknown encoder 'vqgan-f16': expected one of compact, vqgan-f16-1024, vqgan-f16-163"
    with pytest.raises(ValueError, match=expected):
        VQGANEncoder.from_pretrained("vqgan-f16")


def test_paths_stay_paths(tmp_path):
    for path in (Path("somewhere.ckpt"), tmp_path / "encoder", "folder/encoder"):
        assert weights.find(path) == Path(path)


@pytest.mark.parametrize("value", [None, ""])
def test_home_is_a_cache_folder_by_default(monkeypatch, value):
    monkeypatch.delenv("DCKD_HOME")
    if value is not None:
        monkeypatch.setenv("DCKD_HOME", value)
    assert weights.cache_dir() == Path.home() / ".cache" / "dckd-losses"


@pytest.mark.slow
def test_importing_touches_neither_network_nor_examples():
    code = (
        "import sys, socket; socket.socket.connect = None; import dckd_losses; "
        "bad = {'taming', 'lightning', 'torchvision', 'skimage', 'accelerate', 'restoration', "
        "'triton', 'huggingface_hub', 'filelock'} & set(sys.modules); assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
