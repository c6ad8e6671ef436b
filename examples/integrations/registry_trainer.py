"""DCKD in a trainer that keeps its losses in a registry and calls each with (output, target) only.

    python examples/integrations/registry_trainer.py

traiNNer-redux and neosr are such trainers; `Trainer` below does with losses what they do, and the
two marked lines are what their models need (README.md beside it). `watch` takes the input from
the student's own call. What such a trainer passes as target takes the teacher's place: where it
runs no teacher, the student is contrasted with the ground truth.
"""

from pathlib import Path

import common
import torch
from torch import Tensor, nn

from dckd_losses import DCKDLoss, HistoryModel, gradient_ratio


class PixelLoss(nn.L1Loss):
    """A loss as registries hold them."""

    loss_weight = 1.0


class Trainer:
    """The least trainer of that kind."""

    def __init__(self) -> None:
        self.net_g, self.net_g_teacher = common.student(), common.teacher()
        self.losses: dict[str, nn.Module] = {"l_g_pix": PixelLoss()}
        self.optimizer_g = torch.optim.Adam(self.net_g.parameters(), 1e-3)

    def optimize_parameters(self, lq: Tensor) -> dict[str, Tensor]:
        """One step; every loss it made."""
        with torch.inference_mode():
            target = self.net_g_teacher(lq)
        self.output = self.net_g(lq)
        made = {name: loss(self.output, target) for name, loss in self.losses.items()}
        total = torch.stack([made[name] * loss.loss_weight for name, loss in self.losses.items()])
        self.look(made)
        self.optimizer_g.zero_grad()
        total.sum().backward()
        self.optimizer_g.step()
        return made

    def look(self, losses: dict[str, Tensor]) -> None:
        """Here a user's trainer logs."""


class DistillingTrainer(Trainer):
    """The same with DCKD."""

    def __init__(self) -> None:
        super().__init__()
        history = HistoryModel(self.net_g, interval=common.HISTORY_INTERVAL)
        dckd = DCKDLoss(self.net_g, "compact", history=history)  # DCKD
        self.losses["l_g_dckd"] = dckd.attach(self.optimizer_g).watch(self.net_g)  # DCKD
        self.step = 0

    def look(self, losses: dict[str, Tensor]) -> None:
        self.step += 1
        if self.step % common.LOG_EVERY == 0:
            pixel_loss, dckd_loss = losses["l_g_pix"], losses["l_g_dckd"]
            ratio = gradient_ratio(dckd_loss, pixel_loss, self.output)
            print(common.line(self.step, pixel_loss, dckd_loss, ratio), flush=True)


def train(steps: int, folder: Path) -> DistillingTrainer:
    """Train for so many steps and keep the student."""
    trainer = DistillingTrainer()
    for lq, _ in common.batches(0, steps):
        trainer.optimize_parameters(lq)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(trainer.net_g.state_dict(), folder / "student.pth")
    return trainer


if __name__ == "__main__":
    run = lambda args: train(args.steps, args.output)  # noqa: E731
    common.command(run, __doc__, "runs/registry_trainer", resumes=False)
