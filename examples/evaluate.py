"""Score a network, or bicubic interpolation, on a data set as the papers do.

    python examples/evaluate.py --task sr --scale 2 --model bicubic --data Set5

SR: PSNR and SSIM of the unrounded luma, a border of `scale` pixels left out.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from restoration import backbones, teachers
from restoration.data import load_pairs
from restoration.evaluation import Scores, evaluate
from torch import nn


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault."""
    try:
        run(arguments())
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", choices=["sr"], default="sr")
    parser.add_argument("--scale", type=int, required=True, help="HR size over LR size")
    known = ", ".join(teachers.KNOWN)
    parser.add_argument(
        "--model",
        required=True,
        help=f"a .safetensors file, bicubic (MATLAB's), or a teacher to fetch: {known}",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder of images, or of HR/ and LR_bicubic/X{scale}/; missing LR is made",
    )
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="write restored images")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table and write what was asked for."""
    model = open_model(args.model, args.scale)
    pairs = load_pairs(args.data, args.scale, skip_bad=args.skip_bad)
    if args.json:  # an unwritable place should be known before the work, not after
        args.json.parent.mkdir(parents=True, exist_ok=True)
    scores = evaluate(model, pairs, args.scale, args.save_images)
    print(table(scores))
    if args.json:
        report = {"task": args.task, "scale": args.scale, "model": args.model, **scores}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def open_model(name: str, scale: int) -> nn.Module | None:
    """The network of a file or a known teacher, on a GPU if there is one; None for bicubic."""
    if name == "bicubic":
        return None
    if name in teachers.KNOWN:
        model = teachers.load(name, teachers.KNOWN[name].backbone, scale)
    else:
        model = backbones.load(name)
    if model.scale != scale:
        raise ValueError(f"{name}: a network for x{model.scale}; expected one for x{scale}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def table(scores: Scores) -> str:
    """One line an image, then their mean."""
    rows = {**scores["images"], "mean": scores}
    width = max(map(len, rows))
    lines = [f"{'':{width}}  PSNR/dB    SSIM"]
    for name, score in rows.items():
        lines.append(f"{name:{width}}  {score['psnr']:7.2f}  {score['ssim']:6.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
