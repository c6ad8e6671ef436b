"""Fetching from a server that stands in for the Hugging Face Hub."""

import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hub import COMMIT, Hub, complete_checkpoint
from huggingface_hub import constants, file_download

from dckd_losses import VQGANEncoder, weights
from dckd_losses.weights import load
from dckd_losses.weights.files import read_safetensors
from dckd_losses.weights.registry import recorded

NAME, REPOSITORY, FILE = "vqgan-f16-1024", "someone/vqgan", "folder/last.ckpt"
ON_HUB = f"{REPOSITORY}/{FILE}"


@pytest.fixture
def checkpoint(tensors, tmp_path):
    return complete_checkpoint(tensors, tmp_path / "last.ckpt")


@pytest.fixture
def hub(checkpoint):
    hub = Hub()
    hub.files[ON_HUB] = checkpoint.read_bytes()
    yield hub
    hub.stop()


@pytest.fixture
def source(architecture):
    return weights.Source(
        REPOSITORY, FILE, "1 MB", None, architecture, ("https://elsewhere.example/last.ckpt",)
    )


@pytest.fixture
def home(hub, source, monkeypatch, tmp_path):
    """DCKD_HOME and the Hub's cache in a folder of the test, one known name on the stand-in."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for owner in (constants, file_download):  # old versions of the library have it in both
        monkeypatch.setattr(owner, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("DCKD_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(weights.SOURCES, NAME, source)
    return tmp_path / "home"


@pytest.fixture
def promise(home, source, monkeypatch):
    """Changes what is known of the name."""

    def promise(**facts):
        monkeypatch.setitem(weights.SOURCES, NAME, dataclasses.replace(source, **facts))

    return promise


def cached(tmp_path):
    """What the Hub's cache has of the repository, its notes and what it goes on from aside."""
    folder = tmp_path / "hub" / "models--someone--vqgan"
    files = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    notes = ("refs", ".no_exist")
    whole = [path for path in files if path.suffix != ".incomplete"]
    return [path for path in whole if path.relative_to(folder).parts[0] not in notes]


def test_the_first_use_fetches_and_converts_and_later_ones_only_read(
    home, hub, tensors, checkpoint, images, monkeypatch
):
    first = VQGANEncoder.from_pretrained(NAME)
    assert hub.gets == [ON_HUB]
    path = home / f"{NAME}.safetensors"
    assert load(path).keys() == tensors.keys()
    assert path.stat().st_size < checkpoint.stat().st_size
    hub.stop()
    asked = len(hub.headers)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    x = images(1, 3, 32, 32)
    expected = VQGANEncoder.from_pretrained(checkpoint)(x)
    for encoder in (first, VQGANEncoder.from_pretrained(NAME)):
        seen = encoder(x)
        assert torch.equal(seen.code_logits, expected.code_logits)
        assert all(map(torch.equal, seen.levels, expected.levels))
    assert len(hub.headers) == asked


def test_it_says_what_it_was_made_from_and_records_an_unpublished_hash(home, hub, checkpoint):
    path = weights.find(NAME)
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    _, metadata = read_safetensors(path)
    assert metadata["original"] == f"https://huggingface.co/{REPOSITORY}/resolve/main/{FILE}"
    assert metadata["original_sha256"] == recorded(NAME) == sha256
    assert metadata["original_bytes"] == str(checkpoint.stat().st_size)
    names = {p.name for p in home.iterdir()}
    assert names == {f"{NAME}.safetensors", f"{NAME}.sha256"}


def test_a_pinned_revision_is_the_one_that_is_fetched_and_deleted(hub, promise, tmp_path):
    weights.find(NAME)
    assert set(hub.revisions) == {"main"}
    weights.fetch(NAME, delete_original=True).unlink()
    hub.revisions.clear()
    promise(revision=COMMIT)
    path = weights.find(NAME)
    assert set(hub.revisions) == {COMMIT}
    _, metadata = read_safetensors(path)
    assert metadata["original"].endswith(f"/{REPOSITORY}/resolve/{COMMIT}/{FILE}")
    weights.fetch(NAME, delete_original=True)
    assert cached(tmp_path) == []


