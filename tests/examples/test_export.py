"""A student as ONNX: what the file computes, and what is left where it cannot be had."""

import pytest
import torch
from restoration import networks
from restoration.networks.export import export_onnx
from torch import nn

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scale", [1, 2])
def test_the_file_computes_what_the_network_does_for_any_size(tmp_path, scale):
    torch.manual_seed(0)
    model = networks.build("tiny", scale)
    nn.init.normal_(model.tail.weight, std=0.05)
    assert export_onnx(model, tmp_path / "student.onnx") < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"))
    lq = torch.rand(3, 3, 21, 35)
    (seen,) = session.run(["restored"], {"lq": lq.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(seen), model(lq), rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


class Constant(nn.Module):
    """Exports, but draws anew in each call."""

    def forward(self, lq):
        return lq + torch.rand_like(lq)


class Choosing(nn.Module):
    """Decides by its images."""

    def forward(self, lq):
        return lq if lq.sum() > 1 else -lq


@pytest.mark.parametrize(
    ("network", "reason"), [(Constant, "its output differs by"), (Choosing, ".")]
)
def test_what_cannot_be_had_is_told_and_leaves_no_file(tmp_path, network, reason):
    with pytest.raises(RuntimeError, match=rf"cannot be had as ONNX for all sizes: .*{reason}"):
        export_onnx(network(), tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())
