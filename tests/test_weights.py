"""Named weights: where they are looked for, and what is said where they cannot be had."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dckd_losses import VQGANEncoder, weights
from dckd_losses.checkpoint import write_safetensors


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("DCKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the Hugging Face Hub: repository and file to a path, or to an error."""
    asked, answers = [], {}

    def download(repository, file):
        asked.append((repository, file))
        answer = answers[file]
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked, answers


FILE_1024 = "pretrained_maskgit/VQGAN/last.ckpt"
FILE_16384 = "vqgan/imagenet.ckpt"


def test_compact_is_embedded():
    path = weights.find("compact")
    assert path.is_file()
    assert path.stat().st_size <= 8 * 1024**2


def test_compact_is_a_vqgan_with_f16():
    levels, logits = VQGANEncoder.from_pretrained("compact")(torch.rand(1, 3, 64, 64))
    assert [level.shape[2] for level in levels] == [64, 32, 16, 8, 4]
    assert logits.shape[2:] == (4, 4)


def test_compact_is_what_its_card_says():
    path = weights.find("compact")
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    encoder = VQGANEncoder.from_pretrained("compact")
    codes = encoder.network.architecture.codes
    perplexity = float(re.search(r"perplexity[^|]*\|\s*([\d.]+)", card)[1])
    assert perplexity >= codes / 4


def test_compact_uses_its_codes_on_photographs():
    """On photographs that it never saw: no collapsed codebook."""
    from restoration.data import photographs
    from restoration.metrics import to_tensor

    encoder = VQGANEncoder.from_pretrained("compact")
    used = []
    for image in photographs("held_out").values():
        x = to_tensor(image).unfold(1, 96, 96).unfold(2, 96, 96)
        x = x.permute(1, 2, 0, 3, 4).reshape(-1, 3, 96, 96)
        used.append(encoder(x).code_logits.argmax(1).flatten())
    share = torch.bincount(torch.cat(used)) / len(torch.cat(used))
    perplexity = torch.special.entr(share).sum().exp()
    assert perplexity >= encoder.network.architecture.codes / 4


def test_named_weights_are_fetched_converted_and_then_only_read(tensors, home, hub, tmp_path):
    asked, answers = hub
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    answers[FILE_1024] = tmp_path / "last.ckpt"
    path = weights.find("vqgan-f16-1024")
    assert path == home / "vqgan-f16-1024.safetensors"
    assert asked == [("llvictorll/Maskgit-pytorch", FILE_1024)]
    seen = weights.read(path)
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)
    assert weights.find("vqgan-f16-1024") == path
    assert len(asked) == 1


def test_a_file_in_the_home_folder_needs_no_network(tensors, home, hub):
    home.mkdir()
    write_safetensors(tensors, home / "vqgan-f16-16384.safetensors")
    VQGANEncoder.from_pretrained("vqgan-f16-16384")
    assert not hub[0]


def test_another_hash_is_refused(home, hub, tmp_path):
    (tmp_path / "imagenet.ckpt").write_bytes(b"something else")
    hub[1][FILE_16384] = tmp_path / "imagenet.ckpt"
    with pytest.raises(RuntimeError, match=r"imagenet\.ckpt: sha256 is \w{64}, expected 845a6880"):
        weights.find("vqgan-f16-16384")
    assert not home.exists()


def test_a_broken_download_leaves_nothing(home, hub, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"<html>")
    hub[1][FILE_1024] = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match=r"last\.ckpt"):
        weights.find("vqgan-f16-1024")
    assert not home.exists() or not list(home.iterdir())


def test_without_a_network_it_says_what_to_put_where(home, hub):
    from huggingface_hub.errors import LocalEntryNotFoundError

    for error in (LocalEntryNotFoundError("offline"), ConnectionError("no route")):
        hub[1][FILE_1024] = error
        with pytest.raises(RuntimeError) as caught:
            weights.find("vqgan-f16-1024")
        for part in (str(home / "vqgan-f16-1024.safetensors"), FILE_1024, "958 MB", "DCKD_HOME"):
            assert part in str(caught.value)


def test_unknown_names_are_refused_with_the_known_ones():
    expected = "unknown encoder 'vqgan-f16': expected one of compact, vqgan-f16-1024, vqgan-f16-163"
    with pytest.raises(ValueError, match=expected):
        VQGANEncoder.from_pretrained("vqgan-f16")


def test_paths_stay_paths(tmp_path):
    for path in (Path("somewhere.ckpt"), tmp_path / "encoder", "folder/encoder"):
        assert weights.find(path) == Path(path)


def test_home_is_a_cache_folder_by_default(monkeypatch):
    monkeypatch.delenv("DCKD_HOME")
    assert weights.home() == Path.home() / ".cache" / "dckd-losses"


def test_importing_touches_neither_network_nor_examples():
    code = (
        "import sys, socket; socket.socket.connect = None; import dckd_losses; "
        "bad = {'taming', 'lightning', 'torchvision', 'skimage', 'accelerate', 'restoration', "
        "'triton'} & set(sys.modules); assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_sources():
    seen = {name: (s.repository, s.file, s.sha256) for name, s in weights.SOURCES.items()}
    assert seen == {
        "vqgan-f16-1024": ("llvictorll/Maskgit-pytorch", FILE_1024, None),
        "vqgan-f16-16384": (
            "pxlpshr/pytti-models",
            FILE_16384,
            "845a68805098cb666420d5db93df53f3a3b6dd443e6dd85c05759c5b998cd663",
        ),
    }
