"""A student as ONNX: what the file computes, and what is said of what cannot be exported."""

# ruff: noqa: F811  (imported fixtures)

import onnxruntime
import pytest
import torch
import train_deblur
from restoration import networks
from restoration.results.export import export_onnx
from restoration.training.gradient_checkpointing import checkpoint_blocks
from torch import nn
from toys import main, no_pictures, sets, small  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]


def run(path, lq):
    (restored,) = onnxruntime.InferenceSession(path).run(["restored"], {"lq": lq.numpy()})
    return torch.from_numpy(restored)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_file_computes_what_the_network_does_for_any_size(tmp_path, scale):
    torch.manual_seed(0)
    model, lq = networks.build("tiny", scale), torch.rand(4, 3, 21, 35)
    nn.init.normal_(model.tail.weight, std=0.05)
    checkpoint_blocks(model)
    assert export_onnx(model, tmp_path / "student.onnx") < 1e-5
    assert model.training, "it is left as it was"
    with torch.no_grad():
        expected = model(lq)
    torch.testing.assert_close(run(tmp_path / "student.onnx", lq), expected, rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


class Windows(nn.Module):
    """Takes multiples of 16 only."""

    def forward(self, lq):
        return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(lq, 16), 16)


def test_a_network_that_does_not_take_any_size_is_exported_for_those_it_takes(tmp_path):
    export_onnx(Windows(), tmp_path / "student.onnx")
    lq = torch.rand(1, 3, 32, 96)
    assert torch.equal(run(tmp_path / "student.onnx", lq), lq)


class Draws(nn.Module):
    def forward(self, lq):
        return lq + torch.rand_like(lq)


class Chooses(nn.Module):
    def forward(self, lq):
        return lq if lq.sum() > 1 else -lq


class Fixed(nn.Module):
    def forward(self, lq):
        return lq + torch.ones(int(lq.shape[2]), int(lq.shape[3])) * float(lq.shape[2])


class Unknown(nn.Module):
    def forward(self, lq):
        return lq + torch.linalg.eigvals(lq[..., :8, :8]).real.sum()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Draws, "its output is another in ONNX, by "),
        (Chooses, "Could not guard on data-dependent"),
        (Fixed, ""),
        (Unknown, ""),
    ],
)
def test_the_layer_that_cannot_be_exported_is_named(tmp_path, layer, reason, capfd):
    blocks = nn.ModuleDict({"first": nn.ReLU(inplace=True), "odd": nn.Sequential(layer())})

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.blocks = nn.Conv2d(3, 3, 3, padding=1), nn.ModuleList([blocks])

        def forward(self, lq):
            return self.blocks[0]["odd"](self.blocks[0]["first"](self.head(lq)))

    with pytest.raises(ValueError) as refused:
        export_onnx(Network(), tmp_path / "student.onnx")
    said = f"--export onnx: blocks.0.odd.0 ({layer.__name__}) cannot be exported, all else is "
    assert str(refused.value).startswith(f"{said}written; change that layer, or")
    assert f": {reason}" in str(refused.value)
    assert len(str(refused.value)) < 300
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", ["nn.Identity", "test_export.Chooses"])
def test_the_training_command_exports_its_student(small, tmp_path, monkeypatch, capsys, layer):
    code = tmp_path / "net.py"
    code.write_text(
        "import test_export\n"
        "from torch import nn\n"
        f"def net(): return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), {layer}())\n"
    )
    line = [*small, "--crop", 16, "--method", "logits", "--export", "onnx"]
    status = main(monkeypatch, train_deblur, *line, "--backbone", f"{code}:net")
    out, err = capsys.readouterr()
    assert (tmp_path / "metrics.json").exists()
    path = tmp_path / "student.onnx"
    if layer.endswith("Chooses"):
        assert status == 2 and not path.exists()
        assert err.splitlines()[-1].startswith("error: --export onnx: 1 (Chooses) cannot be")
        return
    assert status == 0
    assert f"written to {path}, within " in out
    model, lq = networks.load(tmp_path / "student.safetensors"), torch.rand(1, 3, 30, 20)
    with torch.no_grad():
        torch.testing.assert_close(run(path, lq), model(lq), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("paper_networks")
@pytest.mark.parametrize("name", ["nafnet-student", "rcan-student"])
def test_the_papers_networks(name, tmp_path):
    torch.manual_seed(0)
    model = networks.build(name, 2 if name == "rcan-student" else 1)
    assert export_onnx(model, tmp_path / "student.onnx") < 1e-5
