"""DCKD in a loop of your own, with autocast, a GradScaler, accumulation and a moving average.

    python examples/integrations/plain_loop.py

The lines that are DCKD's are marked. The history follows the student's moving average here, as in
the released code; without `source` it follows the student, as in the paper.
"""

from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dckd_losses import DCKDLoss, HistoryModel, gradient_ratio

ACCUMULATE = 2  # batches a step
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.float16 if DEVICE.type == "cuda" else torch.bfloat16


def train(steps: int, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Train for so many optimizer steps; what the last checkpoint holds."""
    student, teacher = common.student().to(DEVICE), common.teacher().to(DEVICE)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    scaler = torch.amp.GradScaler(DEVICE.type)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    # hooks run in order: the average moves first, and neither moves where the scaler skips a step
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(student))
    history = HistoryModel(student, interval=common.HISTORY_INTERVAL)
    dckd = DCKDLoss(student, "compact", balance=0.3, history=history)  # DCKD
    dckd.attach(optimizer, source=average).to(DEVICE)  # DCKD

    parts = dict(student=student, average=average, optimizer=optimizer, scaler=scaler, dckd=dckd)
    done = load(folder, parts) if resume else 0
    batches = iter(common.batches(done * ACCUMULATE, steps * ACCUMULATE))
    for step in range(done + 1, steps + 1):
        for last in [False] * (ACCUMULATE - 1) + [True]:
            lq, gt = (images.to(DEVICE) for images in next(batches))
            student_out, teacher_out = outputs(student, teacher, lq)
            pixel_loss = F.l1_loss(student_out, gt) + F.l1_loss(student_out, teacher_out)
            dckd_loss = dckd(student_out, teacher_out, lq)  # DCKD
            if last and step % common.LOG_EVERY == 0:
                ratio = gradient_ratio(dckd_loss, pixel_loss, student_out)
                print(common.line(step, pixel_loss, dckd_loss, ratio), flush=True)
            scaler.scale((pixel_loss + dckd_loss) / ACCUMULATE).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step % common.LOG_EVERY == 0 or step == steps:
            save(folder, step, parts)
    dckd.detach()
    return parts


def outputs(student: nn.Module, teacher: nn.Module, lq: Tensor) -> tuple[Tensor, Tensor]:
    """What both make of the input."""
    with torch.autocast(DEVICE.type, DTYPE):
        student_out = student(lq)
        with torch.inference_mode():
            teacher_out = teacher(lq)
    return student_out.float(), teacher_out.float()


def save(folder: Path, step: int, parts: dict[str, Any]) -> None:
    """Write the checkpoint; a killed run leaves this one or the one before, never half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, **states}, folder / "checkpoint.part")
    (folder / "checkpoint.part").replace(folder / "checkpoint.pt")


def load(folder: Path, parts: dict[str, Any]) -> int:
    """Steps done by the run that left a checkpoint, which is read into the parts; or 0."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    states = torch.load(path, map_location=DEVICE, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(states[name])
    step: int = states["step"]
    return step


if __name__ == "__main__":
    args = common.arguments(__doc__, "runs/plain_loop")
    train(args.steps, args.output, args.resume)
