"""Which network a file's tensors are, by spandrel; none of its code is read."""

import pytest
import torch
from restoration.networks.detected import detect
from torch import nn

pytestmark = pytest.mark.usefixtures("paper_networks")


def make(name):
    if name == "RCAN":
        from spandrel.architectures.RCAN import RCAN

        return RCAN(scale=2, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=4)
    if name == "SwinIR":
        from spandrel.architectures.SwinIR import SwinIR

        shape = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8}
        return SwinIR(upscale=2, upsampler="pixelshuffle", img_size=48, mlp_ratio=2, **shape)
    if name == "NAFNet":
        from spandrel.architectures.NAFNet import NAFNet

        return NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    from spandrel_extra_arches.architectures.Restormer import Restormer

    return Restormer(dim=8, num_blocks=[1] * 4, num_refinement_blocks=1, heads=[1] * 4)


@pytest.mark.parametrize(
    ("name", "scale"), [("RCAN", 2), ("SwinIR", 2), ("NAFNet", 1), ("Restormer", 1)]
)
def test_a_network_is_recognised_and_restores(name, scale, images):
    torch.manual_seed(0)
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


def test_another_scale_is_told_with_what_it_is():
    with pytest.raises(ValueError, match=r"^file\.pth is RCAN for x2; expected one for x4$"):
        detect(make("RCAN").state_dict(), "file.pth", 4)


def test_gray_networks_and_unknown_ones_are_told():
    from spandrel.architectures.DnCNN import DnCNN

    with pytest.raises(ValueError, match="is DnCNN for x1, from 1 to 1 channels; expected one of"):
        detect(DnCNN().state_dict(), "file.pth", 1)
    with pytest.raises(ValueError, match=r"recognises no network in its 2 tensors: name the code"):
        detect(nn.Linear(1, 1).state_dict(), "file.pth", 2)
