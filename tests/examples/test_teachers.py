"""Trained teachers: files of every kind, URLs, names, and all that has to be refused."""

import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
from conftest import CANNOT_IMPORT
from restoration import networks
from restoration.networks import files
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("spandrel_extra_arches", exc_type=CANNOT_IMPORT)

NAME = "swinir-light"  # the smallest; any of the networks can be a teacher


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return networks.build(NAME, 2).eval()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCKD_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "teachers"


def load(path):
    return networks.open_network(str(path), 2, [NAME])


def basicsr(model, path):
    """With the moving average, which is preferred, beside the weights."""
    wrong = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    torch.save({"params": wrong, "params_ema": model.state_dict()}, path)


def parallel(model, path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)


def legacy(model, path):
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def tensors(model, path):
    save_file(model.state_dict(), path)


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        *((".pth", basicsr), (".ckpt", parallel), (".pth", legacy), (".pt", legacy)),
        *((".pt", basicsr), (".safetensors", tensors), (".safetensors", networks.save)),
    ],
)
def test_files_of_every_kind(model, tmp_path, suffix, write):
    path = tmp_path / f"teacher{suffix}"
    write(model, path)
    teacher, lq = load(path), torch.rand(1, 3, 8, 8)
    assert torch.equal(teacher(lq), model(lq))
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_masks_of_another_patch_size_do_not_matter(tmp_path):
    """SwinIR's authors have the same network trained on patches of 48 and of 64."""
    from restoration.networks import paper

    settings = {**networks.SPECIFICATIONS[NAME].settings, "img_size": 48}
    other = paper.SwinIR(scale=2, **settings).eval()
    torch.save(other.state_dict(), tmp_path / "s48.pth")
    teacher = load(tmp_path / "s48.pth")
    for size in (48, 64):
        lq = torch.rand(1, 3, size, 8)
        assert torch.equal(teacher(lq), other(lq))


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda model: networks.build("nafnet-student", 1).state_dict(), "of 2,683,059 values"),
        (lambda model: networks.build(NAME, 3).state_dict(), "of 918,267 values"),
        (lambda model: nn.Linear(2, 2).state_dict(), "of 6 values"),
        (  # a part of the right one
            lambda model: dict(list(model.state_dict().items())[:-1]),
            "(upsample.0.bias: none there, (12,) here)",
        ),
    ],
)
def test_another_network_is_refused_by_what_it_is(make, seen, model, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(make(model), path)
    with pytest.raises(ValueError) as error:
        load(path)
    for part in (str(path), seen, f"expected {NAME} for x2, 910,152 values"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("student", "source", "scale", "message"),
    [
        ("swinir-student", "swinir-x3", 2, r"swinir-x3 is swinir-teacher for x3; .* for x2$"),
        ("restormer-student", "nafnet-gopro", 1, "gopro is nafnet-teacher .*restormer-teacher"),
        ("swinir-student", "swinir-x5", 2, "no such file; expected a file or a URL or swinir-x2$"),
        ("rcan-student", None, 3, "rcan-teacher for x3 by --teacher: a file or a URL$"),
        ("swinir-student", None, 3, "for x3 by --teacher: a file or a URL or swinir-x3$"),
        ("nafnet-student", None, 2, "got scale 2 for nafnet-student; expected 1"),
    ],
)
def test_names_that_do_not_fit(student, source, scale, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        networks.load_teacher(student, source, scale)


class Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestBadFiles:
    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_pickles_are_not_executed(self, tmp_path, suffix, zipped):
        path = tmp_path / f"evil{suffix}"
        content = {"params": {"weight": Evil(tmp_path / "made")}}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=rf"evil{suffix} .*not such weights"):
                load(path)
            path.write_bytes(pickle.dumps(content))
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("suffix", [".pt", ".pth"])
    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
    def test_torchscript_is_not_run(self, tmp_path, suffix):
        """It goes to the library's own reader, which refuses before any of its code runs."""
        torch.jit.script(nn.Linear(1, 1)).save(tmp_path / f"evil{suffix}")
        with pytest.raises(RuntimeError, match=rf"evil{suffix} .*TorchScript"):
            load(tmp_path / f"evil{suffix}")

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".txt"])
    def test_cut_short(self, model, tmp_path, suffix):
        path = tmp_path / f"teacher{suffix}"
        basicsr(model, path)
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(RuntimeError, match=rf"teacher{suffix} .*cut short"):
            load(path)

    @pytest.mark.parametrize("content", [{}, {"step": 3}, [1], 7])
    def test_without_tensors(self, tmp_path, content):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(RuntimeError, match=r"a\.pth .*not such weights"):
            load(tmp_path / "a.pth")


