"""What a whole training step costs with each method, for the paper's students and small ones."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import baselines, released
from benchmarks.measure import Times, clock, in_turns, peak, summary
from dckd_losses import HistoryModel, NegativeGenerator, VQGANEncoder
from dckd_losses.network import VQGANNetwork
from dckd_losses.weights.places import F16
from examples.restoration import backbones

SCALE = 2
NEGATIVES = 5
DCKD = ("released", "stream", "twopass", "dckd", "dckd_star")
TEACHERS = {"tiny": "small"}  # others' are named after them
Row = dict[str, object]
Distill = Callable[..., Tensor]  # from output, teacher's output, lq, and target by keyword
Make = Callable[[nn.Module, nn.Module, torch.optim.Optimizer], Distill]


def measure(
    name: str, size: str, rounds: int, device: torch.device, rivals: bool = False
) -> list[Row]:
    """One row a method: student, teacher, history, loss, backward and optimizer together.

    Args:
        name: the student's, of `backbones`.
        size: batch x pixels of its output.
        rounds: after one that warms up.
        device: where.
        rivals: the methods that DCKD is compared with, in place of the ways to compute DCKD.
    """
    batch, side = map(int, size.split("x"))
    torch.manual_seed(0)
    student = backbones.build(name, SCALE)
    teacher = backbones.build(TEACHERS.get(name, name.replace("student", "teacher")), SCALE)
    teacher = teacher.to(device).eval().requires_grad_(False)
    lq = torch.rand(batch, 3, side // SCALE, side // SCALE, device=device)
    target = torch.rand(batch, 3, side, side, device=device)
    found: dict[str, Callable[[], Times]] = {}
    for method, make in (all_methods if rivals else ways)(device).items():
        model = copy.deepcopy(student).to(device).train()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
        step = partial(_step, model, teacher, optimizer, make(model, teacher, optimizer), target)
        found[method] = partial(clock, step, lq)
    times = in_turns(found, rounds)
    return [
        {
            "way": "released" if method == "released" else "dckd-losses",
            "impl": "step", "mode": method, "precision": "float32", "student": name,
            "batch": batch, "size": side, "negatives": NEGATIVES if method in DCKD else None,
            **summary(times[method]),
            "saved_mb": None, "peak_mb": peak(job, device) / 1e6,
            "grad_cos": None, "grad_rel_l2": None,
        }
        for method, job in found.items()
    ]  # fmt: skip


def ways(device: torch.device) -> dict[str, Make]:
    """Ways to compute DCKD beside the L1 to ground truth and teacher, and that alone."""

    def as_released(
        student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Distill:
        network = _network(device)
        negatives = NegativeGenerator(HistoryModel(student), num_negatives=NEGATIVES)

        def loss(output: Tensor, taught: Tensor, lq: Tensor, target: Tensor) -> Tensor:
            images = (2 * x - 1 for x in (output, taught, negatives(lq)))
            dckd = released.loss(network, *images, **released.WEIGHTS)  # type: ignore[misc]
            return F.l1_loss(output, taught) + dckd

        return loss

    def by(mode: str) -> Make:
        return lambda *networks: _arm("dckd", device, mode, *networks)

    return {
        "released": as_released,
        "logits": partial(_arm, "logits", device, "stream"),
        "stream": by("stream"),
        "twopass": by("twopass"),
    }


def all_methods(device: torch.device) -> dict[str, Make]:
    """Every method of `baselines`; the contrastive ones with one encoder for all."""
    return {name: partial(_arm, name, device, "stream") for name in baselines.METHODS}


def _arm(
    name: str,
    device: torch.device,
    mode: str,
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Distill:
    encoder = VQGANEncoder(_network(device), mode=mode)
    settings = released.WEIGHTS if name.startswith("dckd") else {}
    arm = baselines.build(name, student, teacher, encoder, **settings)
    return arm.to(device).attach(optimizer)


def _network(device: torch.device) -> VQGANNetwork:
    torch.manual_seed(1)
    return VQGANNetwork(F16).requires_grad_(False).eval().to(device)


def _step(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    distill: Distill,
    target: Tensor,
    lq: Tensor,
) -> Tensor:
    """Up to the loss, after the update that the step before left to do."""
    optimizer.step()
    optimizer.zero_grad()
    lq = lq.detach()
    output = student(lq)
    with torch.no_grad():
        teacher_output = teacher(lq).clamp(0, 1)  # untrained, its values would be refused
    return F.l1_loss(output, target) + distill(output, teacher_output, lq, target=target)
