"""`python -m dckd_losses.weights`."""

import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub import complete_checkpoint
from safetensors.torch import save_file

from dckd_losses import weights
from dckd_losses.weights import SOURCES, load
from dckd_losses.weights.__main__ import main
from dckd_losses.weights.files import write_safetensors


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("DCKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(capsys):
    """Runs a command that is to succeed; what it printed."""

    def run(*arguments):
        code, said = main([str(a) for a in arguments]), capsys.readouterr()
        assert (code, said.err) == (0, "")
        return said.out

    return run


@pytest.fixture
def refused(capsys):
    """Runs a command that is to fail; the one line that it said."""

    def refused(*arguments):
        code, said = main([str(a) for a in arguments]), capsys.readouterr()
        assert (code, said.out) == (1, "")
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        return said.err

    return refused


@pytest.fixture
def checkpoint(tensors, tmp_path):
    return complete_checkpoint(tensors, tmp_path / "last.ckpt")


@pytest.fixture
def converted(tensors, tmp_path):
    write_safetensors(tensors, tmp_path / "encoder.safetensors", made="here")
    return tmp_path / "encoder.safetensors"


def test_list(run, home):
    said = run("list")
    assert all(name in said for name in weights.NAMES)
    for source in SOURCES.values():
        for part in (source.url, *source.elsewhere, source.size, source.sha256 or "not published"):
            assert part in said
    path = home / "vqgan-f16-1024.safetensors"
    assert f"not fetched yet; belongs to {path}" in said
    home.mkdir()
    path.touch()
    path.with_suffix(".sha256").write_text("abc  last.ckpt\n")
    assert f"vqgan-f16-1024: here {path}" in run("list")
    assert "sha256 abc, recorded by the first fetch" in run("list")


def test_convert(run, checkpoint, tensors, tmp_path):
    out = tmp_path / "new" / "encoder.safetensors"
    said = run("convert", checkpoint, out)
    assert "of 32, 32, 32, 64, 64 channels" in said
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in said
    seen = load(out)
    assert seen.keys() == tensors.keys()
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
def test_a_clean_install_is_enough(checkpoint, tmp_path):
    """Without NumPy, which torch does not need, and without what wrote the checkpoint."""
    code = f"""
import sys
for name in ("numpy", "omegaconf", "pytorch_lightning", "lightning", "taming", "torchvision"):
    sys.modules[name] = None
from dckd_losses import VQGANEncoder
from dckd_losses.weights.__main__ import main
assert main(["convert", {str(checkpoint)!r}, "encoder.safetensors"]) == 0
for name in ("encoder.safetensors", "compact", {str(checkpoint)!r}):
    assert main(["info", name]) == main(["verify", name]) == 0
    VQGANEncoder.from_pretrained(name)
assert main(["list"]) == 0
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


def test_convert_refuses(refused, checkpoint, tensors, tmp_path, home):
    out = tmp_path / "out.safetensors"
    assert "must be named *.safetensors, got" in refused("convert", checkpoint, tmp_path / "a.ckpt")
    assert "nowhere.ckpt: no such file" in refused("convert", tmp_path / "nowhere.ckpt", out)
    del tensors["encoder.conv_in.bias"]
    torch.save(tensors, tmp_path / "less.ckpt")
    assert "encoder.conv_in.bias" in refused("convert", tmp_path / "less.ckpt", out)
    named = home / "vqgan-f16-1024.safetensors"
    assert "last.ckpt is not vqgan-f16-1024: it has" in refused("convert", checkpoint, named)
    assert not out.exists()
    assert not home.exists()


def test_info(run, converted):
    said = run("info", converted)
    lines = {line.split(None, 1)[0]: line.split(None, 1)[1] for line in said.splitlines()}
    count = 439_904
    assert sum(t.numel() for t in load(converted).values()) == count
    assert lines["sha256"] == hashlib.sha256(converted.read_bytes()).hexdigest()
    assert lines["levels"] == "5 of 32, 32, 32, 64, 64 channels, stem 32"
    assert lines["blocks"] == "1 a level"
    assert lines["attention"] == "on level 5 and in the middle"
    assert lines["codes"] == "11 of 6 channels, from 8 latent ones"
    assert lines["parameters"] == f"{count:,}"
    assert "metadata      made: here" in said


def test_info_and_verify_know_the_names_that_list_shows(run, refused, tensors, home, monkeypatch):
    assert f"file          {weights.COMPACT}" in run("info", "compact")
    assert f"{weights.COMPACT}: good" in run("verify", "compact")
    path = home / "vqgan-f16-1024.safetensors"
    for command in ("info", "verify"):
        said = refused(command, "vqgan-f16-1024")
        assert f"{path}: no such file; 'fetch vqgan-f16-1024' makes it" in said
    home.mkdir()
    write_safetensors(tensors, path)
    assert f"file          {path}" in run("info", "vqgan-f16-1024")
    assert "is not vqgan-f16-1024" in refused("verify", "vqgan-f16-1024")
    assert "vqgan-f16: no such file" in refused("info", "vqgan-f16")


def test_verify(run, refused, converted, checkpoint, tensors, tmp_path):
    assert "tensors as they were written" in run("verify", converted)
    assert "not one that is published" in run("verify", checkpoint)
    save_file(tensors, tmp_path / "foreign.safetensors")
    assert "without a digest" in run("verify", tmp_path / "foreign.safetensors")
    data = bytearray(converted.read_bytes())
    data[-1] ^= 1
    converted.write_bytes(data)
    assert "it was written as" in refused("verify", converted)
    assert "two lines: no such file" in refused("verify", "two\nlines")


@pytest.fixture
def promise(architecture, monkeypatch):
    """Lets a name promise a checkpoint of the test's, of this sha256."""

    def promise(name, sha256):
        source = weights.Source("a/b", "last.ckpt", "1 MB", sha256, architecture, ())
        monkeypatch.setitem(SOURCES, name, source)

    return promise


def test_verify_holds_a_name_against_what_it_promises(
    run, refused, tensors, tmp_path, promise, home
):
    path = tmp_path / "vqgan-f16-16384.safetensors"
    write_safetensors(tensors, path, original_sha256="0" * 64)
    assert "is not vqgan-f16-16384" in refused("verify", path)
    promise("vqgan-f16-16384", "1" * 64)
    assert re.search("sha256 0{64}; that of vqgan-f16-16384 is 1{64}", refused("verify", path))
    promise("vqgan-f16-16384", "0" * 64)
    assert "made from the checkpoint of" in run("verify", path)
    promise("vqgan-f16-16384", None)
    home.mkdir()
    (home / "vqgan-f16-16384.sha256").write_text("2" * 64)  # of the first fetch
    assert "that of vqgan-f16-16384 is 222" in refused("verify", path)


def test_convert_onto_a_name_takes_its_published_checkpoint_alone(
    run, refused, checkpoint, tmp_path, promise
):
    named = tmp_path / "vqgan-f16-16384.safetensors"
    seen = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    promise("vqgan-f16-16384", "1" * 64)
    said = refused("convert", checkpoint, named)
    assert re.search(rf"last\.ckpt \([\d,]+ bytes\): sha256 is {seen}, expected 1", said)
    assert not named.exists()
    run("convert", checkpoint, tmp_path / "other.safetensors")
    promise("vqgan-f16-16384", seen)
    run("convert", checkpoint, named)
    assert "made from the checkpoint of" in run("verify", named)
    assert f"{seen}, vqgan-f16-16384" in run("verify", checkpoint)


def test_fetch(run, refused, checkpoint, promise, monkeypatch, home):
    asked = []

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    promise("vqgan-f16-1024", None)
    for _ in range(2):
        said = run("fetch", "vqgan-f16-1024")
        assert said.startswith(f"{home / 'vqgan-f16-1024.safetensors'}: good\n")
    assert asked == [("a/b", "last.ckpt", "main")]
    assert "embedded, nothing to fetch" in run("fetch", "compact")
    said = refused("fetch", "vqgan")
    assert "unknown weights 'vqgan': expected one of compact, vqgan-f16-1024" in said


@pytest.mark.slow
def test_as_a_module_it_warns_of_nothing_and_tells_errors_in_one_line(tmp_path):
    """In a process of its own: as a user runs it, offline and with nothing there."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONWARNINGS": "error::RuntimeWarning",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "dckd_losses.weights", "fetch", "vqgan-f16-1024"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert "958 MB" in ended.stderr


def test_a_name_beyond_the_terminals_encoding_is_printed(converted, tmp_path, monkeypatch):
    path = converted.rename(tmp_path / "\xfc.safetensors")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["verify", str(path)]) == 0
    assert rb"\xfc.safetensors: good" in out.buffer.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_full_disk_under_the_output_is_one_line(capfd, monkeypatch):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        assert main(["list"]) == 1
    assert capfd.readouterr().err == "error: [Errno 28] No space left on device\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    assert "pipe.pt: is no regular file" in refused("verify", tmp_path / "pipe.pt")
    assert "is no regular file" in refused("convert", tmp_path / "pipe.pt", "x.safetensors")


def test_a_home_folder_that_cannot_be_known_is_told(refused, monkeypatch):
    monkeypatch.setenv("DCKD_HOME", "~no_such_user_here/x")
    assert "Set DCKD_HOME to another folder" in refused("list")
