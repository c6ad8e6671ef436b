"""DUKD (Zhang et al., arXiv 2309.14162): distillation on images made from the training pair.

And its label consistency as DCKD* adds it to DCKD (paper, Table 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.base import RandomBaseline
from dckd_losses.negatives.draws import Draws

WEIGHT = 1.0  # released RCAN configurations, x2 and x4
PROBABILITY = 0.3  # released SwinIR and EDSR configurations
CONSISTENCY_WEIGHT = 1.0  # DCKD's released configurations
CONSISTENCY_PROBABILITY = 0.5  # likewise
SEED = 1  # not the default of DCKD's negatives, which would share its numbers


class Transform:
    """Colours inverted, rows and columns reversed, axes swapped: F, each image's own.

    The inverse takes the four back in the opposite order. DUKD's released code takes them back in
    another, which is wrong wherever a transposed image is flipped along one axis only; DCKD's is
    right.

    Args:
        inverted: which images x become 1 - x, bool, (B,).
        rows: which images are flipped upside down.
        columns: which images are mirrored.
        transposed: which images have rows and columns swapped; of images that are not square all
            or none, as one tensor holds one shape.
    """

    def __init__(self, inverted: Tensor, rows: Tensor, columns: Tensor, transposed: Tensor) -> None:
        self.inverted, self.rows, self.columns, self.transposed = (
            flags.view(-1, 1, 1, 1) for flags in (inverted, rows, columns, transposed)
        )

    @classmethod
    def draw(cls, draws: Draws, probability: float, images: Tensor) -> Transform:
        """Each of the four with a probability, for each image on its own."""
        batch, _, height, width = images.shape
        flags = [draws.uniform(batch) < probability for _ in range(4)]
        if height != width:
            flags[3] = flags[3][:1].expand(batch)
        return cls(*flags)

    def __call__(self, images: Tensor) -> Tensor:
        """F(x): a new tensor, (B, C, H, W) to the same, or to (B, C, W, H) if swapped."""
        images = torch.where(self.inverted, 1 - images, images)
        images = torch.where(self.rows, images.flip(2), images)
        images = torch.where(self.columns, images.flip(3), images)
        return self._swapped(images)

    def undo(self, images: Tensor) -> Tensor:
        """F^-1(x), for images of any size."""
        images = self._swapped(images)
        images = torch.where(self.columns, images.flip(3), images)
        images = torch.where(self.rows, images.flip(2), images)
        return torch.where(self.inverted, 1 - images, images)

    def through(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """F^-1(network(F(x))); the network may write into what it is given."""
        return self.undo(network(self(images)))

    def _swapped(self, images: Tensor) -> Tensor:
        if images.shape[2] == images.shape[3]:
            return torch.where(self.transposed, images.mT, images)
        together = bool(self.transposed.all())
        if not together and bool(self.transposed.any()):
            raise ValueError("images that are not square must be transposed all or none")
        return images.mT if together else images


class LabelConsistency(RandomBaseline):
    """`mean|S(x) - F^-1 T(F x)|`: what a teacher sees in a transformed input must hold too.

    F is a random `Transform`. Here the teacher sees the transformed input, as in DCKD's released
    code, so one student pass is enough and the term resembles a random self-ensemble of the
    teacher; in DUKD itself the student does, on other images (see `DUKD`). DCKD's paper says only
    that DCKD* "incorporates DUKD"; its code has this term in every configuration.

    Args:
        teacher: the network whose outputs are distilled, in eval mode.
        weight: see `Baseline`.
        probability: of each of the four transforms.
        seed: see `RandomBaseline`.
    """

    name = "consistency"
    teacher: nn.Module

    def __init__(
        self,
        teacher: nn.Module,
        *,
        weight: float = CONSISTENCY_WEIGHT,
        probability: float = CONSISTENCY_PROBABILITY,
        seed: int = SEED,
    ) -> None:
        super().__init__(weight, seed, teacher=teacher)
        self.probability = probability

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        transform = Transform.draw(self.draws(), self.probability, lq)
        with torch.no_grad():
            wanted = transform.through(self.teacher, lq)
        return F.l1_loss(student_out, wanted)


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
        student: the network in training. Each call runs it once more (twice with zoom_out), past
            wrappers such as DistributedDataParallel.
        teacher: the network whose outputs are distilled, in eval mode.
        weight: 1 beside an L1 to the ground truth of 1, as in the released configurations of RCAN
            x2 and x4. Those of SwinIR and EDSR weigh the ground truth by 5, which is 0.2 here, of
            `Logits` too.
        probability: of each of F's four transforms; 0.3 in the released configurations of SwinIR,
            EDSR and RCAN x3, off in those of RCAN x2 and x4.
        zoom_out: on in the released configurations of EDSR and RCAN x3 only.
        seed: see `RandomBaseline`.

    Gradient:
        to the student through a pass of its own; student_out is not looked at.

    Raises:
        ValueError: the target is not lq's size times a whole scale of at least 2.
    """

    name = "dukd"
    student: nn.Module
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
        super().__init__(weight, seed, student=student, teacher=teacher)
        self.probability = probability
        self.zoom_out = zoom_out

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        draws = self.draws()
        zoomed = random_cells(target, lq, draws)
        transform = Transform.draw(draws, self.probability, zoomed)
        with torch.no_grad():
            wanted = self.teacher(zoomed.clone())  # some networks write into their input
        loss = F.l1_loss(transform.through(self.student, zoomed), wanted)
        if self.zoom_out:
            loss = loss + self._zoomed_out(lq, target.shape[2] // lq.shape[2])
        return loss

    def _zoomed_out(self, lq: Tensor, scale: int) -> Tensor:
        """Both distances on the shrunk input, which is cropped to whole pixels first."""
        lq = lq[..., : lq.shape[2] // scale * scale, : lq.shape[3] // scale * scale]
        small = F.interpolate(
            lq, scale_factor=1 / scale, mode="bicubic", antialias=True, recompute_scale_factor=True
        ).clamp(0, 1)
        with torch.no_grad():
            wanted = self.teacher(small.clone())
        restored = self.student(small.clone())
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
