"""Damaged files of weights are refused by name, or read as they were; nothing else comes out."""

import random
import struct
import time
from functools import partial

import pytest
import torch

from dckd_losses.weights import load, read_checkpoint
from dckd_losses.weights.files import write_safetensors

STATE = {
    "encoder.a": torch.linspace(-1, 1, 12).view(3, 4),
    "encoder.b": torch.arange(5.0).half(),
    "quant_conv.tied": torch.arange(6.0)[2:],
}
WRITERS = {
    "zip.pt": partial(torch.save, {"state_dict": STATE, "lr": 0.1, "module": torch.nn.ReLU()}),
    "old.pt": partial(torch.save, {"state_dict": STATE}, _use_new_zipfile_serialization=False),
    "digest.safetensors": partial(write_safetensors, STATE),
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one flip, cut, insertion or repetition, or a few of them."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3, 10])):
        i, j = rng.randrange(len(data) or 1), rng.randrange(len(data) or 1)
        kind = rng.randrange(6)
        if kind < 2 and data:
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[i : i + rng.choice([1, 4, 50, len(data)])]
        elif kind == 3:
            data[i:i] = rng.randbytes(rng.choice([1, 4, 50]))
        elif kind == 4:
            data[i:i] = data[j : j + rng.choice([1, 8, 64])]
        else:
            number = rng.choice([0, 2**31, 2**32 - 1])
            data[i : i + 4] = struct.pack("<I", number)
    return bytes(data)


@pytest.mark.parametrize("read", [load, read_checkpoint])
@pytest.mark.parametrize("name", WRITERS)
def test_damage_is_refused_or_changes_nothing(tmp_path, name, read):
    path, rng = tmp_path / name, random.Random(0)
    WRITERS[name](path)
    good, seconds, refused = path.read_bytes(), 0.0, 0
    for _ in range(100):
        path.write_bytes(damaged(good, rng))
        start = time.perf_counter()
        try:
            seen = read(path)
        except RuntimeError as error:
            refused += 1
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
        else:
            sound = name != "old.pt"  # whose numbers have no checksum
            digest = name != "digest.safetensors" or b'"tensors_sha256"' in path.read_bytes()
            if sound and digest:
                assert all(torch.equal(seen[key], STATE[key]) for key in seen.keys() & STATE.keys())
        seconds = max(seconds, time.perf_counter() - start)
    assert refused > 60
    assert seconds < 1


OTHERS = {
    "README.md": b"# A title\n\nand text\n" * 50,
    "page.ckpt": b"<html>404</html>",
    "page.safetensors": b"<html>404 not found</html>",
    "pointer.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
    "empty.pt": b"",
    "empty.safetensors": b"",
    "tar.pt": b"storages" + bytes(10_232),
    "list.ckpt": b"\x80\x02]K\x01a.",
    "proto.pt": b"\x80",
    "zip.pt": b"PK\x03\x04",
    "claims.safetensors": struct.pack("<Q", 1 << 40) + b"{}",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_are_told_in_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(OTHERS[name])
    size = f"{len(OTHERS[name]):,}"
    for read in (load, read_checkpoint):
        with pytest.raises(
            RuntimeError, match=rf"{name} \({size} bytes\) is cut .*: \w+ .*"
        ) as told:
            read(path)
        if name in ("README.md", "page.ckpt", "pointer.pt", "empty.pt", "tar.pt", "list.ckpt"):
            assert str(told.value).endswith("it is not a file of torch.save or safetensors")


def test_what_is_no_file(tmp_path):
    for read in (load, read_checkpoint):
        with pytest.raises(RuntimeError, match=r"nowhere\.ckpt: no such file"):
            read(tmp_path / "nowhere.ckpt")
        with pytest.raises(RuntimeError, match="is a folder"):
            read(tmp_path)


def test_names_in_a_pickle_take_no_memory_without_bound(tmp_path):
    """Each stands for a class, which takes a hundred times its name's length."""
    names = b"".join(b"c%x\nA\n0" % i for i in range(20_000))
    magic = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
    path = tmp_path / "names.pt"
    path.write_bytes(b"\x80\x02\x8a\x0a" + magic + b"." + b"\x80\x02" + names + b"N.")
    with pytest.raises(RuntimeError, match=r"names\.pt .*names more than 10000 things"):
        read_checkpoint(path)
