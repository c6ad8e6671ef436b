"""Score a network, or the degraded images themselves, on a data set as the papers do.

    python examples/evaluate.py --task sr --scale 2 --model bicubic --data Set5
    python examples/evaluate.py --task deblur --model nafnet-gopro --data GoPro/test
    python examples/evaluate.py --task derain --model input --data Rain13K/test

SR: unrounded luma, a border of `scale` pixels left out. Deraining: luma, rounded as MATLAB does.
Deblurring: RGB, SSIM over the volume. Images are restored whole, or in tiles.
"""

import argparse
import sys
from collections.abc import Mapping

import restoration  # noqa: F401  (before the slow ones)
import torch
from restoration import networks
from restoration.command import MAX_SCALE, add_two_folders, path, source_of
from restoration.data.datasets import left_out, made, open_sets
from restoration.results.evaluation import UNIT, Scores, evaluate, mean, write_json
from restoration.training.console import check_folder, exit_status, refusing
from torch import nn

from dckd_losses.checks import check_number

INPUT = ("input", "bicubic")  # for the one size and for the others


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""

    def command() -> None:
        with refusing():
            run(arguments())

    return exit_status(command, again="")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", choices=["sr", "deblur", "derain"], default="sr")
    add("--scale", type=int, metavar="N", help="HR size over LR size, for --task sr")
    text = "a file of weights, a URL, input (sr: bicubic, MATLAB's), or a teacher to fetch: "
    add("--model", required=True, help=text + ", ".join(networks.KNOWN))
    text = (
        "its code, file.py:callable or package.module:callable, and options for that; or one of "
        f"{', '.join(networks.SPECIFICATIONS)} (default: recognised by its tensors)"
    )
    add("--backbone", nargs="+", metavar=("CODE", "KEY=VALUE"), default=[], help=text)
    text = "sr: images, or HR with LR_bicubic/X2; otherwise input with target, or blur with sharp"
    add("--data", type=path, metavar="DIR", help=text)
    add_two_folders(parser, "--data")
    add("--tile", type=int, metavar="N", help="restore large images in parts of NxN pixels")
    add("--json", type=path, metavar="FILE", help="write the scores to this file")
    add("--save-images", type=path, metavar="DIR", help="write restored images")
    add("--skip-bad", action="store_true", help="leave unreadable images out")
    args = parser.parse_args()
    args.data = source_of(parser, args, "data")
    if args.data is None:
        parser.error("got no images; expected --data, or --lq and --gt")
    return args


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table and write what was asked for."""
    scale = scale_of(args)
    check_outputs(args)
    if args.tile is not None:
        check_number("--tile", args.tile, at_least=UNIT, at_most=2**16, whole=True)
    model = open_model(args, scale)
    sets = open_sets([args.data], args.task, scale, skip_bad=args.skip_bad)
    scores: dict[str, Scores] = {}
    for name, pairs in sets.items():
        inside = name if len(sets) > 1 else ""
        if said := made(args.task, pairs):
            print(said)
        images = args.save_images and args.save_images / inside
        scores[name] = evaluate(model, pairs, scale, images, task=args.task, tile=args.tile)
        print(table(scores[name], inside))
    if args.json:
        facts = {"task": args.task, "scale": scale, "model": args.model}
        if unread := left_out(sets.values()):
            facts["left_out"] = unread
        write_json(args.json, {**facts, **joined(scores)})


def scale_of(args: argparse.Namespace) -> int:
    """HR size over LR size."""
    if args.task != "sr":
        if args.scale not in (None, 1):
            raise ValueError(f"got --scale {args.scale} for --task {args.task}; expected none")
        return 1
    if args.scale is None:
        raise ValueError("got no --scale for --task sr; give --scale 2 or more")
    check_number("--scale", args.scale, at_least=2, at_most=MAX_SCALE, whole=True)
    return int(args.scale)


def check_outputs(args: argparse.Namespace) -> None:
    """An unwritable place should be known before the work, not after."""
    if args.save_images:
        check_folder("--save-images", args.save_images)
    if args.json:
        check_folder("--json", args.json.parent)
        if args.json.is_dir():
            raise ValueError(f"--json: {args.json} is a folder; expected a file or nothing")


def open_model(args: argparse.Namespace, scale: int) -> nn.Module | None:
    """The network of a file or a known teacher, on a GPU if there is one; None for the input."""
    name = args.model
    if name in INPUT:
        if args.backbone:
            said = " ".join(args.backbone)
            raise ValueError(f"got --backbone {said} for --model {name}; expected none")
        if name == "bicubic" and scale == 1:
            raise ValueError(f"got --model bicubic for --task {args.task}; expected input")
        return None
    model = networks.open_network(name, scale, args.backbone)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def joined(scores: Mapping[str, Scores]) -> dict[str, object]:
    """The scores of one set; of several the mean of their means, and each set's own."""
    if len(scores) == 1:
        return dict(next(iter(scores.values())))
    return {**mean(scores.values()), "sets": scores}


def table(scores: Scores, name: str) -> str:
    """One line an image, then their mean, under the set's name if it has one."""
    rows = {**scores["images"], "mean": scores}
    width = max(map(len, [*rows, name]))
    lines = [f"{name:{width}}  PSNR/dB    SSIM"]
    for image, score in rows.items():
        lines.append(f"{image:{width}}  {score['psnr']:7.2f}  {score['ssim']:6.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
