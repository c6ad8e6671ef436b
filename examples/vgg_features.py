"""Other people's frozen features as an encoder: VGG19 and VGG16, trained on ImageNet.

    DCRLoss(VGG19Features())                      # weights fetched by torchvision, once
    DCRLoss(VGG19Features("vgg19-dcbb9e9d.pth"))  # torchvision's file
    DCKDLoss(student, VGG19Features(), dmm_weight=0)

Every loss of this package takes any module that maps images to an `Encoding`: levels from fine to
coarse, and code logits or None. Without a codebook there are none, so `DMMLoss` refuses it.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from dckd_losses import Encoding
from dckd_losses.weights.files import read_checkpoint, refusing

WIDTHS = (64, 128, 256, 512, 512)  # of VGG's five blocks (Simonyan and Zisserman, 2015)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VGGFeatures(nn.Module):
    """Activations of a VGG network, up to the last one that is wanted.

    Args:
        convolutions: How many each block has.
        taps: Which layers are the levels, numbered as in torchvision's `features`.
        weights: "imagenet" (fetched by torchvision into its own cache), the path of torchvision's
            file or of a safetensors with the same names, or None for random weights.
        normalise: Subtract ImageNet's mean and divide by its deviation first.

    Shape: images (B, 3, H, W) in [0, 1] to levels of (H, H/2, H/4, ...), rounded down.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        convolutions: tuple[int, ...],
        taps: tuple[int, ...],
        weights: str | PathLike[str] | None,
        normalise: bool,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced or a control
            self.features = build_layers(convolutions)[: max(taps) + 1]
        self.taps = taps
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalise else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        if weights == "imagenet":
            self._fill(fetch(f"VGG{sum(convolutions) + 3}_Weights"))
        elif weights is not None:
            with refusing(Path(weights)):
                self._fill(read_checkpoint(Path(weights)))

    def forward(self, images: Tensor) -> Encoding:
        """Encode images."""
        x, levels = (images - self.mean) / self.std, []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                levels.append(x)
        return Encoding(tuple(levels), None)

    def _fill(self, state: dict[str, Tensor]) -> None:
        """Take what is needed of a whole VGG's tensors."""
        self.load_state_dict({k: v for k, v in state.items() if k in self.state_dict()})


class VGG19Features(VGGFeatures):
    """relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1, as AECR-Net and CSD use them.

    Neither normalises its images.

    Example:
        >>> [tuple(x.shape[1:]) for x in VGG19Features(None)(torch.rand(1, 3, 32, 32)).levels]
        [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    """

    def __init__(self, weights: str | PathLike[str] | None = "imagenet") -> None:
        super().__init__((2, 2, 4, 4, 4), (1, 6, 11, 20, 29), weights, normalise=False)


class VGG16Features(VGGFeatures):
    """relu1_2, relu2_2 and relu3_3 of normalised images, as MCLIR uses them.

    Example:
        >>> [tuple(x.shape[1:]) for x in VGG16Features(None)(torch.rand(1, 3, 32, 32)).levels]
        [(64, 32, 32), (128, 16, 16), (256, 8, 8)]
    """

    def __init__(self, weights: str | PathLike[str] | None = "imagenet") -> None:
        super().__init__((2, 2, 3, 3, 3), (3, 8, 15), weights, normalise=True)


def build_layers(convolutions: tuple[int, ...]) -> nn.Sequential:
    """Layers in torchvision's order, with He's initialisation as there."""
    layers: list[nn.Module] = []
    width = 3
    for count, wider in zip(convolutions, WIDTHS, strict=True):
        for _ in range(count):
            conv = nn.Conv2d(width, wider, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU()]
            width = wider
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def fetch(name: str) -> dict[str, Tensor]:
    """ImageNet weights by torchvision's name for them; downloads about half a gigabyte once."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError(
            "VGG's weights are fetched by torchvision: pip install torchvision, or pass the path "
            "of its file"
        ) from error
    weights = getattr(models, name).IMAGENET1K_V1
    return dict(weights.get_state_dict(check_hash=True))
