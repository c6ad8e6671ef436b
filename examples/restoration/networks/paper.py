"""SwinIR, RCAN, NAFNet and Restormer from spandrel, cured of what a training run trips over.

Names of parameters stay spandrel's, which are the authors': official weights fit. Licences:
SwinIR is Apache-2.0 and NAFNet MIT; Restormer (from spandrel-extra-arches) is for non-commercial
use only, and RCAN's authors state no licence.

Importing this imports spandrel, and that torchvision: see `build.build`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from spandrel import architectures as main
from spandrel_extra_arches import architectures as extra
from torch import Tensor, nn

LOCAL = 384  # pixels a side of NAFNet's windows at test time: 1.5 times its training patch of 256
MULTIPLE = 8  # of which Restormer's three downsamplings need their input's sides


class SwinIR(main.SwinIR.SwinIR):
    """SwinIR (2021), whose mean colour follows it and stays exact.

    The original keeps that colour as an attribute, which no move of the module reaches and which
    one input in half precision rounds for good. In training mode blocks are left out at random
    (stochastic depth 0.1, as its authors train it), by torch's generator: a teacher is in eval
    mode.

    Shape: (B, 3, H, W) in [0, 1] to (B, 3, H scale, W scale), any H and W.
    """

    def __init__(self, *, scale: int, **settings: Any) -> None:
        super().__init__(upscale=scale, **settings)
        self.scale = scale
        self.register_buffer("mean_color", self.mean, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Restore a batch."""
        self.mean = self.mean_color
        output: Tensor = super().forward(x)
        return output


class RCAN(main.RCAN.RCAN):
    """RCAN (2018) that leaves its input alone, with its mean colours frozen.

    The original multiplies its input by 255 in place: teacher, history and degradations would see
    images in [0, 255] after the student's turn. Its two `MeanShift` layers are constants, 24
    numbers that are among its parameters and would be trained.

    Shape: (B, 3, H, W) in [0, 1] to (B, 3, H scale, W scale).
    """

    def __init__(self, *, scale: int, **settings: Any) -> None:
        super().__init__(scale=scale, **settings)
        self.sub_mean.requires_grad_(False)
        self.add_mean.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Restore a batch."""
        output: Tensor = super().forward(x.clone())
        return output


class LocalPool(nn.Module):
    """Mean over the image in training; in eval mode over the window around each pixel.

    Test-time Local Converter (Chu et al. 2022): a network that learned from crops sees means over
    whole images at test time, which are distributed otherwise. `size` is the window's side in
    pixels; near a border the window is moved inside, not cut.

    Shape: (B, C, H, W) to (B, C, 1, 1), or in eval mode, for images above the window, (B, C, H, W).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pool features."""
        if self.training or max(x.shape[-2:]) <= self.size:
            return F.adaptive_avg_pool2d(x, 1)
        means = sliding_mean(sliding_mean(x, self.size, dim=-2), self.size, dim=-1)
        missing = [x.shape[dim] - means.shape[dim] for dim in (-1, -2)]
        sides = [part for gap in missing for part in (gap // 2, gap - gap // 2)]
        return F.pad(means, sides, mode="replicate")


def sliding_mean(x: Tensor, size: int, dim: int) -> Tensor:
    """Means over all windows of `size`, or of everything if that is less, along one dimension.

    By differences of running sums, in float32 at least: the windows are too large to sum each.
    """
    size = min(size, x.shape[dim])
    sums = x.cumsum(dim, dtype=torch.promote_types(x.dtype, torch.float32))
    first = sums.narrow(dim, size - 1, 1)
    later = sums.narrow(dim, size, x.shape[dim] - size) - sums.narrow(dim, 0, x.shape[dim] - size)
    return (torch.cat([first, later], dim) / size).to(x.dtype)


class NAFNet(main.NAFNet.NAFNet):
    """NAFNet (2022) with the local pooling that its GoPro figures are measured with.

    Shape: (B, 3, H, W) in [0, 1] to the same.
    """

    def __init__(self, *, scale: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.scale = scale
        levels = [*self.encoders, self.middle_blks]
        for level, blocks in [*enumerate(levels), *enumerate(reversed(self.decoders))]:
            for block in blocks:
                block.sca[0] = LocalPool(LOCAL >> level)


class Restormer(extra.Restormer.Restormer):
    """Restormer (2022) for images of any size, by reflection at two borders, as its authors test.

    Shape: (B, 3, H, W) in [0, 1] to the same; H and W above 4.
    """

    def __init__(self, *, scale: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Restore a batch."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="reflect")
        output: Tensor = super().forward(padded)
        return output[..., :height, :width]
