"""What a file of weights holds is looked at: by whoever loads, converts or verifies it."""

import pickle
import tracemalloc
import zipfile

import pytest
import torch
from hub import complete_checkpoint
from safetensors.torch import save_file

from dckd_losses import VQGANEncoder
from dckd_losses.weights import convert, load, read_checkpoint
from dckd_losses.weights.__main__ import verify
from dckd_losses.weights.files import write_safetensors

WEIGHT, BIAS = "encoder.mid.block_1.conv1.weight", "quant_conv.bias"


def refused(path, message):
    """By all that read encoders, with the same words, and nothing is written."""
    target = path.with_name("converted.safetensors")
    for act in (VQGANEncoder.from_pretrained, verify, lambda path: convert(path, target)):
        with pytest.raises(RuntimeError, match=rf"{path.name}.*{message}"):
            act(path)
    assert not target.exists()


def changed(tensors, name, value):
    """The tensors, one of them with this as its last value."""
    tensor = tensors[name].clone()
    tensor.view(-1)[-1] = value
    return {**tensors, name: tensor}


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        ("ckpt", float("nan"), WEIGHT),
        ("safetensors", float("nan"), BIAS),
        ("ckpt", float("inf"), BIAS),
        ("safetensors", -float("inf"), WEIGHT),
    ],
)
def test_values_that_are_not_finite(tensors, tmp_path, kind, value, name):
    path, bad = tmp_path / f"bad.{kind}", changed(tensors, name, value)
    torch.save(bad, path) if kind == "ckpt" else write_safetensors(bad, path)
    refused(path, f"{name} has values that are not finite")


