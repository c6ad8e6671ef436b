"""What every integration trains: a tiny x2 student beside the embedded teacher, on photographs.

Nothing of DCKD is in this file, and nothing of yours need look like it.
"""

# ruff: noqa: E402  (the folder of `restoration` is named before it is imported)
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(EXAMPLES))  # for `restoration`, as for the scripts beside it

import restoration  # noqa: F401  (before the slow ones)
import torch
from restoration import networks
from restoration.data.crops import RandomCrops
from restoration.data.datasets import pairs_from_images
from restoration.data.images import photographs
from restoration.training.console import check_folder, exit_status, refusing
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dckd_losses.checks import check_number

SCALE = 2
BATCH_SIZE = 4
CROP = 16  # LR pixels a side
HISTORY_INTERVAL = 10  # steps; the paper's 1000 would never come in a run this short
LOG_EVERY = 5  # steps between lines about the losses and looks at the gradients


def command(
    train: Callable[[argparse.Namespace], object], description: str | None, output: str
) -> None:
    """Run a command line; what is at fault in it is one line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", type=int, metavar="N", default=40, help="optimizer steps (default: 40)")
    add("--output", type=Path, metavar="DIR", default=Path(output), help=f"default: {output}")
    add("--resume", action="store_true", help="go on from what is in the output folder")

    def run() -> None:
        args = parser.parse_args()
        with refusing():
            check_number("--steps", args.steps, at_least=1, whole=True)
            check_folder("--output", args.output)
            train(args)

    sys.exit(exit_status(run, again="--resume"))


def student() -> nn.Module:
    """A fresh student, always the same."""
    torch.manual_seed(0)
    return networks.build("tiny", SCALE)


def teacher() -> nn.Module:
    """The embedded teacher, frozen."""
    return networks.load(EXAMPLES / "assets" / "sr_x2_teacher.safetensors").requires_grad_(False)


def batches(first: int, last: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches number `first` to `last - 1` of LR and HR crops; number n is always the same."""
    pairs = pairs_from_images(photographs("train"), SCALE)
    crops = RandomCrops(pairs, crop=CROP, scale=SCALE, length=last * BATCH_SIZE, seed=0)
    return DataLoader(Subset(crops, range(first * BATCH_SIZE, len(crops))), batch_size=BATCH_SIZE)


def line(step: int, pixel_loss: Tensor, dckd_loss: Tensor, ratio: Tensor) -> str:
    """A step's losses, and how hard DCKD pulled at the student's output beside the pixel losses."""
    losses = f"pixel {pixel_loss.item():.4f} dckd {dckd_loss.item():.4f}"
    return f"step {step} {losses} gradient ratio {ratio.item():.3g}"
