"""What a run says at its start, and leaves at its end: a table, metrics.json and pictures."""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import command, config, networks
from ..data.datasets import Pair, left_out, made
from ..data.images import Image
from ..recipe import Recipe
from ..training import checkpoint
from ..training.console import refusing
from ..training.loop import Run
from . import export, figures
from .evaluation import PICTURES, evaluate, table, write_json
from .metrics import protocol

LINE = 88  # characters, where a list of names has to be cut
LOSSES = ("dcr_weight", "dmm_weight", "form", "balance")  # of the settings, what is DCKD's alone

Models = Mapping[str, nn.Module | None]  # by name; the input, which is None, first
Sets = Mapping[str, Sequence[Pair]]  # by name; curves and pictures are of the first


def announce(
    args: argparse.Namespace, run: Run, teacher: nn.Module | None, dckd: Any, val_sets: Sets
) -> None:
    """Say what will happen, once, in a dozen lines; and in config.yaml, to repeat it."""
    if not run.accelerator.is_main_process:
        return
    path, resumed = run.folder / "config.yaml", args.resume and run.checkpoint.exists()
    if not (resumed and path.exists()):  # a resume may still be refused
        config.write(path, f"python examples/train_{args.task}.py", args.options)
    said = (made(args.task, pairs) for pairs in (run.crops.pairs, *val_sets.values()))
    made_of = [f"\n{'':12}{each}" for each in said if each]
    moves = f"history moves every {run.recipe.history_interval} steps"
    lines = {
        "method": f"{args.method}: {_losses(args, run.recipe, dckd)}, seed {args.seed}",
        "data": f"{len(run.crops.pairs)} images of {args.data or 'scikit-image'}, scale "
        f"{args.scale}{''.join(made_of)}",
        "held out": "; ".join(f"{name}: {_names(pairs)}" for name, pairs in val_sets.items()),
        "student": f"{args.backbone}, {cost(run.student)}",
        "teacher": "none" if teacher is None else cost(teacher),
        "encoder": "none" if dckd is None else f"{args.encoder}, {moves}",
        **_recipe_lines(run),
    }
    if dckd is not None:
        lines["ratio"] = "in the log: the gradient norm of DCKD over that of the pixel losses"
    lines["output"] = str(run.folder)
    if "tensorboard" in (args.log_with or ()):
        lines["log"] = f"tensorboard --logdir {run.folder} shows it"
    print("\n".join(f"{name:12}{text}" for name, text in lines.items()), flush=True)
    if args.resume and not run.checkpoint.exists():
        print(f"no checkpoint in {run.folder}: starting anew", flush=True)
    elif run.checkpoint.exists() and not args.resume:
        print("an earlier run's checkpoint is put aside: --resume would go on from it", flush=True)


def finish(args: argparse.Namespace, run: Run, models: Models, val_sets: Sets) -> None:
    """Write the student and what the models reach, and let the processes part.

    Raises:
        RefusedError: The student cannot be exported as asked; all else is written.
    """
    try:
        if run.accelerator.is_main_process:
            _finish(args, run, models, val_sets)
    finally:
        run.accelerator.end_training()


def _finish(args: argparse.Namespace, run: Run, models: Models, val_sets: Sets) -> None:
    assert run.save is not None
    run.save(run.folder / "student.safetensors")
    there = {who: model for who, model in models.items() if model or who == "input"}
    plain = _plain_distillation(args, run)
    if plain is not None:  # before the student
        there = {"input": None, "logits": plain, **there}
    facts = {"task": args.task, "scale": args.scale, "method": args.method}
    facts |= {"iterations": run.recipe.iterations, "seed": args.seed}
    if run.best is not None:
        run.save(run.best_file, tensors=run.best["student"])
        facts["best"] = {"step": run.best["step"], "psnr": run.best["psnr"]}
        said = "the validated student of the highest PSNR, {psnr:.2f} dB at step {step:,}"
        print(f"{run.best_file.name}: {said.format(**run.best)}")
    if unread := sorted({*run.crops.left_out, *left_out(val_sets.values())}):
        facts["left_out"] = unread
        print(f"left out, as they cannot be read: {', '.join(unread)}")
    report(run.folder, facts, there, val_sets, run.records)
    if args.export == "onnx":
        path = run.folder / "student.onnx"
        with refusing():
            difference = export.export_onnx(run.student, path)
        print(f"written to {path}, within {difference:.0e} of the student")
    if args.data is None:
        compare = command.METHODS[args.method] is not None and plain is None
        first = "--method logits and then this again shows what DCKD adds; " if compare else ""
        print(f"next: {first}--data FOLDER --val FOLDER takes your own images")