class TestURLs:
    def test_a_file_is_fetched_once(self, model, tmp_path, cache):
        source = tmp_path / "teacher.pth"
        basicsr(model, source)
        for _ in range(2):
            teacher, lq = load(source.as_uri()), torch.rand(1, 3, 8, 8)
            assert torch.equal(teacher(lq), model(lq))
            source.unlink(missing_ok=True)
        assert [path.name[8:] for path in cache.glob("[!.]*")] == ["-teacher.pth"]

    def test_files_of_one_name_are_kept_apart(self, tmp_path, monkeypatch):
        """In a cache that is complete no lock is needed: it may be one that can only be read."""
        for text in ("one", "two"):
            (tmp_path / text).mkdir()
            (tmp_path / text / "a.pth").write_text(text, encoding="utf-8")
        for _ in range(2):
            paths = [files.fetch((tmp_path / text / "a.pth").as_uri()) for text in ("one", "two")]
            assert [path.read_text(encoding="utf-8") for path in paths] == ["one", "two"]
            monkeypatch.setattr(files, "FileLock", None)

    def test_what_cannot_be_read_is_fetched_anew(self, model, tmp_path, cache):
        """A server that hangs up early looks like the end of the file."""
        source = tmp_path / "teacher.pth"
        basicsr(model, source)
        whole = source.read_bytes()
        source.write_bytes(whole[:-1000])
        with pytest.raises(RuntimeError, match=r"cut short.* the next try fetches it anew"):
            load(source.as_uri())
        assert not list(cache.glob("[!.]*"))
        source.write_bytes(whole)
        load(source.as_uri())

    def test_a_silent_server_is_given_up(self, monkeypatch, cache):
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(files, "SILENCE", 0.2)
        message = r"cannot be fetched .*timed out"
        with (  # takes calls, and says nothing
            socket.create_server(("127.0.0.1", 0)) as server,
            pytest.raises(RuntimeError, match=message),
        ):
            load(f"http://127.0.0.1:{server.getsockname()[1]}/a.pth")
        assert socket.getdefaulttimeout() is None
        assert not list(cache.glob("[!.]*"))

    def test_what_cannot_be_fetched_leaves_nothing(self, tmp_path, monkeypatch, cache):
        monkeypatch.setenv("no_proxy", "*")
        url = "http://127.0.0.1:9/teacher.pth"
        with pytest.raises(RuntimeError) as error:
            load(url)
        for part in (url, "cannot be fetched (URLError", "pass its path", str(cache)):
            assert part in str(error.value)
        (tmp_path / "a.pth").write_bytes(b"altered")
        with pytest.raises(RuntimeError, match="invalid hash value"):
            files.fetch((tmp_path / "a.pth").as_uri(), "0" * 64)
        assert not list(cache.glob("[!.]*"))

    @pytest.mark.parametrize("name", networks.KNOWN)
    def test_names(self, name, monkeypatch):
        """Each asks for its own address, with its sha256 where one is known."""
        asked = []

        def download(url, path, sha256, progress):
            asked.append((url, sha256))
            Path(path).write_bytes(b"not weights")

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        known = networks.KNOWN[name]
        with pytest.raises(RuntimeError, match="not such weights"):
            networks.open_network(name, known.scale, [known.backbone])
        assert asked == [(known.url, known.sha256)]
        assert known.url.startswith("https://")
        assert known.sha256 is None or len(known.sha256) == 64