def test_values_beyond_float32(tensors, tmp_path):
    torch.save(changed({k: v.double() for k, v in tensors.items()}, BIAS, 1e39), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", f"{BIAS} has values that are not finite")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t[:0], "is empty, of shape"),
        (lambda t: t.to(torch.int32), "is torch.int32; floating point of 16, 32 or 64 bits is"),
        (lambda t: t.bool(), "is torch.bool; floating point of 16,"),
        (lambda t: t.to(torch.complex64), "is torch.complex64; floating point of 16,"),
        (lambda t: t.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn; floating point of 16,"),
        (lambda t: t.to("meta"), "is a meta tensor, which has no values"),
        (lambda t: t.to_sparse(), "is not a plain tensor but torch._utils._rebuild_sparse_tensor"),
        (lambda t: torch._neg_view(t), "is not a plain tensor"),
    ],
)
def test_tensors_that_are_no_plain_numbers(tensors, tmp_path, make, message):
    torch.save({"state_dict": {**tensors, BIAS: make(tensors[BIAS])}}, tmp_path / "odd.ckpt")
    refused(tmp_path / "odd.ckpt", f"{BIAS} {message}")


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """A torch checkpoint whose zip was written anew, entry by entry."""
    packed = path.with_name("packed.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return packed


@pytest.fixture
def checkpoint(tensors, tmp_path):
    torch.save({"state_dict": tensors}, tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


def test_compressed_records(checkpoint):
    """Mapped as they are, they would be noise."""
    packed = repacked(checkpoint, lambda _, data: data, zipfile.ZIP_DEFLATED)
    refused(packed, r"encoder\.conv_in\.weight's record is compressed")


def test_a_zip_that_was_written_anew_without_compression_is_read(tensors, checkpoint):
    seen = load(repacked(checkpoint, lambda _, data: data))
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("by", [-4, 4])
def test_records_of_another_size_than_their_tensor(checkpoint, by):
    """A short one would show its neighbour's bytes."""

    def resize(name, data):
        return (data + bytes(4))[: len(data) + by] if name.endswith("/data/0") else data

    refused(repacked(checkpoint, resize), r"encoder\.conv_in\.weight's record has [\d,]+ bytes")


@pytest.mark.parametrize("damage", ["another number", "cut"])
def test_records_of_another_size_in_old_files(tmp_path, damage):
    """Their number of values stands before them, in 8 bytes."""
    path, values = tmp_path / "old.ckpt", torch.full((1000,), 3.0)
    torch.save({"encoder.x": values}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    record = (1000).to_bytes(8, "little") + bytes(values.untyped_storage())
    assert data.endswith(record)
    other = (999).to_bytes(8, "little") + record[8:] if damage == "another number" else record[:-4]
    path.write_bytes(data[: -len(record)] + other)
    told = "has another number of values" if damage == "another number" else "has 3,996 bytes; 4,0"
    refused(path, rf"encoder\.x's record {told}")


def test_a_record_that_is_not_there(checkpoint, tmp_path):
    packed = repacked(checkpoint, lambda name, data: data)
    data = packed.read_bytes().replace(b"/data/3", b"/date/3")
    packed.write_bytes(data)
    refused(packed, r"encoder\.[\w.]+'s record is missing, cut short or altered")


def test_a_big_endian_machines_file(checkpoint):
    refused(repacked(checkpoint, lambda n, d: b"big" if n.endswith("byteorder") else d), "big-end")


def test_an_archive_that_claims_more_than_it_has(checkpoint):
    """Entries that lie over each other would be read as often as they are named."""
    data = bytearray(checkpoint.read_bytes())
    start = data.index(b"PK\x01\x02")
    for field in (20, 24):  # compressed and uncompressed size of the directory's first entry
        data[start + field : start + field + 4] = (1 << 30).to_bytes(4, "little")
    checkpoint.write_bytes(data)
    refused(checkpoint, "claims to hold more than it has bytes")


class Rebuilt:
    """Pickles into a tensor of this description."""

    def __init__(self, tensor, offset, size, stride):
        self.storage, self.described = tensor._typed_storage(), (offset, size, stride)

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self.storage, *self.described, False, {})


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("described", "message"),
    [
        ((0, (7,), (1,)), "ends beyond its storage of 24 bytes"),
        ((1, (6,), (1,)), "ends beyond its storage"),
        ((0, (3, 3), (3, 1)), "ends beyond its storage"),
        ((0, (2,), (6,)), "ends beyond its storage"),
        ((-1, (6,), (1,)), "has no valid shape"),
        ((0, (6,), (-1,)), "has no valid shape"),
        ((0, (6,), (1, 1)), "has no valid shape"),
        ((0, (2.0,), (1,)), "has no valid shape"),
        ((0, (10**12, 6), (0, 1)), "is larger than the whole file"),
        ((1 << 70, (0,), (1,)), "has no valid shape, strides and offset"),
        ((0, (0,), (1 << 70,)), "has no valid shape"),
        ((0, 6, 1), "has no valid shape"),
        ((0, {6: 1}, {1: 1}), "has no valid shape"),
        ((0, (True,), (1,)), "has no valid shape"),
    ],
)
def test_descriptions_that_do_not_fit_their_storage(tensors, tmp_path, described, message, new):
    """They are refused before anything is copied: one would take 24 TB."""
    content = {"state_dict": {**tensors, BIAS: Rebuilt(torch.zeros(6), *described)}}
    torch.save(content, tmp_path / "odd.ckpt", _use_new_zipfile_serialization=new)
    refused(tmp_path / "odd.ckpt", f"{BIAS} {message}")


class Quantised:
    """Pickles into quantised numbers without their scale, at which torch crashes."""

    def __reduce__(self):
        storage = torch.zeros(6, dtype=torch.int8).untyped_storage()
        return torch._utils._rebuild_tensor_v3, (storage, 0, (6,), (1,), False, {}, torch.qint8)


def test_quantised_numbers_without_their_scale(tensors, tmp_path):
    torch.save({**tensors, BIAS: Quantised()}, tmp_path / "odd.ckpt")
    refused(tmp_path / "odd.ckpt", f"{BIAS} is not a plain tensor")


def test_many_tensors_that_share_one_storage(tensors, tmp_path):
    """A file of 4 MB would take 4 GB."""
    large = torch.zeros(500_000)
    more = {f"encoder.more.{i}": large[:] for i in range(2000)}
    torch.save({"state_dict": {**tensors, **more}}, tmp_path / "shared.ckpt")
    refused(tmp_path / "shared.ckpt", r"encoder\.more\.\d and those before it are larger than the")


def test_tensors_of_any_layout_are_read(tensors, tmp_path):
    weight = tensors[WEIGHT]
    other = {
        WEIGHT: weight.to(memory_format=torch.channels_last),
        BIAS: torch.stack([tensors[BIAS], tensors[BIAS] + 1], 1)[:, 0],
        "quant_conv.weight": torch.nn.Parameter(tensors["quant_conv.weight"]),
    }
    torch.save({**tensors, **other}, tmp_path / "views.ckpt")
    seen = load(tmp_path / "views.ckpt")
    assert all(torch.equal(seen[name], tensors[name]) for name in tensors)
    assert all(tensor.is_contiguous() for tensor in seen.values())


def test_what_quantisers_keep_beside_their_codes_is_left_out(tensors, tmp_path):
    codes, width = tensors["quantize.embedding.weight"].shape
    beside = {
        "quantize.embedding.cluster_size": torch.ones(codes),
        "quantize.embedding.embed_avg": torch.full((codes, width), float("nan")),
        "quantize.used": torch.arange(codes),
        "model_ema.decay": torch.tensor(0.999),
        "loss.sparse": torch.eye(3).to_sparse(),
        "loss.complex": torch.ones(3, dtype=torch.complex64),
        "decoder.meta": torch.empty(3, device="meta"),
        "decoder.empty": torch.empty(0),
    }
    path = complete_checkpoint({**tensors, **beside}, tmp_path / "last.ckpt")
    assert load(path).keys() == tensors.keys()
    convert(path, tmp_path / "encoder.safetensors")
    assert "a complete encoder" in verify(tmp_path / "encoder.safetensors")[0]


def test_the_embedded_encoder_has_a_digest(tensors, tmp_path, monkeypatch):
    path = tmp_path / "compact.safetensors"
    save_file(tensors, path)
    load(path)
    monkeypatch.setattr("dckd_losses.weights.files.COMPACT", path)
    with pytest.raises(RuntimeError, match=r"compact\.safetensors is altered: .* has a digest"):
        load(path)


@pytest.mark.parametrize("code", [pickle.BINUNICODE8, pickle.BINBYTES8, pickle.BYTEARRAY8])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_length_that_is_not_there_takes_no_memory(tmp_path, code, zipped):
    """A file of some bytes asked for gigabytes."""
    path = tmp_path / "damaged.ckpt"
    content = pickle.PROTO + b"\x02" + code + (1 << 31).to_bytes(8, "little") + b"short"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(RuntimeError, match=r"damaged\.ckpt"):
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()
