"""VGG's features are torchvision's, and the losses take them."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from dckd_losses import DCKDLoss, DCRLoss, DMMLoss
from examples.vgg_features import VGG16Features, VGG19Features

SLICES = {VGG19Features: (2, 7, 12, 21, 30), VGG16Features: (4, 9, 16)}
LAYOUTS = {VGG19Features: "E", VGG16Features: "D"}


@pytest.mark.parametrize("features", [VGG19Features, VGG16Features])
def test_levels_are_torchvisions(images, features, tmp_path):
    vgg = pytest.importorskip("torchvision.models.vgg")
    layers = vgg.make_layers(vgg.cfgs[LAYOUTS[features]])
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    path = tmp_path / "vgg.pth"
    torch.save({**state, "classifier.0.bias": torch.zeros(3)}, path)
    x = images(1, 3, 33, 20)
    seen = features(path)(x)
    assert seen.code_logits is None
    if features is VGG16Features:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        x = (x - mean[:, None, None]) / std[:, None, None]
    assert len(seen.levels) == len(SLICES[features])
    for level, end in zip(seen.levels, SLICES[features], strict=True):
        torch.testing.assert_close(level, layers[:end](x))


def test_weights_come_from_torchvisions_loader(monkeypatch):
    models = pytest.importorskip("torchvision.models")
    known = VGG16Features(None).state_dict()
    asked = []
    monkeypatch.setattr(
        type(models.VGG16_Weights.IMAGENET1K_V1), "get_state_dict",
        lambda self, check_hash: asked.append((self, check_hash)) or known,
    )  # fmt: skip
    seen = VGG16Features().state_dict()
    assert asked == [(models.VGG16_Weights.IMAGENET1K_V1, True)]
    assert all(torch.equal(seen[name], known[name]) for name in known)
    assert models.VGG19_Weights.IMAGENET1K_V1


def test_without_torchvision_a_path_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision, or pass the path"):
        VGG16Features()


def test_files_are_read_or_refused_by_name(tmp_path):
    state = VGG16Features(None).state_dict()
    good, bad = tmp_path / "vgg.safetensors", tmp_path / "other.safetensors"
    save_file(state, good)
    seen = VGG16Features(good).state_dict()
    assert all(torch.equal(seen[name], state[name]) for name in state)
    del state["features.0.bias"]
    save_file(state, bad)
    with pytest.raises(RuntimeError, match=r"other\.safetensors"):
        VGG16Features(bad)
    with pytest.raises(RuntimeError, match=r"missing\.pth: no such file"):
        VGG16Features(tmp_path / "missing.pth")


def test_random_weights_leave_the_global_generator():
    before = torch.get_rng_state()
    VGG16Features(None)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_losses_take_them(student, images):
    features = VGG19Features(None)
    x = images(1, 3, 32, 32).requires_grad_()
    teacher, negatives, lq = images(1, 3, 32, 32), images(2, 1, 3, 32, 32), images(1, 3, 16, 16)
    DCRLoss(features)(x, teacher, negatives).backward()
    assert x.grad.any()
    dckd = DCKDLoss(student, features, dmm_weight=0)
    dckd(student(lq), teacher, lq).backward()
    assert student.layers[0].weight.grad.any()
    assert not dckd.encoder.network.features[0].weight.requires_grad
    assert features.features[0].weight.requires_grad, "the caller's module is left alone"
    with pytest.raises(ValueError, match="no code logits"):
        DMMLoss(features)(x, teacher)