def _plain_distillation(args: argparse.Namespace, run: Run) -> nn.Module | None:
    """The student of a run by --method logits that differs in nothing else, where there is one."""
    if command.METHODS[args.method] is None:
        return None
    folder = command.default_folder(args, "logits")
    ours = json.loads(json.dumps({**run.settings, "method": "logits"}))  # as a file has them
    theirs = checkpoint.settings(folder / "checkpoint.pt")
    if any(ours.get(k) != theirs.get(k) for k in {*ours, *theirs} - {*LOSSES, "encoder"}):
        return None
    try:
        return networks.load(folder / "student.safetensors").to(run.accelerator.device)
    except RuntimeError:  # that run is not finished, or its student is damaged
        return None


def _losses(args: argparse.Namespace, recipe: Recipe, dckd: Any) -> str:
    losses = [recipe.reconstruction] if args.method == "scratch" else [recipe.reconstruction, "kd"]
    if dckd is None:
        return " + ".join(losses)
    weights = {"dcr": dckd.dcr_weight, "dmm": dckd.dmm_weight}
    losses += [f"{weight:g} {name}" for name, weight in weights.items() if weight]
    losses[-1] += " as released" if dckd.dmm_weight and recipe.form == "released" else ""
    balanced = f", balanced to {recipe.balance:g}" if recipe.balance else ""
    return " + ".join(losses) + balanced


def _names(pairs: Sequence[Pair]) -> str:
    """Names of images, as many as fit into a line."""
    names = [getattr(each, "name", "") for each in getattr(pairs, "files", pairs)]
    if len(", ".join(names)) <= LINE:
        return ", ".join(names)
    return f"{names[0]} to {names[-1]}, {len(names)} images"


def _recipe_lines(run: Run) -> dict[str, str]:
    """The recipe in words."""
    recipe, devices = run.recipe, run.accelerator
    crops = [f"{s.batch_size} crops of {s.crop}x{s.crop}" for s in recipe.all_stages]
    decay = f", weight decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    clip = f", gradients clipped to {recipe.clip:g}" if recipe.clip else ""
    average = {"average": f"of the student, decay {recipe.ema:g}"} if recipe.ema else {}
    on = f"{devices.num_processes} x {devices.device.type}"
    if devices.device.type == "cpu":
        on += f", threads: {torch.get_num_threads()} (OMP_NUM_THREADS sets it)"
    return {
        "steps": f"{recipe.iterations:,} of {crops[0]} on {on}",
        **{f"at {s.step:,}": text for s, text in zip(recipe.stages, crops[1:], strict=True)},
        "optimizer": f"{recipe.optimizer}, betas {recipe.betas}{decay}{clip}",
        "lr": f"{recipe.lr:g}, {recipe.schedule}",
        **average,
    }


def cost(model: nn.Module) -> str:
    """Parameters, and multiply-adds for one LQ pixel."""
    parameters = sum(p.numel() for p in model.parameters())
    per_pixel = networks.multiply_adds(model, 32, 32) / 32**2
    return f"{parameters:,} parameters, {per_pixel:,.0f} multiply-adds per LQ pixel"


def report(
    folder: Path,
    facts: Mapping[str, Any],
    models: Models,
    val_sets: Sets,
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Evaluate the models; write metrics.json and log.json, draw pictures, and print a table.

    `facts`, with `task`, `scale` and `method` among them, begin metrics.json.
    """
    task, scale = facts["task"], facts["scale"]
    titles = {who: _title(who, scale, facts["method"]) for who in models}
    shown: dict[str, dict[str, Image]] = {title: {} for title in titles.values()}
    scores = {
        name: {
            who: evaluate(model, pairs, scale, task=task, shown=shown[titles[who]])
            for who, model in models.items()
        }
        for name, pairs in val_sets.items()
    }
    val = {
        name: {who: {k: score[k] for k in ("psnr", "ssim")} for who, score in by_model.items()}
        for name, by_model in scores.items()
    }
    write_json(folder / "metrics.json", {**facts, "val": val})
    write_json(folder / "log.json", records)
    first, pairs = next(iter(val_sets.items()))
    lines = {titles[w]: s["psnr"] for w, s in scores[first].items() if w != "student"}
    figures.curves(records, lines, folder / "curves.png")
    few, rules = list(islice(pairs, PICTURES)), protocol(task, scale)
    figures.side_by_side(few, shown, rules, folder / "side_by_side.png")
    rows = [(name, *by_model.values()) for name, by_model in scores.items()]
    print(f"PSNR (dB) / SSIM {rules}", table([("set", *titles.values()), *rows]), sep="\n")
    written = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    print(f"written to {folder}: {', '.join(written)}")


def _title(who: str, scale: int, method: str) -> str:
    if who == "student" and method == "dckd":
        return "DCKD"  # beside plain distillation, which is a student too
    known = {"input": "bicubic" if scale > 1 else "input", "logits": "plain distillation"}
    return known.get(who, who)
