"""FAKD: distillation of features by their spatial affinity (He et al., ICIP 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from benchmarks.baselines.base import Baseline
from dckd_losses.attach import StudentReference
from dckd_losses.copies import unwrap_module

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
        student: the network in training; only referred to.
        teacher: the network whose outputs are distilled; only referred to.
        student_layers: names of the student's modules, as in `named_modules()`, whose output is
            (B, C, H, W) or tokens (B, HW, C). By default the ends of the thirds of its `body`, as
            the paper takes them from EDSR; for RCAN the released code takes the outputs of groups
            2 and 6 and of the body.
        teacher_layers: likewise, as many.
        weight: 20/255 beside two L1 terms of weight 1: the released command's 10 beside 0.5 and
            0.5, for images in [0, 1].

    Gradient:
        to the student through its features; student_out is not looked at.

    Raises:
        ValueError: no such layers, or not as many of both; in a call also where a network has not
            run since the last call, or features do not fit each other.
    """

    name = "fakd"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        weight: float = WEIGHT,
    ) -> None:
        super().__init__(weight)
        networks = [unwrap_module(student), unwrap_module(teacher)]
        self.layers = [
            body_thirds(network) if names is None else list(names)
            for network, names in zip(networks, (student_layers, teacher_layers), strict=True)
        ]
        if not self.layers[0] or len(self.layers[0]) != len(self.layers[1]):
            raise ValueError(f"layers must be as many in both networks, got {self.layers}")
        for network, names in zip(networks, self.layers, strict=True):
            unknown = set(names) - {name for name, _ in network.named_modules()}
            if unknown:
                raise ValueError(f"{type(network).__name__} has no modules {sorted(unknown)}")
        self._networks = [StudentReference(network) for network in networks]
        self._watches = [[OutputWatch(detach) for _ in self.layers[0]] for detach in (False, True)]

    def _hooks(self, optimizer: object) -> list[RemovableHandle]:
        handles = []
        for reference, names, watches in zip(
            self._networks, self.layers, self._watches, strict=True
        ):
            network = reference()
            if network is None:
                raise RuntimeError("student or teacher is gone: keep both while this loss is used")
            for name, watch in zip(names, watches, strict=True):
                watch.active = True  # a copy's are not
                handles.append(network.get_submodule(name).register_forward_hook(watch))
        return handles

    def detach(self) -> FAKD:
        """Remove the hooks and let go of the features."""
        for watch in (*self._watches[0], *self._watches[1]):
            watch.output = None
        super().detach()
        return self

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """See `Baseline.term`."""
        terms = []
        for mine, theirs in zip(*self._watches, strict=True):
            ours = affinity(mine.take("the student", len(lq)))
            with torch.no_grad():
                wanted = affinity(theirs.take("the teacher", len(lq)))
            if ours.shape != wanted.shape:
                sizes = f"{ours.shape[1]} and {wanted.shape[1]}"
                raise ValueError(f"features of student and teacher have {sizes} pixels")
            terms.append((ours - wanted).abs().mean())
        return torch.stack(terms).sum()


class OutputWatch:
    """Keeps a module's last output; a forward hook.

    Args:
        detached: keep it without its graph, always; otherwise only where gradient is recorded.
        active: an inactive one keeps nothing; copies of a watched module get such a one.
    """

    def __init__(self, detached: bool, active: bool = True) -> None:
        self.detached = detached
        self.active = active
        self.output: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.active and (self.detached or torch.is_grad_enabled()):
            self.output = output.detach() if self.detached else output

    def take(self, whose: str, batch: int) -> Tensor:
        """The output, which is let go of.

        Raises:
            ValueError: there is none, or not of so many images.
        """
        output, self.output = self.output, None
        if output is None:
            raise ValueError(f"{whose} has not run since the last call: attach() before it runs")
        if len(output) != batch or output.ndim not in (3, 4):
            raise ValueError(
                f"features of {whose} must be ({batch}, C, H, W) or ({batch}, HW, C), got "
                f"{tuple(output.shape)}"
            )
        return output

    def __reduce__(self) -> tuple[type[OutputWatch], tuple[bool, bool]]:
        return OutputWatch, (self.detached, False)


def affinity(features: Tensor) -> Tensor:
    """Cosines of every two pixels' features: (B, C, H, W) or (B, HW, C) to (B, HW, HW)."""
    with torch.autocast(features.device.type, enabled=False):
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        tokens = exact.flatten(2).transpose(1, 2) if exact.ndim == 4 else exact
        unit = F.normalize(tokens, dim=2, eps=EPS)
        return unit @ unit.transpose(1, 2)


def body_thirds(network: nn.Module) -> list[str]:
    """The last module of each third of a network's `body`.

    Raises:
        ValueError: it has no such body of at least three modules.
    """
    body = getattr(network, "body", None)
    if not isinstance(body, (nn.Sequential, nn.ModuleList)) or len(body) < TAPS:
        raise ValueError(f"{type(network).__name__} has no body of {TAPS} modules: name the layers")
    return [f"body.{round(third * len(body) / TAPS) - 1}" for third in range(1, TAPS + 1)]
