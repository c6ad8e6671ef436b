"""Checkpoints: whole or not at all, and only of the same settings."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from restoration.training import checkpoint

SETTINGS = {"scale": 2, "betas": (0.9, 0.99), "teacher": None}


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "c.pt", SETTINGS, {"step": 3, "weights": torch.arange(1000.0)})
    return tmp_path / "c.pt"


def test_content_comes_back(path):
    content = checkpoint.load(path, SETTINGS)
    assert content["step"] == 3
    assert torch.equal(content["weights"], torch.arange(1000.0))
    assert torch.load(path, weights_only=True)["content"]["step"] == 3, "torch can read it, too"


def test_differing_settings_are_all_named(path):
    now = {"scale": 3, "betas": (0.9, 0.99), "seed": 1}
    with pytest.raises(ValueError, match=r"c\.pt .*: scale was 2, is 3, seed was None, is 1$"):
        checkpoint.load(path, now)


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.8, 0.999])
def test_cut_and_altered_files_are_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    # benchmarks.tables says it too, which has no --resume
    message = r"c\.pt: cut short.*; once it is removed the run starts anew"
    with pytest.raises(RuntimeError, match=message):
        checkpoint.load(path, SETTINGS)
    altered = bytearray(whole)
    altered[int(share * len(whole))] ^= 1
    path.write_bytes(altered)
    with pytest.raises(RuntimeError, match=r"c\.pt: .*checksum"):
        checkpoint.load(path, SETTINGS)


@pytest.mark.parametrize("content", [{"step": 1}, [1, 2], torch.ones(3), {"settings": 3}])
def test_other_files_of_torch_are_refused(path, content):
    torch.save(content, path)
    with pytest.raises(RuntimeError, match=r"c\.pt: .*not a checkpoint"):
        checkpoint.load(path, SETTINGS)
    seal(path)
    with pytest.raises(RuntimeError, match=r"c\.pt: .*not a checkpoint"):
        checkpoint.load(path, SETTINGS)


def test_a_pickle_that_runs_something_is_refused(path):
    torch.save({"settings": "{}", "content": {"harm": Harm()}}, path)
    seal(path)
    with pytest.raises(
        RuntimeError, match=r"c\.pt: .*it holds more than tensors, numbers and text;"
    ):
        checkpoint.load(path, {})
    assert not Harm.done


def seal(path):
    """Append the digest that makes a file look unaltered."""
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())


class Harm:
    """Runs code when it is unpickled."""

    done = False

    def __reduce__(self):
        return setattr, (Harm, "done", True)


def test_checksum_sees_every_byte_and_any_layout():
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    other = image.copy()
    other[3, 5] ^= 1
    assert checkpoint.checksum([image]) != checkpoint.checksum([other])
    assert checkpoint.checksum([image[:, :5]]) == checkpoint.checksum([image[:, :5].copy()])
    assert checkpoint.checksum([torch.ones(3)]) == checkpoint.checksum([np.ones(3, np.float32)])


def test_the_file_itself_is_only_ever_replaced(path, monkeypatch):
    written = []
    monkeypatch.setattr(Path, "write_bytes", lambda file, data: written.append(file))
    monkeypatch.setattr(Path, "replace", lambda file, target: None)
    checkpoint.save(path, SETTINGS, {})
    assert [file.parent for file in written] == [path.parent]
    assert path not in written
    (path.parent / "link").symlink_to(path)
    checkpoint.write_whole(path.parent / "link", b"")
    assert written[1:] == [path.parent / "link"], "but links and devices are written to"
