"""FAKD: distillation of features by their spatial affinity (He et al., ICIP 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmarks.baselines.base import Baseline

# Released: 0.5 to ground truth, 0.5 to teacher, 10 to features, for images in [0, 255]. Here the
# first two are 1 and images in [0, 1]; Adam does not mind the common factor.
WEIGHT = 2 * 10 / 255
EPS = 1e-8  # released code: keeps a pixel whose features are all zero
TAPS = 3  # released command: the ends of the body's thirds


class FAKD(Baseline):
    """`sum_l mean|A(S_l) - A(T_l)|`, A the cosine of every two pixels' features.

    Each feature map (B, C, H, W) is made unit length over C at each pixel, and its affinity is the
    matrix (B, HW, HW) of the inner products, so student and teacher may differ in width. Between
    `attach` and `detach` forward hooks keep what the named layers last put out, of the student
    only where gradient is recorded. The matrix takes 4 (HW)^2 bytes an image and layer: 21 MB for
    a 48x48 crop, which rules out training at full resolution.

    The paper sums over layers as here. One public re-implementation gathers the layers' losses
    into a new tensor, which cuts their gradient; here the gradient reaches the student.

    Args:
        student: the network in training.
        teacher: the network whose outputs are distilled.
        student_layers: names of the student's modules, as in `named_modules()`, whose output is
            (B, C, H, W) or tokens (B, HW, C). By default the ends of the thirds of its `body`, as
            the paper takes them from EDSR; for RCAN the released code takes the outputs of groups
            2 and 6 and of the body.
        teacher_layers: likewise, as many.
        weight: 20/255 beside two L1 terms of weight 1: the released command's 10 beside 0.5 and
            0.5, for images in [0, 255].

    Gradient:
        to the student through its features; student_out is not looked at.

    Raises:
        KeyError: in a call, if a network has not run since the last call.
    """

    name = "fakd"
    student: nn.Module
    teacher: nn.Module

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        weight: float = WEIGHT,
    ) -> None:
        super().__init__(weight, student=student, teacher=teacher)
        self.student_layers = student_layers or body_thirds(student)
        self.teacher_layers = teacher_layers or body_thirds(teacher)
        self._outputs: dict[nn.Module, Tensor] = {}  # by layer

    def hooks(self, optimizer: torch.optim.Optimizer) -> Iterator[RemovableHandle]:
        for name in self.student_layers:
            yield self.student.get_submodule(name).register_forward_hook(self._keep)
        for name in self.teacher_layers:
            yield self.teacher.get_submodule(name).register_forward_hook(self._keep_detached)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():  # not of a validation
            self._outputs[module] = output

    def _keep_detached(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._outputs[module] = output.detach()

    def detach(self) -> FAKD:
        """Remove the hooks and let go of the features."""
        self._outputs.clear()
        return super().detach()

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        terms = []
        for mine, theirs in zip(self.student_layers, self.teacher_layers, strict=True):
            ours = affinity(self._outputs.pop(self.student.get_submodule(mine)))
            with torch.no_grad():
                wanted = affinity(self._outputs.pop(self.teacher.get_submodule(theirs)))
            terms.append((ours - wanted).abs().mean())
        return torch.stack(terms).sum()


def affinity(features: Tensor) -> Tensor:
    """Cosines of every two pixels' features: (B, C, H, W) or (B, HW, C) to (B, HW, HW)."""
    with torch.autocast(features.device.type, enabled=False):
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        tokens = exact.flatten(2).transpose(1, 2) if exact.ndim == 4 else exact
        unit = F.normalize(tokens, dim=2, eps=EPS)
        return unit @ unit.transpose(1, 2)


def body_thirds(network: nn.Module) -> list[str]:
    """The last module of each third of a network's `body`."""
    count = len(network.get_submodule("body"))  # type: ignore[arg-type]
    return [f"body.{round(third * count / TAPS) - 1}" for third in range(1, TAPS + 1)]
