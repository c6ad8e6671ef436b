"""Reading weights: formats, damage, and pickles that would like to run something."""

import io
import os
import pickle
import zipfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
from hub import complete_checkpoint
from lightning.fabric.utilities.data import AttributeDict

from dckd_losses import VQGANEncoder
from dckd_losses.weights import load
from dckd_losses.weights.files import DIGEST, digest, read_safetensors, write_safetensors


@pytest.fixture
def good(tensors, tmp_path):
    path = tmp_path / "encoder.safetensors"
    write_safetensors(tensors, path)
    return path


def test_reads_a_lightning_checkpoint_and_nothing_but_the_encoder(tensors, tmp_path):
    path = complete_checkpoint(tensors, tmp_path / "last.ckpt")
    seen = load(path)
    assert seen.keys() == tensors.keys()
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)


def test_every_format_gives_the_same_levels(tensors, good, tmp_path, images):
    torch.save(tensors, tmp_path / "plain.pt")
    torch.save({"state_dict": tensors}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    complete_checkpoint(tensors, tmp_path / "last.ckpt")
    x = images(1, 3, 33, 40)
    expected = VQGANEncoder.from_pretrained(good)(x)
    for name in ("plain.pt", "old.pt", "last.ckpt"):
        for path in (tmp_path / name, str(tmp_path / name)):
            seen = VQGANEncoder.from_pretrained(path)(x)
            assert torch.equal(seen.code_logits, expected.code_logits)
            assert all(map(torch.equal, seen.levels, expected.levels))


def test_half_precision_files_are_computed_in_float32(tensors, tmp_path):
    write_safetensors({k: v.half() for k, v in tensors.items()}, tmp_path / "half.safetensors")
    assert {t.dtype for t in load(tmp_path / "half.safetensors").values()} == {torch.float32}


def test_objects_that_a_checkpoint_names_are_never_made(tensors, tmp_path):
    """Not even of classes that can be imported: a state that would act is not handed over."""
    mark = tmp_path / "set"
    path = complete_checkpoint(tensors, tmp_path / "last.ckpt", extra=Acting(mark))
    assert mark.exists()  # by pickle itself, while it was written
    mark.unlink()
    assert load(path).keys() == tensors.keys()
    assert not mark.exists()


class EasyDict(dict):
    """A dict with attributes of its own."""


@pytest.mark.parametrize("kind", [AttributeDict, EasyDict, partial(defaultdict, list)])
def test_settings_may_be_dicts_of_another_kind(tensors, tmp_path, kind):
    settings = kind()
    settings["lr"], settings["nested"] = 1e-4, kind()
    if kind is EasyDict:
        settings.note = "a state beside the items"
    path = complete_checkpoint(tensors, tmp_path / "last.ckpt", hyper_parameters=settings)
    assert load(path).keys() == tensors.keys()


class Acting:
    """Does something as soon as its state is set."""

    def __init__(self, mark):
        self.__setstate__({"mark": str(mark)})

    def __setstate__(self, state):
        self.__dict__.update(state)
        open(self.mark, "w").close()  # noqa: PTH123


class Caller:
    """Pickles into a call of something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["callbacks", "hyper_parameters", "state_dict"])
@pytest.mark.parametrize("function", [os.system, eval, print, pickle.loads])
def test_a_pickle_that_calls_something_is_refused_whole(tensors, tmp_path, where, function):
    mark = tmp_path / "executed"
    argument = f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')"
    argument = argument.encode() if function is pickle.loads else argument
    evil = Caller(function, argument)
    more = {where: {"x": evil}} if where != "state_dict" else {
        "state_dict": {**tensors, "loss.extra": evil}
    }  # fmt: skip
    path = complete_checkpoint(tensors, tmp_path / "evil.ckpt", **more)
    with pytest.raises(RuntimeError, match=r"evil\.ckpt .*(wants to call|is blocked)"):
        VQGANEncoder.from_pretrained(path)
    assert not mark.exists()


def test_a_state_dict_without_an_encoder_is_refused(tmp_path):
    torch.save({"state_dict": {"decoder.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(RuntimeError, match=r"other\.ckpt: holds no tensor named encoder\."):
        load(tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(RuntimeError, match=r"list\.ckpt .*holds no state_dict"):
        load(tmp_path / "list.ckpt")


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_refused(tensors, tmp_path, kind, share):
    path = tmp_path / f"cut.{kind}"
    write_safetensors(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(RuntimeError, match=rf"cut\.{kind} \({path.stat().st_size:,} bytes\)"):
        VQGANEncoder.from_pretrained(path)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_an_altered_byte_is_refused(tensors, tmp_path, kind, share):
    path = tmp_path / f"altered.{kind}"
    write_safetensors(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(RuntimeError, match=rf"altered\.{kind}"):
        VQGANEncoder.from_pretrained(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_of_other_kinds_are_refused(tmp_path):
    for name, content in (
        ("page.ckpt", b"<html>404</html>"),
        ("page.safetensors", b"<html>404 not found</html>"),
        ("list.ckpt", pickle.dumps([1])),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RuntimeError, match=name.replace(".", r"\.")):
            VQGANEncoder.from_pretrained(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(RuntimeError, match=r"zip\.ckpt"):
        VQGANEncoder.from_pretrained(tmp_path / "zip.ckpt")
    with pytest.raises(RuntimeError, match=r"nowhere\.ckpt: no such file"):
        VQGANEncoder.from_pretrained(tmp_path / "nowhere.ckpt")
    with pytest.raises(RuntimeError, match="no such file"):
        VQGANEncoder.from_pretrained(tmp_path)


def without(tensors, name):
    return {k: v for k, v in tensors.items() if not k.startswith(name)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "encoder.down.4."), "has 4 levels; 5 are expected"),
        (lambda t: without(t, "encoder.mid.block_1.norm1"), "mid.block_1.norm1"),
        (lambda t: without(t, "quant_conv"), "quant_conv.weight missing"),
        (lambda t: without(t, "encoder.conv_out"), "encoder.conv_out.weight missing"),
        (lambda t: {**t, "encoder.more": torch.zeros(1)}, "encoder.more"),
        (
            lambda t: {**without(t, "quantize"), "quantize.embed.weight": torch.zeros(8, 8)},
            "Gumbel quantiser",
        ),
        (
            lambda t: {**t, "quantize.embedding.weight": torch.zeros(8, 9)},
            "codes have 9: not one nearest-code VQGAN",
        ),
        (lambda t: {**t, "encoder.conv_in.bias": torch.zeros(5)}, "conv_in.bias"),
        (
            lambda t: {**t, "encoder.conv_in.weight": torch.zeros(20, 3, 3, 3)},
            r"\[20\] are not multiples of 32",
        ),
    ],
)
def test_another_network_is_refused_by_name(tensors, tmp_path, change, message):
    path = tmp_path / "other.safetensors"
    write_safetensors(change(tensors), path)
    with pytest.raises(RuntimeError, match=rf"other\.safetensors: .*{message}"):
        VQGANEncoder.from_pretrained(path)


def test_digest_depends_on_names_shapes_and_values():
    a, b = torch.arange(6.0), torch.arange(6.0) + 1
    seen = {
        digest(t)
        for t in ({"x": a}, {"y": a}, {"x": b}, {"x": a.view(2, 3)}, {"x": a.double()}, {})
    }
    assert len(seen) == 6
    assert digest({"x": a, "y": b}) == digest({"y": b, "x": a})


class FullDisk(io.FileIO):
    """A file on a disk that has room for a thousand bytes."""

    def write(self, data):
        super().write(bytes(data)[:1000])
        raise OSError(28, "No space left on device")


@pytest.fixture
def full_disk(monkeypatch):
    """Files that are opened for writing by `Path.open` meet a full disk."""
    opened = Path.open

    def open_(path, mode="r", *args, **settings):
        return FullDisk(path, mode) if "w" in mode else opened(path, mode, *args, **settings)

    monkeypatch.setattr(Path, "open", open_)


def test_writing_leaves_no_half_file(tensors, good, tmp_path, full_disk):
    before = good.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_safetensors({k: v + 1 for k, v in tensors.items()}, good)
    assert good.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_a_file_without_digest_is_read(tensors, tmp_path):
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "foreign.safetensors", {"made": "elsewhere"})
    assert load(tmp_path / "foreign.safetensors").keys() == tensors.keys()
    assert DIGEST == "tensors_sha256"


def test_metadata_is_kept_beside_the_digest(tensors, tmp_path):
    write_safetensors(tensors, tmp_path / "x.safetensors", source="here")
    _, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"source": "here", DIGEST: digest(tensors)}


def test_a_written_file_may_be_read_by_whoever_may_read_its_neighbours(good, tmp_path):
    (tmp_path / "neighbour").touch()
    assert good.stat().st_mode == (tmp_path / "neighbour").stat().st_mode


def test_a_file_in_use_is_told(tensors, good, monkeypatch):
    def in_use(*_):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr("pathlib.Path.replace", in_use)
    with pytest.raises(PermissionError, match="while an encoder that was loaded from it is alive"):
        write_safetensors(tensors, good)
    assert [p.name for p in good.parent.iterdir()] == ["encoder.safetensors"]