def test_another_checkpoint_than_the_recorded_one_is_refused(home, hub, tensors, tmp_path):
    weights.fetch(NAME, delete_original=True).unlink()
    other = complete_checkpoint({k: v + 1 for k, v in tensors.items()}, tmp_path / "other.ckpt")
    hub.files[ON_HUB] = other.read_bytes()
    was = recorded(NAME)
    with pytest.raises(RuntimeError, match=rf"expected {was} \(recorded in .*{NAME}\.sha256"):
        weights.find(NAME)
    assert not (home / f"{NAME}.safetensors").exists()
    assert recorded(NAME) == was
    (home / f"{NAME}.sha256").write_text("")  # as a full disk leaves it: nothing is recorded
    weights.find(NAME)
    assert recorded(NAME) == hashlib.sha256(other.read_bytes()).hexdigest()


def test_token_and_library_settings_are_the_hubs_own(home, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    weights.find(NAME)
    assert hub.headers[0]["authorization"] == "Bearer hf_secret"


class TestLeavesNothingBehind:
    """Whatever is wrong is told, is kept nowhere, and does not spoil the next try."""

    @pytest.fixture(autouse=True)
    def then_works(self, home, hub, promise, checkpoint, tmp_path):
        yield
        assert cached(tmp_path) == []
        assert not home.exists() or list(home.iterdir()) == []
        hub.files[ON_HUB] = checkpoint.read_bytes()
        hub.promised = None
        promise()
        VQGANEncoder.from_pretrained(NAME)

    def refused(self, message):
        with pytest.raises(RuntimeError, match=message) as caught:
            VQGANEncoder.from_pretrained(NAME)
        assert FILE in str(caught.value)
        return str(caught.value)

    def test_another_hash(self, promise, checkpoint):
        promise(sha256="0" * 64)
        seen = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        size = f"{checkpoint.stat().st_size:,} bytes"
        self.refused(rf"last\.ckpt \({size}\): sha256 is {seen}, expected 0000")

    @pytest.mark.parametrize("share", [0.5, 0.0, None])
    def test_a_part_of_the_file_or_a_page_instead(self, hub, checkpoint, share):
        data = checkpoint.read_bytes()
        part = b"<html>sign in</html>" if share is None else data[: int(share * len(data))]
        hub.files[ON_HUB] = part
        self.refused("cut short, altered")

    def test_a_download_that_ends_early(self, hub, checkpoint):
        hub.promised = checkpoint.stat().st_size + 1000
        self.refused(r"cannot be fetched \(OSError: Consistency check")

    def test_a_missing_file(self, hub):
        del hub.files[ON_HUB]
        self.refused("cannot be fetched .*404")

    def test_another_network(self, promise, architecture):
        promise(architecture=dataclasses.replace(architecture, codes=1024))
        self.refused(f"last.ckpt is not {NAME}: it has codes 11 where {NAME} has 1024")


def test_without_a_network_it_says_which_file_to_put_where(home, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(RuntimeError) as caught:
        weights.find(NAME)
    for part in (
        str(home / f"{NAME}.safetensors"),
        "1 MB",
        f"https://huggingface.co/{REPOSITORY}/resolve/main/{FILE}",
        "https://elsewhere.example/last.ckpt",
        "python -m dckd_losses.weights convert",
        "DCKD_HOME",
    ):
        assert part in str(caught.value)


def test_a_checkpoint_in_the_hubs_cache_needs_no_network(home, hub, monkeypatch):
    weights.find(NAME).unlink()
    hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    VQGANEncoder.from_pretrained(NAME)
    assert len(hub.gets) == 1


def test_a_damaged_file_in_the_hubs_cache_is_fetched_anew_by_the_next_try(home, hub, tmp_path):
    weights.find(NAME).unlink()
    blob = next((tmp_path / "hub").rglob("last.ckpt")).resolve()
    blob.write_bytes(blob.read_bytes()[:-5000])
    with pytest.raises(RuntimeError, match="has been removed: the next try fetches it anew"):
        weights.find(NAME)
    VQGANEncoder.from_pretrained(NAME)
    assert len(hub.gets) == 2


def test_what_cannot_be_removed_is_named(home, hub, tmp_path, monkeypatch):
    hub.files[ON_HUB] = b"<html>"

    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr("dckd_losses.weights.registry._remove", refuse)
    with pytest.raises(RuntimeError, match=r"cannot be removed \(read-only\): remove .*last\.ckpt"):
        weights.find(NAME)


def test_the_original_can_be_deleted_at_once_or_later(home, hub, tmp_path):
    weights.fetch(NAME, delete_original=True)
    assert cached(tmp_path) == []
    (home / f"{NAME}.safetensors").unlink()
    weights.fetch(NAME)
    assert cached(tmp_path) != []
    weights.fetch(NAME, delete_original=True)
    assert cached(tmp_path) == []
    weights.fetch(NAME, delete_original=True)  # nothing left to delete
    VQGANEncoder.from_pretrained(NAME)
    assert len(hub.gets) == 2


def test_deleting_the_original_takes_every_revisions_link_and_nothing_else(home, tmp_path):
    weights.find(NAME)
    link = next((tmp_path / "hub").rglob("last.ckpt"))
    if not link.is_symlink():
        pytest.skip("this system's cache has no links")
    snapshots = link.parents[2]
    same, neighbour = snapshots / "other" / FILE, link.with_name("model.yaml")
    same.parent.mkdir(parents=True)
    same.symlink_to(os.path.relpath(link.resolve(), same.parent))
    neighbour.write_text("kept")
    weights.fetch(NAME, delete_original=True)
    assert not list((tmp_path / "hub").rglob("last.ckpt"))
    assert neighbour.read_text() == "kept"


def test_a_cache_without_links(home, hub, tmp_path, monkeypatch):
    """As on Windows, where links need a privilege."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS_WARNING", True)
    weights.fetch(NAME, delete_original=True)
    assert cached(tmp_path) == []


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_told_before_a_gigabyte_is_fetched(
    home, hub, folder, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DCKD_HOME", str(tmp_path / folder))
    with pytest.raises(RuntimeError, match=r"cannot be made .*; set DCKD_HOME to a folder that"):
        weights.find(NAME)
    assert hub.gets == []


def test_a_full_disk_costs_no_second_download(home, hub, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dckd_losses.weights.registry.write_safetensors", full)
        with pytest.raises(RuntimeError, match=r"cannot be made .*No space left"):
            weights.find(NAME)
    assert list(home.iterdir()) == []
    weights.find(NAME)
    assert len(hub.gets) == 1


def test_a_home_that_has_the_file_need_not_be_writable(home, hub, monkeypatch):
    weights.find(NAME)

    def read_only(*_):
        raise PermissionError("no lock here")

    monkeypatch.setattr("filelock.FileLock", read_only)
    VQGANEncoder.from_pretrained(NAME)


def test_threads_fetch_once(home, hub, monkeypatch):
    hub.delay = 0.3
    start, seen = threading.Barrier(4), []

    def load():
        start.wait()
        seen.append(weights.fetch(NAME, delete_original=True))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert len(hub.gets) == 1


@pytest.mark.slow
@pytest.mark.parametrize("silent", ["HEAD", "GET"])
def test_a_silent_server_is_given_up(home, hub, silent, monkeypatch):
    """It takes every connection and says nothing, or begins to send the file and stops."""
    hub.silent = silent
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"cannot be fetched \(\w*Timeout.*DCKD_HOME"):
        weights.find(NAME)
    assert time.monotonic() - start < 15
    assert list(home.iterdir()) == []
    hub.silent = None
    VQGANEncoder.from_pretrained(NAME)


def test_the_question_before_a_download_may_fail(home, hub, monkeypatch):
    """The download asks again, and more than once."""

    def refuse(*_, **__):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    VQGANEncoder.from_pretrained(NAME)


LOAD = f"""
import sys, pickle
from dckd_losses import VQGANEncoder, weights
weights.SOURCES[{NAME!r}] = pickle.loads(bytes.fromhex(sys.argv[1]))
print(VQGANEncoder.from_pretrained({NAME!r}).network.quant_conv.weight.sum().item())
"""


@pytest.mark.slow
def test_processes_fetch_once(hub, source, tensors, tmp_path):
    """By the environment alone, as ranks are started: one fetches, the others wait.

    The server takes longer than the time limit, but is never silent for so long.
    """
    hub.pace = 2.0
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "3",
        "TQDM_POSITION": "-1",  # the Hub's way to have its bar shown without a terminal
        "DCKD_HOME": str(tmp_path / "home"),
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        environment.pop(name, None)

    def ranks(count, **more):
        command = [sys.executable, "-c", LOAD, pickle.dumps(source).hex()]
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [
            subprocess.Popen(command, env={**environment, **more}, **settings) for _ in range(count)
        ]
        for process in started:
            out, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
            assert float(out) == pytest.approx(tensors["quant_conv.weight"].sum().item())
            yield error

    shown = list(ranks(3))
    assert hub.gets == [ON_HUB]
    assert sum("last.ckpt" in error for error in shown) == 1  # the Hub's progress bar
    names = {p.name for p in (tmp_path / "home").iterdir()}
    assert names == {f"{NAME}.safetensors", f"{NAME}.sha256"}
    hub.stop()
    list(ranks(1, HF_HUB_OFFLINE="1"))
