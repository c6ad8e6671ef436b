"""Score networks, and the degraded images themselves, on data sets as the papers do.

    python examples/evaluate.py --scale 2 --model bicubic my.pth other.pth --data Set5 Set14
    python examples/evaluate.py --task deblur --model nafnet-gopro --data GoPro/test
    python examples/evaluate.py --task derain --model input --input rainy --gt clean

SR: unrounded luma, a border of `scale` pixels left out. Deraining: luma, rounded as MATLAB does.
Deblurring: RGB, SSIM over the volume. Images are restored whole, or in tiles.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import restoration  # noqa: F401  (before the slow ones)
import torch
from restoration import networks
from restoration.command import MAX_SCALE, path
from restoration.data.datasets import last_parts, left_out, made, open_sets
from restoration.data.images import Image
from restoration.data.layouts import TwoFolders
from restoration.results import figures
from restoration.results.evaluation import (
    PICTURES,
    UNIT,
    Scores,
    enlarged,
    evaluate,
    mean,
    table,
    write_json,
)
from restoration.results.metrics import NotFiniteError, protocol
from restoration.training.console import RefusedError, check_folder, exit_status, refusing
from torch import nn

from dckd_losses.checks import check_number

INPUT = ("input", "bicubic")  # for the one size and for the others

Models = Mapping[str, nn.Module | None]  # by title; the degraded images are None


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
    text = "files of weights, URLs, input (sr: bicubic, MATLAB's), or teachers to fetch: "
    text += ", ".join(networks.KNOWN)
    many = {"nargs": "+", "action": "append"}
    add("--model", **many, required=True, metavar="MODEL", help=f"{text}; repeatable")
    text = (
        "their code, file.py:callable or package.module:callable, and options for that; or one of "
        f"{', '.join(networks.SPECIFICATIONS)} (default: recognised by their tensors). Of the "
        "--model before it; before the first one, of all"
    )
    code = ("CODE", "KEY=VALUE")
    add("--backbone", nargs="+", action=OfModel, metavar=code, default={}, help=text)
    folders = {"nargs": "+", "type": path, "metavar": "DIR", "action": "extend", "default": []}
    text = "sr: images, or HR with LR_bicubic/X2; otherwise input with target, or blur with sharp"
    add("--data", **folders, help=f"{text}; a set each")
    text = "instead of --data: each set's degraded images, beside --gt"
    add("--input", "--lq", dest="lq", **folders, help=text)
    text = "instead of --data: each set's ground truths; sr makes the others without --input"
    add("--gt", **folders, help=text)
    add("--tile", type=int, metavar="N", help="restore large images in parts of NxN pixels")
    add("--json", type=path, metavar="FILE", help="write the scores, each image's too")
    add("--picture", type=path, metavar="FILE", help="draw the first images side by side, a PNG")
    add("--save-images", type=path, metavar="DIR", help="write restored images")
    add("--skip-bad", action="store_true", help="leave unreadable images out")
    args = parser.parse_args()
    if args.data and (args.lq or args.gt):
        parser.error("got --data beside --input or --gt; expected --data, or --input and --gt")
    if not (args.data or args.gt):
        parser.error("got no ground truths; expected --data, or --input and --gt")
    if args.gt and not args.lq and args.task != "sr":
        parser.error("got --gt without --input; expected both")
    if args.lq and len(args.lq) != len(args.gt):
        parser.error(
            f"got --input of {len(args.lq)} sets and --gt of {len(args.gt)}; expected both of each"
        )
    lq = args.lq or [None] * len(args.gt)
    args.data += [TwoFolders(*each) for each in zip(lq, args.gt, strict=True)]
    return args


class OfModel(argparse.Action):
    """Keeps an option by the number of times that --model was there before it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Called by argparse."""
        namespace.backbone = {**namespace.backbone, len(namespace.model or ()): values}


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table and write what was asked for."""
    scale = scale_of(args)
    check_outputs(args)
    if args.tile is not None:
        check_number("--tile", args.tile, at_least=UNIT, at_most=2**16, whole=True)
    models, given = open_models(args, scale)
    sets = open_sets(args.data, args.task, scale, skip_bad=args.skip_bad)
    folders: dict[tuple[str, str], Path] = {}  # of restored images, by model and set
    if args.save_images:
        for title, name in itertools.product(models, sets):
            parts = [title] * (len(models) > 1) + [name] * (len(sets) > 1)
            folders[title, name] = args.save_images.joinpath(*parts)
    keep_inputs(args.picture, folders, sets)
    for pairs in sets.values():
        if said := made(args.task, pairs):
            print(said)
    scores: dict[str, dict[str, Scores]] = {title: {} for title in models}
    shown: dict[str, dict[str, Image]] = {title: {} for title in models}
    for name, pairs in sets.items():
        for title, model in models.items():
            results = {"folder": folders.get((title, name)), "shown": shown[title]}
            try:
                of_set = evaluate(model, pairs, scale, task=args.task, tile=args.tile, **results)
            except (NotFiniteError, RefusedError) as error:
                raise RefusedError(f"{title} on {name}: {error}") from error
            scores[title][name] = of_set
    rows = [("model", "parameters", *sets)]
    for title, by_set in scores.items():
        model = models[title]
        size = f"{sum(p.numel() for p in model.parameters()):,}" if model else ""
        rows.append((title, size, *by_set.values()))
    print(f"PSNR (dB) / SSIM {protocol(args.task, scale)}")
    print(table(rows))
    if args.json:
        facts = {"task": args.task, "scale": scale}
        if unread := left_out(sets.values()):
            facts["left_out"] = unread
        each = {t: {"model": given[t], **joined(by_set)} for t, by_set in scores.items()}
        one = next(iter(each.values()))
        write_json(args.json, {**facts, **(one if len(each) == 1 else {"models": each})})
    if args.picture:
        few = list(itertools.islice(next(iter(sets.values())), PICTURES))
        inputs = {name: enlarged(lq, scale) for name, lq, _ in few}
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        versions = {INPUT[scale > 1]: inputs, **shown}
        figures.side_by_side(few, versions, protocol(args.task, scale), args.picture)


