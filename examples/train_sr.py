"""Distil a small super-resolution student with DCKD, and see what it learned.

    python examples/train_sr.py                                  # five minutes, nothing to download
    python examples/train_sr.py --method scratch                 # the same without a teacher
    python examples/train_sr.py --data DIV2K --val Set5 --scale 4 --teacher teacher_x4.safetensors

Several GPUs: `accelerate launch examples/train_sr.py ...`. Ctrl-C stops after the current step;
the same command with --resume continues as if nothing had happened.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from restoration import backbones, figures
from restoration.data import Pair, RandomCrops, load_pairs, pairs_from_images, photographs
from restoration.degrade import matlab_bicubic
from restoration.evaluation import Scores, evaluate, restore
from restoration.recipes import SMALL_SR, Recipe
from restoration.trainer import InterruptedRunError, Run, train
from torch import nn

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

TEACHERS = {2: Path(__file__).parent / "assets" / "sr_x2_teacher.safetensors"}
TEACHER_BACKBONE = "small"  # what the embedded teachers are
METHODS = {  # DCKD's two terms, each on or off; None where DCKD has no part
    "scratch": None,
    "logits": None,
    "dcr": (True, False),
    "dmm": (False, True),
    "dckd": (True, True),
}


def main() -> int:
    """Run the command line; 0, 2 where the input is at fault, 130 where it was interrupted."""
    try:
        run(arguments())
    except InterruptedRunError as stop:
        print(stop, file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(description=lines[0])
    add = parser.add_argument
    add("--data", type=Path, help="folder of training photographs (default: scikit-image's)")
    add("--val", type=Path, action="append", help="folder to validate on; repeatable")
    add("--scale", type=int, default=2, help="HR size over LR size (default: 2)")
    add("--backbone", choices=list(backbones.BACKBONES), default="tiny", help="the student")
    add("--method", choices=list(METHODS), default="dckd", help="which losses (default: dckd)")
    add("--encoder", default="compact", help="compact, vqgan-f16-1024, vqgan-f16-16384 or a path")
    add("--teacher", type=Path, help="a .safetensors file of this script (default: embedded, x2)")
    add("--dcr-weight", type=float, help="weight of DCR (default: the library's)")
    add("--dmm-weight", type=float, help="weight of DMM (default: the library's)")
    add("--iterations", type=int, default=SMALL_SR.iterations)
    add("--batch-size", type=int, default=SMALL_SR.batch_size, help="crops a step and process")
    add("--crop", type=int, default=SMALL_SR.crop, help="LR pixels a side")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="folder to write (default: runs/sr_x{scale}_{method}_{seed})")
    add("--resume", action="store_true", help="continue an interrupted run")
    add("--skip-bad", action="store_true", help="leave unreadable images out")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, and write the results."""
    recipe = replace(
        SMALL_SR, iterations=args.iterations, batch_size=args.batch_size, crop=args.crop
    )
    folder = args.output or Path("runs") / f"sr_x{args.scale}_{args.method}_{args.seed}"
    accelerator = Accelerator()
    if args.data is None:
        pairs = pairs_from_images(photographs("train"), args.scale)
    else:
        pairs = load_pairs(args.data, args.scale, skip_bad=args.skip_bad)
    val_sets = validation_sets(args)
    set_seed(args.seed)
    student = backbones.build(args.backbone, args.scale)
    teacher = open_teacher(args)
    job = Run(
        folder=folder,
        settings=settings(args, recipe),
        recipe=recipe,
        crops=RandomCrops(
            pairs,
            crop=recipe.crop,
            scale=args.scale,
            length=recipe.iterations * recipe.batch_size * accelerator.num_processes,
            seed=args.seed,
        ),
        student=student,
        teacher=None if args.method == "scratch" else teacher,
        dckd=distillation(args, student, recipe),
        validate=lambda model: evaluate(model, next(iter(val_sets.values())), args.scale)["psnr"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        describe(args, job, teacher, len(pairs))
    train(job, accelerator, resume=args.resume)
    if accelerator.is_main_process:
        report(args, job, teacher, val_sets)
    accelerator.end_training()


def validation_sets(args: argparse.Namespace) -> dict[str, list[Pair]]:
    """Pairs by the name of their set; scikit-image's held-out photographs where none is named."""
    if not args.val:
        return {"photographs": pairs_from_images(photographs("held_out"), args.scale)}
    names = [folder.resolve().name for folder in args.val]
    if len(set(names)) < len(names):
        raise ValueError(f"--val folders must have different names, got {', '.join(names)}")
    loaded = (load_pairs(folder, args.scale, skip_bad=args.skip_bad) for folder in args.val)
    return dict(zip(names, loaded, strict=True))


def open_teacher(args: argparse.Namespace) -> backbones.ResidualSR | None:
    """The teacher of a file or the embedded one; needed by every method but scratch."""
    training_one = args.method == "scratch" and args.backbone == TEACHER_BACKBONE
    path = args.teacher or (None if training_one else TEACHERS.get(args.scale))
    if path is None and args.method == "scratch":
        return None
    if path is None:
        raise ValueError(
            f"no teacher is embedded for x{args.scale}: train one by --backbone {TEACHER_BACKBONE} "
            f"--method scratch --scale {args.scale} and pass its student.safetensors as --teacher"
        )
    teacher = backbones.load(path)
    if teacher.scale != args.scale:
        raise ValueError(f"{path}: a network for x{teacher.scale}; expected x{args.scale}")
    return teacher


def distillation(args: argparse.Namespace, student: nn.Module, recipe: Recipe) -> DCKDLoss | None:
    """DCKD's losses with the terms that the method has."""
    terms = METHODS[args.method]
    if terms is None:
        return None
    weights = {"dcr_weight": args.dcr_weight, "dmm_weight": args.dmm_weight}
    chosen = {name: value for name, value in weights.items() if value is not None}
    chosen |= {name: 0.0 for name, on in zip(weights, terms, strict=True) if not on}
    history = HistoryModel(student, interval=recipe.history_interval)
    negatives = NegativeGenerator(history, seed=args.seed)
    return DCKDLoss(student, args.encoder, negatives=negatives, **chosen)


def settings(args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """What determines the student's weights."""
    names = ("scale", "backbone", "method", "seed", "encoder", "dcr_weight", "dmm_weight")
    paths = {name: str(getattr(args, name) or "") for name in ("data", "teacher")}
    return {name: getattr(args, name) for name in names} | paths | {"recipe": str(asdict(recipe))}


def describe(
    args: argparse.Namespace, job: Run, teacher: backbones.ResidualSR | None, images: int
) -> None:
    """Say at the start what will happen."""
    print(f"{args.method}, x{args.scale}, {images} training photographs, seed {args.seed}")
    print(f"student: {cost(job.student)}")
    if teacher is not None:
        print(f"teacher: {cost(teacher)}")
    print(", ".join(f"{name} {value}" for name, value in asdict(job.recipe).items()))


def cost(model: nn.Module) -> str:
    """Parameters, and multiply-adds for one LR pixel."""
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"{parameters:,} parameters, {backbones.multiply_adds(model, 32, 32) // 1024:,} "
        "multiply-adds a pixel of the input"
    )


def report(
    args: argparse.Namespace,
    job: Run,
    teacher: backbones.ResidualSR | None,
    val_sets: dict[str, list[Pair]],
) -> None:
    """Evaluate input, student and teacher; print the table and write every result."""
    models = {"input": None, "student": job.student}
    if teacher is not None:
        models["teacher"] = teacher.to(next(job.student.parameters()).device)
    scores = {
        name: {who: evaluate(model, pairs, args.scale) for who, model in models.items()}
        for name, pairs in val_sets.items()
    }
    print(table(scores))
    metrics = {
        "task": "sr",
        "scale": args.scale,
        "method": args.method,
        "iterations": args.iterations,
        "seed": args.seed,
        "val": {
            name: {who: {k: s[k] for k in ("psnr", "ssim")} for who, s in by_model.items()}
            for name, by_model in scores.items()
        },
    }
    (job.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (job.folder / "log.json").write_text(json.dumps(job.records, indent=1) + "\n")
    backbones.save(job.student, job.folder / "student.safetensors", task="sr", method=args.method)
    name, pairs = next(iter(val_sets.items()))
    figures.curves(job.records, scores[name]["input"]["psnr"], job.folder / "curves.png")
    figures.side_by_side(
        [versions(pair, models, scores[name], args.scale) for pair in pairs[:4]],
        job.folder / "side_by_side.png",
    )
    print(f"written to {job.folder}: " + ", ".join(sorted(p.name for p in job.folder.iterdir())))


def table(scores: dict[str, dict[str, Scores]]) -> str:
    """One line a validation set: PSNR and SSIM of each model."""
    models = list(next(iter(scores.values())))
    width = max(map(len, [*scores, "Y-PSNR/dB, SSIM"]))
    titles = ["bicubic" if who == "input" else who for who in models]
    lines = [f"{'Y-PSNR/dB, SSIM':{width}}" + "".join(f"{title:>16}" for title in titles)]
    for name, by_model in scores.items():
        cells = (f"{by_model[who]['psnr']:.2f} {by_model[who]['ssim']:.4f}" for who in models)
        lines.append(f"{name:{width}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def versions(
    pair: Pair, models: dict[str, Any], scores: dict[str, Scores], scale: int
) -> dict[str, tuple[Any, float | None]]:
    """One image as each of the models makes it, with its PSNR, and the ground truth."""
    made: dict[str, tuple[Any, float | None]] = {}
    for who, model in models.items():
        image = matlab_bicubic(pair.lq, scale) if model is None else restore(model, pair.lq)
        made["bicubic" if model is None else who] = image, scores[who]["images"][pair.name]["psnr"]
    return {**made, "ground truth": (pair.hq, None)}


if __name__ == "__main__":
    sys.exit(main())
