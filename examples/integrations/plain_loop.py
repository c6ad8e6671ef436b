"""DCKD in a loop of your own, in one file to copy: data, networks, loop, PSNR and a picture.

    python examples/integrations/plain_loop.py      # two minutes on a laptop

It imports torch, scikit-image and dckd_losses only. The lines that are DCKD's are marked. The
teacher, which you have already, is trained here first.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from skimage import data, io
from torch import Tensor, nn

from dckd_losses import DCKDLoss, HistoryModel, gradient_ratio

SCALE = 2  # HR size over LR size
CROP, BATCH_SIZE = 24, 8  # LR pixels a side, crops a step
LOG_EVERY = 50  # steps
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def image(pixels: Any) -> Tensor:
    """(1, 3, H, W) in [0, 1] of uint8 (H, W, 3)."""
    return torch.tensor(pixels).permute(2, 0, 1)[None] / 255


TRAINING = [image(pixels) for pixels in (data.astronaut(), data.coffee(), data.rocket())]
HELD_OUT = image(data.chelsea())[..., :300, :450]  # sides are multiples of the scale


def low_resolution(hr: Tensor) -> Tensor:
    """The antialiased bicubic that makes LR of HR."""
    return F.interpolate(hr, scale_factor=1 / SCALE, mode="bicubic", antialias=True).clamp(0, 1)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """LR and HR crops; those of a step are always the same, so a resumed run sees the same."""
    generator, size, crops = torch.Generator().manual_seed(step), CROP * SCALE, []
    for x, y, z in torch.rand(BATCH_SIZE, 3, generator=generator).tolist():
        hr = TRAINING[int(x * len(TRAINING))]
        top, left = int(y * (hr.shape[-2] - size + 1)), int(z * (hr.shape[-1] - size + 1))
        crops.append(hr[..., top : top + size, left : left + size])
    hr = torch.cat(crops)
    return low_resolution(hr).to(DEVICE), hr.to(DEVICE)


class Network(nn.Module):
    """Residual blocks that add detail to the bicubic upsampling of their input."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        widths = [(3, channels), *[(channels, channels)] * 2 * blocks, (channels, 3 * SCALE**2)]
        self.head, *body, self.tail = (nn.Conv2d(a, b, 3, padding=1) for a, b in widths)
        self.body = nn.ModuleList(body)
        nn.init.zeros_(self.tail.weight)

    def forward(self, lr: Tensor) -> Tensor:
        """Restore a batch, (B, 3, H, W) in [0, 1]."""
        x = self.head(lr)
        for first, second in zip(self.body[::2], self.body[1::2], strict=True):
            x = x + second(first(x).relu())
        detail = F.pixel_shuffle(self.tail(x), SCALE)
        return detail + F.interpolate(lr, scale_factor=SCALE, mode="bicubic")


def train_teacher(steps: int) -> nn.Module:
    """A larger network, trained on the ground truth alone, frozen."""
    torch.manual_seed(0)
    teacher = Network(channels=32, blocks=6).to(DEVICE)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-3)
    for step in range(1, steps + 1):
        lr, hr = batch(step)
        optimizer.zero_grad()
        F.l1_loss(teacher(lr), hr).backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


def distil(teacher: nn.Module, steps: int, folder: Path, resume: bool = False) -> dict[str, Any]:
    """Train a student beside the teacher; return what the checkpoint holds."""
    torch.manual_seed(0)
    student = Network(channels=12, blocks=3).to(DEVICE)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    history = HistoryModel(student, interval=50)  # DCKD; short runs move it more often than 1000
    dckd = DCKDLoss(student, "compact", history=history).attach(optimizer).to(DEVICE)  # DCKD

    parts = {"student": student, "optimizer": optimizer, "dckd": dckd}
    checkpoint, saved = folder / "checkpoint.pt", {"step": 0}
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=DEVICE, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for step in range(saved["step"] + 1, steps + 1):
        lr, hr = batch(step)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
            student_out = student(lr)
            with torch.no_grad():
                teacher_out = teacher(lr)
        pixel_loss = F.l1_loss(student_out, hr) + F.l1_loss(student_out, teacher_out)
        dckd_loss = dckd(student_out, teacher_out, lr)  # DCKD
        if step % LOG_EVERY == 0:  # the gradient norm of DCKD over that of the pixel losses
            ratio = gradient_ratio(dckd_loss, pixel_loss, student_out)
            losses = f"pixel {pixel_loss:.4f} dckd {dckd_loss:.4f}"
            print(f"step {step} {losses} gradient ratio {ratio:.3g}", flush=True)
        optimizer.zero_grad()
        (pixel_loss + dckd_loss).backward()
        optimizer.step()
        if step % LOG_EVERY == 0 or step == steps:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"step": step, **states}, folder / "checkpoint.part")
            (folder / "checkpoint.part").replace(checkpoint)  # whole or not at all
    return parts


@torch.no_grad()
def show(networks: dict[str, nn.Module], path: Path) -> dict[str, float]:
    """PSNR in RGB on the photograph that is held out, and a picture of the same part of each."""
    lr = low_resolution(HELD_OUT)
    versions = {"bicubic": F.interpolate(lr, scale_factor=SCALE, mode="bicubic")}
    versions |= {name: network.eval()(lr.to(DEVICE)).cpu() for name, network in networks.items()}
    errors = {name: F.mse_loss(x.clamp(0, 1), HELD_OUT) for name, x in versions.items()}
    row = torch.cat([x[0, :, 60:220, 100:260] for x in (*versions.values(), HELD_OUT)], dim=2)
    io.imsave(path, (row.clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy())
    return {name: -10 * error.log10().item() for name, error in errors.items()}


def main() -> None:
    """Train a teacher and its student, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of each (default: 300)")
    parser.add_argument("--output", type=Path, default=Path("runs/plain_loop"), metavar="DIR")
    parser.add_argument("--resume", action="store_true", help="go on from the output folder")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"got --steps {args.steps}; expected 1 or more")
    args.output.mkdir(parents=True, exist_ok=True)
    teacher = train_teacher(args.steps)
    student = distil(teacher, args.steps, args.output, args.resume)["student"]
    scores = show({"student": student, "teacher": teacher}, args.output / "side_by_side.png")
    print("PSNR (dB)", *(f"{name} {value:.2f}" for name, value in scores.items()))


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, OSError) as error:  # a full disk, a file in the folder's place
        sys.exit(f"stopped: {str(error) or 'Ctrl-C'}")
