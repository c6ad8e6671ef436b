"""What a run says at its start, and leaves at its end: a table, metrics.json and pictures."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from . import backbones, figures
from .data import Pair
from .degrade import Image, matlab_bicubic
from .evaluation import Scores, evaluate, restore
from .trainer import Run

PICTURES = 4  # images in side_by_side.png at most
HEADING = "PSNR (dB) and SSIM on Y"

Models = Mapping[str, nn.Module | None]  # by name; the input, which is None, first


def description(
    args: argparse.Namespace, job: Run, teacher: nn.Module | None, processes: str
) -> str:
    """What will happen, in a dozen lines."""
    recipe, dckd = job.recipe, job.dckd
    losses = ["l1"] if job.teacher is None else ["l1", "kd"]
    if dckd is not None:
        weights = {"dcr": dckd.dcr_weight, "dmm": dckd.dmm_weight}
        losses += [f"{weight:g} {name}" for name, weight in weights.items() if weight]
    lines = {
        "method": f"{args.method}: {' + '.join(losses)}, seed {args.seed}",
        "data": f"{len(job.crops.pairs)} images of {args.data or 'scikit-image'}, scale "
        f"{args.scale}, LR crops {recipe.crop}x{recipe.crop}",
        "student": f"{args.backbone}, {cost(job.student)}",
        "teacher": "none" if teacher is None else cost(teacher),
        "encoder": "none"
        if dckd is None
        else f"{args.encoder}, history moves every {recipe.history_interval} steps",
        "steps": f"{recipe.iterations} of {recipe.batch_size} crops on {processes}",
        "optimizer": f"{recipe.optimizer}, betas {recipe.betas}",
        "lr": f"{recipe.lr:g}, {recipe.schedule}",
        "output": job.folder,
    }
    return "\n".join(f"{name:12}{value}" for name, value in lines.items())


def cost(model: nn.Module) -> str:
    """Parameters, and multiply-adds for one LR pixel."""
    parameters = sum(p.numel() for p in model.parameters())
    per_pixel = backbones.multiply_adds(model, 32, 32) / 32**2
    return f"{parameters:,} parameters, {per_pixel:,.0f} multiply-adds an LR pixel"


def report(
    folder: Path,
    facts: Mapping[str, Any],
    models: Models,
    val_sets: Mapping[str, list[Pair]],
    records: Sequence[Mapping[str, float]],
) -> str:
    """Evaluate the models and write metrics.json, log.json, curves.png and side_by_side.png.

    Args:
        folder: where to.
        facts: begin metrics.json; among them `scale`.
        models: by name, each on its own device.
        val_sets: pairs by the name of their set; curves and pictures are of the first.
        records: the trainer's.

    Returns:
        the table of all scores.
    """
    scale = facts["scale"]
    scores = {
        name: {who: evaluate(model, pairs, scale) for who, model in models.items()}
        for name, pairs in val_sets.items()
    }
    val = {
        name: {who: {k: score[k] for k in ("psnr", "ssim")} for who, score in by_model.items()}
        for name, by_model in scores.items()
    }
    _write(folder / "metrics.json", {**facts, "val": val})
    _write(folder / "log.json", records)
    first, pairs = next(iter(val_sets.items()))
    levels = {_title(w): s["psnr"] for w, s in scores[first].items() if w != "student"}
    figures.curves(records, levels, folder / "curves.png")
    figures.side_by_side(
        {pair.name: _versions(pair, models, scores[first], scale) for pair in pairs[:PICTURES]},
        folder / "side_by_side.png",
    )
    return table(scores)


def table(scores: Mapping[str, Mapping[str, Scores]]) -> str:
    """One line a validation set: PSNR and SSIM of each model."""
    width = max(map(len, [*scores, HEADING]))
    models = next(iter(scores.values()))
    lines = [f"{HEADING:{width}}" + "".join(f"{_title(who):>16}" for who in models)]
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
        image = restore(model, pair.lq) if model else matlab_bicubic(pair.lq, scale)
        made[_title(who)] = image, scores[who]["images"][pair.name]["psnr"]
    return {**made, "ground truth": (pair.hq, None)}


def _title(who: str) -> str:
    return "bicubic" if who == "input" else who


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
