"""Which network a file's tensors are, by spandrel; none of its code is read."""

import importlib

import pytest
import torch
from restoration.networks.detected import detect
from torch import nn

pytestmark = pytest.mark.usefixtures("paper_networks")


WINDOWS = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8}
SHUFFLE = {"upsampler": "pixelshuffle", "mlp_ratio": 2}
WIDTHS = {"compress_ratio": 3, "squeeze_factor": 3, "num_feat": 16}
NETWORKS = {  # name to scale, class and arguments
    "RCAN": (2, "RCAN", {"scale": 2, "n_resgroups": 2, "n_resblocks": 2, "n_feats": 16}),
    "SwinIR": (2, "SwinIR", {**WINDOWS, **SHUFFLE, "img_size": 48, "upscale": 2}),
    "HAT": (4, "HAT", {**WINDOWS, **SHUFFLE, **WIDTHS, "img_size": 16, "upscale": 4}),
    "DAT": (2, "DAT", {"upscale": 2, "embed_dim": 32, "depth": [2], "num_heads": [2]}),
    "SPAN": (4, "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "upscale": 4, "feature_channels": 8}),
    "OmniSR": (2, "OmniSR", {"up_scale": 2, "num_feat": 16, "res_num": 1}),
    "RealESRGAN Compact": (3, "Compact.Compact", {"upscale": 3, "num_feat": 8, "num_conv": 2}),
    "ESRGAN": (4, "ESRGAN", {"num_filters": 8, "num_blocks": 1}),
    "PLKSR": (4, "PLKSR", {"upscaling_factor": 4, "dim": 16, "n_blocks": 2}),
    "NAFNet": (1, "NAFNet", {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "Restormer": (1, "Restormer", {"dim": 8, "num_blocks": [1] * 4, "heads": [1] * 4}),
    "SCUNet": (1, "SCUNet", {"config": [1] * 7}),
}


def make(name):
    _, named, arguments = NETWORKS[name]
    package = "spandrel_extra_arches" if name == "Restormer" else "spandrel"
    module = importlib.import_module(f"{package}.architectures.{named.partition('.')[0]}")
    return getattr(module, named.rpartition(".")[2])(**arguments)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_recognised_and_restores(name, images):
    torch.manual_seed(0)
    scale = NETWORKS[name][0]
    source = make(name).eval()
    found = detect(source.state_dict(), "file.pth", scale)
    assert (found.backbone, found.scale) == (name, scale)
    assert not any(p.requires_grad for p in found.parameters())
    lq = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = source(lq.clone()).clamp(0, 1)
    torch.testing.assert_close(found(lq), expected)
    odd = found(images(1, 3, 21, 30))
    assert lq.max() <= 1, "RCAN, which writes into its input, was given a copy"
    assert odd.shape == (1, 3, 21 * scale, 30 * scale), "padded and cropped"
    weight = torch.ones(1, requires_grad=True)
    (weight * odd).sum().backward()  # an inference tensor could not be kept for it


@pytest.mark.parametrize("prefix", ["model.", "net_g.module.", "student._orig_mod.", "any."])
def test_it_is_recognised_below_a_trainers_prefix(prefix):
    source = make("Restormer")
    state = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    if prefix != "any.":
        state["loss.vgg.weight"] = torch.zeros(1)
    found = detect(state, "file.ckpt", 1)
    assert all(map(torch.equal, found.parameters(), source.parameters()))


def test_a_network_of_another_purpose_is_told():
    from spandrel.architectures.LaMa import LaMa

    message = r"is LaMa, made for Inpainting; expected one that restores any image$"
    with pytest.raises(ValueError, match=message):
        detect(LaMa().state_dict(), "file.pth", 1)


@pytest.mark.slow
def test_a_network_of_faces_is_told():
    from spandrel.architectures.GFPGAN import GFPGAN

    with pytest.raises(ValueError, match=r"is GFPGAN, made for FaceSR; expected one that restores"):
        detect(GFPGAN().state_dict(), "file.pth", 1)


def test_a_network_that_fails_is_told():
    """Recognised, but with a window that its tensors do not tell."""
    from spandrel.architectures.HAT import HAT

    shape = {**WINDOWS, **SHUFFLE, **WIDTHS, "window_size": 7, "img_size": 14, "upscale": 2}
    state = HAT(**shape).state_dict()
    with pytest.raises(ValueError, match=r"file\.pth is HAT: it does not take"):
        detect(state, "file.pth", 2)


def test_another_scale_is_told_with_what_it_is():
    with pytest.raises(ValueError, match=r"^file\.pth is RCAN for x2; expected one for x4$"):
        detect(make("RCAN").state_dict(), "file.pth", 4)


def test_gray_networks_and_unknown_ones_are_told():
    from spandrel.architectures.DnCNN import DnCNN

    with pytest.raises(ValueError, match="is DnCNN for x1, from 1 to 1 channels; expected one of"):
        detect(DnCNN().state_dict(), "file.pth", 1)
    with pytest.raises(ValueError, match=r"recognises no network in its 2 tensors: name the code"):
        detect(nn.Linear(1, 1).state_dict(), "file.pth", 2)
