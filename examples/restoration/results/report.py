"""What a run says at its start, and leaves at its end: a table, metrics.json and pictures."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from .. import networks
from ..data.datasets import Pair
from ..data.images import Image
from ..data.layouts import lacks_pairs, sets_in
from ..recipe import Recipe
from ..training.loop import Run
from . import figures
from .evaluation import Scores, degraded, evaluate, restore
from .metrics import protocol

MADE = {"sr": "shrunk by MATLAB's bicubic", "deblur": "blurred", "derain": "rained on"}
PICTURES = 4  # images in side_by_side.png at most

Models = Mapping[str, nn.Module | None]  # by name; the input, which is None, first


def start(
    args: argparse.Namespace, job: Run, teacher: nn.Module | None, accelerator: Accelerator
) -> None:
    """Say what will happen, once."""
    if accelerator.is_main_process:
        processes = f"{accelerator.num_processes} x {accelerator.device.type}"
        print(description(args, job, teacher, processes), flush=True)


def finish(
    args: argparse.Namespace,
    job: Run,
    teacher: nn.Module | None,
    val_sets: Mapping[str, Sequence[Pair]],
    accelerator: Accelerator,
) -> None:
    """Write the student and what it reaches, and let the processes part."""
    if accelerator.is_main_process:
        path = job.folder / "student.safetensors"
        networks.save(job.student, path, task=args.task, method=args.method)
        models = {"input": None, "student": job.student}
        if teacher is not None:
            models["teacher"] = teacher.to(accelerator.device)
        facts = {"task": args.task, "scale": args.scale, "method": args.method}
        facts |= {"iterations": job.recipe.iterations, "seed": args.seed}
        print(report(job.folder, facts, models, val_sets, job.records))
        written = ", ".join(sorted(path.name for path in job.folder.iterdir()))
        print(f"written to {job.folder}: {written}")
    accelerator.end_training()


def description(
    args: argparse.Namespace, job: Run, teacher: nn.Module | None, processes: str
) -> str:
    """What will happen, in a dozen lines."""
    recipe, dckd = job.recipe, job.dckd
    losses = [recipe.reconstruction] if job.teacher is None else [recipe.reconstruction, "kd"]
    if dckd is not None:
        weights = {"dcr": dckd.dcr_weight, "dmm": dckd.dmm_weight}
        losses += [f"{weight:g} {name}" for name, weight in weights.items() if weight]
        losses[-1] += " as released" if dckd.dmm_weight and recipe.form == "released" else ""
    balanced = f", balanced to {recipe.balance:g}" if dckd and recipe.balance else ""
    history = f"history moves every {recipe.history_interval} steps"
    lines = {
        "method": f"{args.method}: {' + '.join(losses)}{balanced}, seed {args.seed}",
        "data": f"{len(job.crops.pairs)} images of {args.data or 'scikit-image'}, scale "
        f"{args.scale}{''.join(made_of(args))}",
        "student": f"{args.backbone}, {cost(job.student)}",
        "teacher": "none" if teacher is None else cost(teacher),
        "encoder": "none" if dckd is None else f"{args.encoder}, {history}",
        **recipe_lines(recipe, processes),
        "output": job.folder,
    }
    return "\n".join(f"{name:12}{value}" for name, value in lines.items())


def made_of(args: argparse.Namespace) -> Iterator[str]:
    """A line for each folder whose low-quality images are made; it may be meant to have them."""
    folders = [] if args.data is None else [(args.data, False)]
    folders += [(each, True) for folder in args.val or () for each in sets_in(folder)]
    for folder, held_out in folders:
        if lacks_pairs(folder, args.scale, held_out=held_out):
            yield f"\n{'':12}no pairs in {folder}: its images are {MADE[args.task]}"


def recipe_lines(recipe: Recipe, processes: str) -> dict[str, str]:
    """A recipe in words."""
    crops = [f"{s.batch_size} crops of {s.crop}x{s.crop}" for s in recipe.all_stages]
    decay = f", weight decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    clip = f", gradients clipped to {recipe.clip:g}" if recipe.clip else ""
    average = {"average": f"of the student, decay {recipe.ema:g}"} if recipe.ema else {}
    return {
        "steps": f"{recipe.iterations:,} of {crops[0]} on {processes}",
        **{f"at {s.step:,}": text for s, text in zip(recipe.stages, crops[1:], strict=True)},
        "optimizer": f"{recipe.optimizer}, betas {recipe.betas}{decay}{clip}",
        "lr": f"{recipe.lr:g}, {recipe.schedule}",
        **average,
    }


def cost(model: nn.Module) -> str:
    """Parameters, and multiply-adds for one LR pixel."""
    parameters = sum(p.numel() for p in model.parameters())
    per_pixel = networks.multiply_adds(model, 32, 32) / 32**2
    return f"{parameters:,} parameters, {per_pixel:,.0f} multiply-adds an LR pixel"


def report(
    folder: Path,
    facts: Mapping[str, Any],
    models: Models,
    val_sets: Mapping[str, Sequence[Pair]],
    records: Sequence[Mapping[str, float]],
) -> str:
    """Evaluate the models and write metrics.json, log.json, curves.png and side_by_side.png.

    Args:
        folder: where to.
        facts: begin metrics.json; among them `task` and `scale`.
        models: by name, each on its own device.
        val_sets: pairs by the name of their set; curves and pictures are of the first.
        records: the trainer's.

    Returns:
        the table of all scores.
    """
    task, scale = facts["task"], facts["scale"]
    scores = {
        name: {who: evaluate(model, pairs, scale, task=task) for who, model in models.items()}
        for name, pairs in val_sets.items()
    }
    val = {
        name: {who: {k: score[k] for k in ("psnr", "ssim")} for who, score in by_model.items()}
        for name, by_model in scores.items()
    }
    _write(folder / "metrics.json", {**facts, "val": val})
    _write(folder / "log.json", records)
    first, pairs = next(iter(val_sets.items()))
    levels = {_title(w, scale): s["psnr"] for w, s in scores[first].items() if w != "student"}
    figures.curves(records, levels, folder / "curves.png")
    figures.side_by_side(
        {
            pair.name: _versions(pair, models, scores[first], scale)
            for pair in (pairs[index] for index in range(min(PICTURES, len(pairs))))
        },
        folder / "side_by_side.png",
    )
    return table(scores, task, scale)


def table(scores: Mapping[str, Mapping[str, Scores]], task: str, scale: int) -> str:
    """One line a validation set: PSNR and SSIM of each model."""
    heading = f"PSNR (dB) and SSIM {'on Y' if protocol(task, scale).y else 'in RGB'}"
    width = max(map(len, [*scores, heading]))
    models = next(iter(scores.values()))
    lines = [f"{heading:{width}}" + "".join(f"{_title(who, scale):>16}" for who in models)]
    for name, by_model in scores.items():
        cells = (f"{score['psnr']:.2f} / {score['ssim']:.4f}" for score in by_model.values())
        lines.append(f"{name:{width}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _versions(
    pair: Pair, models: Models, scores: Mapping[str, Scores], scale: int
) -> dict[str, tuple[Image, float | None]]:
    """One image as each of the models makes it, with its PSNR, and the ground truth."""
    made: dict[str, tuple[Image, float | None]] = {}
    for who, model in models.items():
        image = restore(model, pair.lq) if model else degraded(pair.lq, scale)
        made[_title(who, scale)] = image, scores[who]["images"][pair.name]["psnr"]
    return {**made, "ground truth": (pair.hq, None)}


def _title(who: str, scale: int) -> str:
    return "bicubic" if who == "input" and scale > 1 else who


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
