"""Reading weights: formats, damage, and pickles that would like to run something."""

import importlib
import io
import os
import pickle
import random
import subprocess
import uuid
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from conftest import CANNOT_IMPORT
from hub import complete_checkpoint

from dckd_losses import VQGANEncoder
from dckd_losses.weights import load, pickles, read_checkpoint
from dckd_losses.weights.files import digest, read_safetensors, write_safetensors


@pytest.fixture
def good(tensors, tmp_path):
    path = tmp_path / "encoder.safetensors"
    write_safetensors(tensors, path)
    return path


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


def lightnings():
    """Lightning's dict of hyperparameters."""
    data = pytest.importorskip("lightning.fabric.utilities.data", exc_type=CANNOT_IMPORT)
    return data.AttributeDict()


@pytest.mark.parametrize("kind", [lightnings, EasyDict, partial(defaultdict, list)])
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


class Kind(Enum):
    SGD = "sgd"


Point = namedtuple("Point", "x y")


class Caller:
    """Pickles into a call of something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = (
    *(os.system, eval, exec, print, pickle.loads, subprocess.Popen, importlib.import_module),
    *(torch.load, torch.storage._load_from_bytes, Path.touch),
)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("where", ["callbacks", "hyper_parameters", "state_dict"])
def test_a_pickle_that_calls_something_is_refused_whole(tensors, tmp_path, where, new):
    mark = tmp_path / "executed"
    for function in HOSTILE:
        argument = f"open({str(mark)!r}, 'w')" if function in (eval, exec) else f"touch {mark}"
        evil = Caller(function, mark if function is Path.touch else argument)
        content = {"state_dict": dict(tensors), "callbacks": {}, "hyper_parameters": {}}
        content[where]["x"] = evil
        torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=new)
        with pytest.raises(RuntimeError, match=r"evil\.ckpt .*wants to call .*\."):
            VQGANEncoder.from_pretrained(tmp_path / "evil.ckpt")
        assert not mark.exists()


HARMLESS = {
    "NumPy's scalars": np.float64(0.5),
    "arrays": {"a": np.arange(3), "s": np.array(["x"]), "o": np.array([None], object)},
    "NumPy's random states": [np.random.RandomState(0), np.random.default_rng(0)],
    "random states": [random.getstate(), random.Random(0), torch.get_rng_state()],
    "dates": [datetime.now(), datetime.now(timezone.utc), date.today(), timedelta(1)],
    "zones": datetime(2025, 1, 1, tzinfo=ZoneInfo("UTC")),
    "paths": [Path("a"), PurePosixPath("b"), PureWindowsPath("c")],
    "numbers": [Decimal("0.1"), Fraction(1, 3), 1j, 10**30, uuid.UUID(int=0)],
    "containers": [{1}, frozenset({2}), deque([3]), Counter("a"), range(4), slice(5), bytearray(6)],
    "settings": [Namespace(lr=1), SimpleNamespace(lr=1), partial(max, 0), Kind.SGD, Point(1, 2)],
    "torch's": [
        torch.Size([1]),
        torch.device("cpu"),
        torch.float16,
        torch.nn.ReLU(),
        torch.tensor(1),
    ],
    "functions": [print, os.system, torch.optim.Adam, torch.nn.functional.relu],
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("what", HARMLESS)
def test_values_beside_the_encoder_are_no_reason_to_refuse(tensors, tmp_path, what, protocol):
    """Nor are functions that are named and not called."""
    content = {"state_dict": tensors, "beside": HARMLESS[what], "state": {what: HARMLESS[what]}}
    torch.save(content, tmp_path / "last.ckpt", pickle_protocol=protocol)
    assert load(tmp_path / "last.ckpt").keys() == tensors.keys()


RAW = {  # as pickles can be written by hand
    "INST": b"(S'{}'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'{}'\no.",
    "REDUCE": b"cos\nsystem\n(S'{}'\ntR.",
    "NEWOBJ": b"csubprocess\nPopen\n(S'{}'\nt\x81.",
    "a part of a module": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c{n}{}\x85R.",
    "an extension": b"\x82\x01S'{}'\n\x85R.",
    "BUILD of a stub": b"cos\nsystem\n)\x81}S'__reduce__'\ncos\nsystem\nsb.",
    "BUILD of a rebuilder": b"ctorch._utils\n_rebuild_tensor_v2\nN}S'marked'\nI1\ns\x86b.",
    "BUILD of a dict's class": b"ccollections\nOrderedDict\nN}S'marked'\nI1\ns\x86b.",
    "TypedStorage": b"ctorch.storage\nTypedStorage\n)R.",
    "a rebuilder's argument": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN"
    b"S'{}'\n\x85NtR.",
}


@pytest.mark.parametrize("how", RAW)
def test_pickles_written_by_hand_run_nothing(tmp_path, how):
    command = f"touch {tmp_path / 'executed'}".encode()
    raw = RAW[how].replace(b"{n}", bytes([len(command)])).replace(b"{}", command)
    with zipfile.ZipFile(tmp_path / "raw.pt", "w") as archive:
        archive.writestr("raw/data.pkl", raw)
    with pytest.raises(RuntimeError, match=r"raw\.pt"):
        load(tmp_path / "raw.pt")
    assert not (tmp_path / "executed").exists()
    assert not any(hasattr(known, "marked") for known in (*pickles.REBUILD.values(), OrderedDict))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused_before_its_code_runs(tmp_path):
    victim = tmp_path / "victim"

    class Evil(torch.nn.Module):
        path: str

        def __init__(self):
            super().__init__()
            self.path = ""

        def forward(self, x):
            return x

        @torch.jit.export
        def __getstate__(self) -> str:
            return self.path

        @torch.jit.export
        def __setstate__(self, state: str) -> None:
            self.path = state
            self.training = False
            torch.save("commands", self.path)

    evil = Evil()
    evil.path = str(victim)
    torch.jit.script(evil).save(str(tmp_path / "teacher.pt"))
    victim.unlink(missing_ok=True)
    with pytest.raises(RuntimeError, match=r"teacher\.pt .*it is TorchScript"):
        read_checkpoint(tmp_path / "teacher.pt")
    assert not victim.exists()


STATE = {
    "float": torch.randn(3, 4),
    "half": torch.randn(5).half(),
    "bfloat16": torch.randn(2, 2).bfloat16(),
    "double": torch.randn(2).double(),
    "counts": torch.arange(6).view(2, 3),
    "small": torch.arange(6, dtype=torch.int8),
    "unsigned": torch.arange(6).to(torch.uint16),
    "mask": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "transposed": torch.randn(3, 4).t(),
    "tail": torch.arange(10)[5:],
    "repeated": torch.ones(1, 3).expand(4, 3),
    "parameter": torch.nn.Parameter(torch.randn(2)),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "params_ema", "params", "model", "generator"])
def test_read_checkpoint_gives_what_torch_gives(tmp_path, key, new):
    state = {k: v for k, v in STATE.items() if new or v.dtype != torch.uint16}
    content = {**state, "step": 3, "note": "x", "none": None}
    torch.save(
        {key: content} if key else content,
        tmp_path / "teacher.pth",
        _use_new_zipfile_serialization=new,
    )
    seen = read_checkpoint(tmp_path / "teacher.pth")
    assert seen.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(seen[name], tensor)
        assert (seen[name].dtype, seen[name].shape) == (tensor.dtype, tensor.shape)


def test_tied_weights_stay_tied_and_averaged_ones_are_taken_where_there_are_two(tmp_path):
    weight = torch.zeros(3)
    tied = {"a": weight, "b": weight, "c": weight[1:]}
    torch.save({"params": {"a": torch.ones(3)}, "params_ema": tied}, tmp_path / "tied.pt")
    seen = read_checkpoint(tmp_path / "tied.pt")
    assert torch.equal(seen["a"], weight)
    assert seen["a"].data_ptr() == seen["b"].data_ptr() == seen["c"].data_ptr() - 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.nn.Linear(2, 2), " .*holds no state_dict"),
        ([1, 2], " .*holds no state_dict"),
        (
            {"state_dict": {"decoder.weight": torch.zeros(1)}},
            ": holds no tensor whose name begins with encoder",
        ),
    ],
)
def test_what_holds_no_encoder_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(RuntimeError, match=rf"other\.ckpt{message}"):
        load(tmp_path / "other.ckpt")


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
        (lambda t: {**t, "quantize.embed.weight": torch.zeros(8, 8)}, "Gumbel quantiser"),
        (lambda t: {**t, "quantize.proj.weight": torch.zeros(8, 8)}, "Gumbel quantiser"),
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


def test_writing_leaves_no_half_file(tensors, good, tmp_path, monkeypatch):
    before = good.read_bytes()
    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    with pytest.raises(OSError, match="No space left"):
        write_safetensors({k: v + 1 for k, v in tensors.items()}, good)
    monkeypatch.undo()
    assert good.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]


@pytest.mark.parametrize("note", ["", "a", "ab", "abc"])
def test_values_lie_at_addresses_that_are_multiples_of_their_size(tmp_path, note):
    state = {"a": torch.zeros(1, dtype=torch.uint8), "b": torch.zeros(3).half(), "c": torch.ones(2)}
    write_safetensors({**state, "d": torch.ones(1).double()}, tmp_path / "x.safetensors", note=note)
    tensors, _ = read_safetensors(tmp_path / "x.safetensors")
    assert not any(tensor.data_ptr() % tensor.itemsize for tensor in tensors.values())


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