def keep_inputs(
    picture: Path | None, folders: Mapping[tuple[str, str], Path], sets: Mapping[str, Any]
) -> None:
    """Refuse to write results over the images that are scored."""
    files = (file for pairs in sets.values() for each in pairs.files for file in each[1:] if file)
    inputs = {file.resolve() for file in files}
    results = [picture] if picture else []
    for (_, name), folder in folders.items():
        results += [folder / f"{each[0]}.png" for each in sets[name].files]
    for file in results:
        if file.resolve() in inputs:
            raise ValueError(f"{file} is an image of a set; expected another place for results")


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
    for option, file, end in (("--json", args.json, ".json"), ("--picture", args.picture, ".png")):
        if file:
            check_folder(option, file.parent, (file.name,))
            if file.suffix.lower() != end:
                raise ValueError(f"got {option} {file}; expected a file *{end}")


def open_models(args: argparse.Namespace, scale: int) -> tuple[Models, dict[str, str]]:
    """Networks by title, on a GPU if there is one, and what the command line calls each."""
    given: dict[str, Sequence[str]] = {}
    places = set()
    for number, names in enumerate(args.model, start=1):
        backbone = args.backbone.get(number, args.backbone.get(0, []))
        for name in names:
            if name == "bicubic" and scale == 1:
                raise ValueError(f"got --model bicubic for --task {args.task}; expected input")
            if number in args.backbone and set(names) <= set(INPUT):
                said = " ".join(backbone)
                raise ValueError(f"got --backbone {said} for --model {name}; expected none")
            said, name = name, INPUT[scale > 1] if name in INPUT else name
            place = Path(name).resolve() if Path(name).is_file() else name
            if place in places:
                raise ValueError(f"got the model {said} twice; expected each model once")
            places.add(place)
            given[name] = backbone
    titles = dict(zip(titles_of(list(given)), given, strict=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {
        title: networks.open_network(name, scale, given[name]).to(device)
        if name not in INPUT
        else None
        for title, name in titles.items()
    }
    return models, titles


def titles_of(models: Sequence[str]) -> list[str]:
    """Short titles: of files their names, without suffixes and with folders where that matters."""
    paths = [
        PurePosixPath(name) if name in (*INPUT, *networks.KNOWN) or "://" in name
        else Path(name).resolve()
        for name in models
    ]  # fmt: skip
    plain = [(*each.parent.parts, each.stem) for each in paths]
    return last_parts(plain if len(set(plain)) == len(plain) else [p.parts for p in paths])


def joined(scores: Mapping[str, Scores]) -> dict[str, object]:
    """The scores of one set; of several the mean of their means, and each set's own."""
    if len(scores) == 1:
        return dict(next(iter(scores.values())))
    return {**mean(scores.values()), "sets": scores}


if __name__ == "__main__":
    sys.exit(main())
