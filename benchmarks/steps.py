"""What a whole training step costs with each method, for the paper's students and small ones."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import released
from benchmarks.measure import Times, clock, in_turns, peak, summary
from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator, VQGANEncoder
from dckd_losses.network import VQGANNetwork
from dckd_losses.weights.places import F16
from examples.restoration import backbones

SCALE = 2
NEGATIVES = 5
TEACHERS = {"tiny": "small"}  # others' are named after them
Row = dict[str, object]
Distill = Callable[[Tensor, Tensor, Tensor], Tensor]  # output, teacher's output, lq


def measure(name: str, size: str, rounds: int, device: torch.device) -> list[Row]:
    """One row a method: student, teacher, history, loss, backward and optimizer together.

    Args:
        name: the student's, of `backbones`.
        size: batch x pixels of its output.
        rounds: after one that warms up.
        device: where.
    """
    batch, side = map(int, size.split("x"))
    torch.manual_seed(0)
    student = backbones.build(name, SCALE)
    teacher = backbones.build(TEACHERS.get(name, name.replace("student", "teacher")), SCALE)
    teacher = teacher.to(device).eval().requires_grad_(False)
    lq = torch.rand(batch, 3, side // SCALE, side // SCALE, device=device)
    target = torch.rand(batch, 3, side, side, device=device)
    found: dict[str, Callable[[], Times]] = {}
    for method, make in methods(device).items():
        model = copy.deepcopy(student).to(device).train()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
        step = partial(_step, model, teacher, optimizer, make(model, optimizer), target)
        found[method] = partial(clock, step, lq)
    times = in_turns(found, rounds)
    return [
        {
            "way": "released" if method == "released" else "dckd-losses",
            "impl": "step", "mode": method, "precision": "float32", "student": name,
            "batch": batch, "size": side, "negatives": 0 if method == "logits" else NEGATIVES,
            **summary(times[method]),
            "saved_mb": None, "peak_mb": peak(job, device) / 1e6,
            "grad_cos": None, "grad_rel_l2": None,
        }
        for method, job in found.items()
    ]  # fmt: skip


def methods(
    device: torch.device,
) -> dict[str, Callable[[nn.Module, torch.optim.Optimizer], Distill]]:
    """Makers of what is added to the L1 losses, from the student and its optimizer."""
    torch.manual_seed(1)
    network = VQGANNetwork(F16).requires_grad_(False).eval().to(device)

    def as_released(student: nn.Module, optimizer: torch.optim.Optimizer) -> Distill:
        negatives = NegativeGenerator(HistoryModel(student), num_negatives=NEGATIVES)

        def loss(output: Tensor, teacher: Tensor, lq: Tensor) -> Tensor:
            others = negatives(lq)
            images = (2 * x - 1 for x in (output, teacher, others))
            return released.loss(network, *images, **released.WEIGHTS)  # type: ignore[misc]

        return loss

    def dckd(student: nn.Module, optimizer: torch.optim.Optimizer, **path: str) -> Distill:
        encoder = VQGANEncoder(copy.deepcopy(network), **path)  # type: ignore[arg-type]
        return DCKDLoss(student, encoder, **released.WEIGHTS).to(device).attach(optimizer)

    return {
        "released": as_released,
        "logits": lambda student, optimizer: lambda output, teacher, lq: output.new_zeros(()),
        "stream": dckd,
        "twopass": partial(dckd, mode="twopass"),
    }


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
        teacher_output = teacher(lq)
    loss = F.l1_loss(output, target) + F.l1_loss(output, teacher_output)
    return loss + distill(output, teacher_output, lq)
