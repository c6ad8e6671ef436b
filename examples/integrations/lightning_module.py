"""DCKD in a LightningModule: the loss is one of its modules, attached where its optimizer is made.

    python examples/integrations/lightning_module.py

Its checkpoints hold the history and its counters, nothing of the encoder, and resume exactly.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import common
import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from dckd_losses import DCKDLoss, HistoryModel, gradient_ratio

ACCUMULATE = 2  # batches a step
EPOCH = 10  # steps


class Distillation(lightning.LightningModule):
    """A student that is trained beside a teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student = common.student()
        self.teachers = [common.teacher()]  # in a list: frozen, and in no checkpoint
        history = HistoryModel(self.student, interval=common.HISTORY_INTERVAL)
        self.dckd = DCKDLoss(self.student, "compact", history=history)  # DCKD

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.student.parameters(), 1e-3)
        self.dckd.attach(optimizer)  # DCKD
        return optimizer

    def train_dataloader(self) -> Any:
        size = EPOCH * ACCUMULATE
        return common.batches(self.current_epoch * size, (self.current_epoch + 1) * size)

    def on_fit_start(self) -> None:
        self.teachers[0].to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        lq, gt = batch
        student_out = self.student(lq)
        with torch.no_grad():
            teacher_out = self.teachers[0](lq)
        pixel_loss = F.l1_loss(student_out, gt) + F.l1_loss(student_out, teacher_out)
        dckd_loss = self.dckd(student_out, teacher_out, lq)  # DCKD
        step = self.global_step + 1
        if step % common.LOG_EVERY == 0 and (index + 1) % ACCUMULATE == 0:
            ratio = gradient_ratio(dckd_loss, pixel_loss, student_out)
            self.log("gradient_ratio", ratio)
            self.print(common.line(step, pixel_loss, dckd_loss, ratio), flush=True)
        return pixel_loss + dckd_loss


def train(
    module: Distillation, steps: int, folder: Path, resume: bool = False, **settings: Any
) -> lightning.Trainer:
    """Train for so many optimizer steps, or up to the end of that epoch.

    Lightning resumes exactly at the ends of epochs, so those are what is kept.
    """
    trainer = lightning.Trainer(
        max_epochs=math.ceil(steps / EPOCH),
        accumulate_grad_batches=ACCUMULATE,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        callbacks=ModelCheckpoint(folder, filename="last", enable_version_counter=False),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, ckpt_path=last if resume and last.exists() else None)
    return trainer


def main(args: argparse.Namespace) -> None:
    """What the command line asks for; "16-mixed" and more devices work as well."""
    train(Distillation(), args.steps, args.output, args.resume, precision="bf16-mixed")


if __name__ == "__main__":
    common.command(main, __doc__, "runs/lightning_module")
