"""Distil a small deblurring student with DCKD, and see what it learned.

    python examples/train_deblur.py                      # minutes on a laptop, nothing to download
    python examples/train_deblur.py --method logits      # the same with plain distillation
    python examples/train_deblur.py --data GoPro/train --val GoPro/test \\
        --backbone nafnet-student --teacher nafnet-gopro --recipe paper

On several GPUs: accelerate launch, or torchrun --nproc_per_node N, examples/train_deblur.py ...
Ctrl-C stops after the current step; the same command with --resume goes on as if it had not.
"""

import argparse
import sys
from pathlib import Path

import restoration  # noqa: F401  (before the slow ones)
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from restoration import command, networks, resolve
from restoration.data.crops import RandomCrops
from restoration.data.datasets import open_pairs, open_sets, pairs_from_images
from restoration.data.images import photographs
from restoration.data.synthetic import camera_motion
from restoration.results import report
from restoration.training.console import exit_status, refusing
from restoration.training.loop import train
from torch import Tensor

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator, VQGANEncoder, gradient_ratio

TEACHER = Path(__file__).parent / "assets" / "deblur_teacher.safetensors"
VERSIONS, HELD_OUT_VERSIONS = 8, 2  # of each photograph, each degraded in its own way


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    return exit_status(lambda: distil(command.parse(__doc__, "deblur")))


def distil(args: argparse.Namespace) -> None:
    """Train a student beside its teacher, and compare the two."""
    with refusing():  # what a command line can have wrong is said here, the quick things first
        resolve.check(args)
        accelerator = resolve.accelerator_of(args)
        recipe = resolve.recipe_of(args, accelerator)
        distils, contrasts = args.method != "scratch", args.method not in ("scratch", "logits")

        # Networks: the teacher, the student, and the encoder in whose features DCKD compares them
        teacher = resolve.open_teacher(args, TEACHER, accelerator.device)
        set_seed(args.seed)
        student = networks.build(args.backbone, 1, args.backbone_options)
        encoder = VQGANEncoder.from_pretrained(args.encoder) if contrasts else None

        # Data: pairs of a blurred and a sharp image; images alone get the blur of a moving camera
        reading = {"skip_bad": args.skip_bad, "memory": args.memory, "degradation": camera_motion}
        if args.data is None:
            pairs = pairs_from_images(photographs("train"), 1, camera_motion, versions=VERSIONS)
        else:
            pairs = open_pairs(args.data, 1, **reading)
        if args.val is None:
            images = photographs("held_out")
            held_out = pairs_from_images(images, 1, camera_motion, versions=HELD_OUT_VERSIONS)
            val_sets = {"photographs": held_out}
        else:
            val_sets = open_sets(args.val, "deblur", 1, **reading)
        crops = RandomCrops.of(recipe, pairs, scale=1, seed=args.seed, folder=args.data)

        # The run: optimizer, moving average, log, checkpoint, several processes
        run = resolve.run_of(args, recipe, student, crops, accelerator, val_sets)
        run.settings = resolve.settings(args, run, teacher, encoder)

        # Losses: DCKD's history follows the student, after each step of the optimizer
        dckd = None
        if contrasts:
            history = HistoryModel(student, interval=recipe.history_interval)
            negatives = NegativeGenerator(history, seed=args.seed)
            weights = resolve.dckd_settings(args, recipe)
            dckd = DCKDLoss(student, encoder, negatives=negatives, **weights)  # DCKD, once
            dckd.attach(run.optimizer).to(accelerator.device)

    def step(lq: Tensor, gt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (Eq. 10), and its terms for the log."""
        student_out = run.model(lq).float()
        pixel_loss = recipe.pixel_loss(student_out, gt)  # L1; in NAFNet's recipe minus the PSNR
        terms = {"pixel": pixel_loss}
        if not distils:
            return pixel_loss, terms
        with torch.no_grad(), accelerator.autocast():
            teacher_out = teacher(lq).float()
        terms["kd"] = F.l1_loss(student_out, teacher_out)
        pixel_loss = pixel_loss + terms["kd"]
        if dckd is None:
            return pixel_loss, terms
        run.check(dckd, student_out, teacher_out, lq)
        dckd_loss = dckd(student_out, teacher_out, lq)  # DCKD, every step
        terms |= dckd.last
        if run.log_due:
            terms["ratio"] = gradient_ratio(dckd_loss, pixel_loss, student_out)
        return pixel_loss + dckd_loss, terms

    report.announce(args, run, teacher, dckd, val_sets)
    train(run, step, dckd=dckd, resume=args.resume)

    # Evaluation: PSNR in RGB, and SSIM over the volume of the three channels
    models = {"input": None, "student": student, "teacher": teacher}
    report.finish(args, run, models, val_sets)


if __name__ == "__main__":
    sys.exit(main())
