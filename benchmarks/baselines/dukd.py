"""DUKD: distillation on images made from the training pair (Zhang et al., arXiv 2309.14162)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.base import RandomBaseline
from benchmarks.baselines.transforms import Transform
from dckd_losses.draws import Draws
from dckd_losses.hooks import StudentReference
from dckd_losses.unwrap import unwrap_module

WEIGHT = 1.0  # released RCAN configurations, x2 and x4
PROBABILITY = 0.3  # released SwinIR and EDSR configurations
SEED = 1  # not the default of DCKD's negatives, which would share its numbers


class DUKD(RandomBaseline):
    """`mean|F^-1 S(F z) - T(z)|` on a zoomed image z, which has no ground truth.

    Zooming in: the ground truth is cut into scale x scale cells of the input's size, and z is one
    of them, for each image at random; the student sees it through a random `Transform` F (label
    consistency). Zooming out, where wanted: z is the input shrunk by the scale, whose ground truth
    is the input itself, so `mean|S(z) - x| / weight + mean|S(z) - T(z)|` is added: the ground truth
    weighs here what it weighs on the pair.

    Departures: the released code takes the step on these images as an optimizer step of its own
    after the pair's, without clearing the gradients between; here both are one step, as in the
    paper's total. The inverse of F is in the right order (see `Transform`). The shrunk input comes
    from torch's antialiased bicubic, which treats the border unlike MATLAB's.

    Args:
        student: the network in training; only referred to. Each call runs it once more (twice with
            zoom_out), as it is, past wrappers such as DistributedDataParallel.
        teacher: the network whose outputs are distilled, in eval mode; used, not owned.
        weight: 1 beside an L1 to the ground truth of 1, as in the released configurations of RCAN
            x2 and x4. Those of SwinIR and EDSR weigh the ground truth by 5, which is 0.2 here, of
            `Logits` too.
        probability: of each of F's four transforms; 0.3 in the released configurations of SwinIR,
            EDSR and RCAN x3, off in those of RCAN x2 and x4.
        zoom_out: on in the released configurations of EDSR and RCAN x3 only.
        seed: see `RandomBaseline`.

    Shape:
        see `Baseline`; H = scale h and W = scale w with a whole scale of at least 2.

    Gradient:
        to the student through a pass of its own; student_out is not looked at.

    Raises:
        ValueError: the target is missing, or the scale is not as said above.

    Example:
        >>> student = nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2))
        >>> teacher = nn.Upsample(scale_factor=2)
        >>> lq, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
        >>> DUKD(student, teacher)(student(lq), teacher(lq), lq, target=target).backward()
    """

    name = "dukd"
    needs_target = True
    teacher: nn.Module

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        weight: float = WEIGHT,
        probability: float = PROBABILITY,
        zoom_out: bool = False,
        seed: int = SEED,
    ) -> None:
        super().__init__(weight, seed)
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        self._student = StudentReference(unwrap_module(student))
        object.__setattr__(self, "teacher", teacher)
        self.probability = probability
        self.zoom_out = zoom_out

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """See `Baseline.term`."""
        student, draws = self._student(), self.draws(lq)
        if student is None:
            raise RuntimeError("the student is gone: keep it while this loss is used")
        assert target is not None
        zoomed = random_cells(target, lq, draws)
        transform = Transform.draw(draws, self.probability, zoomed)
        with torch.no_grad():
            wanted = self.teacher(zoomed.clone())  # some networks write into their input
        loss = F.l1_loss(transform.through(student, zoomed), wanted)
        if self.zoom_out:
            loss = loss + self._zoomed_out(student, lq, target.shape[2] // lq.shape[2])
        return loss

    def _zoomed_out(self, student: nn.Module, lq: Tensor, scale: int) -> Tensor:
        """Both distances on the shrunk input, which is cropped to whole pixels first."""
        lq = lq[..., : lq.shape[2] // scale * scale, : lq.shape[3] // scale * scale]
        if lq.numel() == 0:
            raise ValueError(f"lq must be at least {scale}x{scale} pixels to be zoomed out")
        small = F.interpolate(
            lq, scale_factor=1 / scale, mode="bicubic", antialias=True, recompute_scale_factor=True
        ).clamp(0, 1)
        with torch.no_grad():
            wanted = self.teacher(small.clone())
        restored = student(small.clone())
        return F.l1_loss(restored, lq) / self.weight + F.l1_loss(restored, wanted)


def random_cells(target: Tensor, lq: Tensor, draws: Draws) -> Tensor:
    """One of the scale x scale cells of each target, (B, 3, H, W), of the size of lq.

    Raises:
        ValueError: the target is not lq's size times a whole number of at least 2.
    """
    (batch, _, height, width), scale = lq.shape, target.shape[2] // lq.shape[2]
    if scale < 2 or target.shape[2:] != (scale * height, scale * width):
        raise ValueError(
            f"DUKD zooms: target must be lq's {height}x{width} pixels times 2 or more, got "
            f"{target.shape[2]}x{target.shape[3]}"
        )
    cells = target.unflatten(3, (scale, width)).unflatten(2, (scale, height))
    cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, scale^2, 3, h, w)
    return cells[torch.arange(batch, device=target.device), draws.integers(scale**2, batch)]
