"""DCKD in a loop with Accelerate: made after `prepare`, and part of its checkpoints.

python examples/integrations/accelerate_loop.py
accelerate launch examples/integrations/accelerate_loop.py
"""

import argparse
import shutil
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from dckd_losses import DCKDLoss, HistoryModel, gradient_ratio

ACCUMULATE = 2  # batches a step


def train(accelerator: Accelerator, steps: int, folder: Path, resume: bool = False) -> DCKDLoss:
    """Train for so many optimizer steps."""
    student, teacher = common.student(), common.teacher().to(accelerator.device)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    student, optimizer = accelerator.prepare(student, optimizer)
    history = HistoryModel(student, interval=common.HISTORY_INTERVAL)
    dckd = DCKDLoss(student, "compact", history=history)  # DCKD
    dckd.attach(optimizer).to(accelerator.device)  # DCKD
    accelerator.register_for_checkpointing(dckd)  # DCKD, for resuming exactly

    step = load(accelerator, folder) if resume else 0
    each = ACCUMULATE * accelerator.num_processes  # batches a step of all processes
    for lq, gt in accelerator.prepare(common.batches(step * each, steps * each)):
        with accelerator.accumulate(student):
            student_out = student(lq)
            with torch.no_grad(), accelerator.autocast():
                teacher_out = teacher(lq).float()
            pixel_loss = F.l1_loss(student_out, gt) + F.l1_loss(student_out, teacher_out)
            dckd_loss = dckd(student_out, teacher_out, lq)  # DCKD
            step += accelerator.sync_gradients
            look = accelerator.sync_gradients and step % common.LOG_EVERY == 0
            if look:
                ratio = gradient_ratio(dckd_loss, pixel_loss, student_out)
                accelerator.print(common.line(step, pixel_loss, dckd_loss, ratio), flush=True)
            accelerator.backward(pixel_loss + dckd_loss)
            optimizer.step()
            optimizer.zero_grad()
        if look or (accelerator.sync_gradients and step == steps):
            save(accelerator, folder, step)
    return dckd


def save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Write a checkpoint; a killed run leaves this one or the one before."""
    part, last, old = (folder / name for name in ("part", "checkpoint", "old"))
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (part / "step").write_text(str(step))
        if last.exists():
            shutil.rmtree(old, ignore_errors=True)
            last.rename(old)
        part.rename(last)


def load(accelerator: Accelerator, folder: Path) -> int:
    """Steps done by the run that left a checkpoint, which is read; or 0."""
    for name in ("checkpoint", "old"):
        if (folder / name).exists():
            accelerator.load_state(str(folder / name))
            return int((folder / name / "step").read_text())
    return 0


def main(args: argparse.Namespace) -> None:
    """What the command line asks for."""
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        gradient_accumulation_steps=ACCUMULATE, mixed_precision="bf16", cpu=cpu
    )
    train(accelerator, args.steps, args.output, args.resume)
    accelerator.end_training()


if __name__ == "__main__":
    common.command(main, __doc__, "runs/accelerate_loop")
