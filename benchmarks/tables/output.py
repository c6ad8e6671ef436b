"""Writes a finished table: Markdown, JSON and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import provenance
from benchmarks.tables import pictures
from benchmarks.tables.arms import Table
from benchmarks.tables.job import Job
from benchmarks.tables.losses import CONTRASTIVE
from benchmarks.tables.report import markdown
from benchmarks.tables.results import LATE, Arms, columns, late_gain, scored
from benchmarks.tables.scoring import restored, score
from benchmarks.tables.store import Given, Store, write
from benchmarks.tables.study import Options, Part
from dckd_losses.negatives import NUM_NEGATIVES
from examples.restoration.degrade import Image
from examples.restoration.metrics import protocol, psnr


def write_table(
    table: Table, options: Options, parts: list[Part], store: Store, stem: Path
) -> list[Path]:
    """Everything that a table leaves behind.

    Args:
        table: What was asked for.
        options: How.
        parts: Its blocks, all trained.
        store: Where.
        stem: Path of the files without their ends.

    Returns:
        the files.
    """
    found = [(part, scored(part, store), references(part, store)) for part in parts]
    machine = provenance.machine(store.accelerator.device)
    head = {"table": options.table, "command": provenance.command()}
    arms: Arms = {}
    for part, by_arm, _ in found:
        for name, by_set in by_arm.items():
            known = {named(part, parts, images): value for images, value in by_set.items()}
            arms.setdefault(name, {}).update(known)
    made = {"commit": machine["commit"], "device": machine["device"]}
    write(_file(stem, ".json"), {**head, **made, "arms": arms})
    told = {**head, **machine, "seeds": seeds(parts)}
    others = {part.block.label: scores for part, _, scores in found}
    runs = {part.block.label: _runs(part, store) for part in parts}
    write(_file(stem, "_details.json"), {**told, "references": others, "runs": runs})
    facts = {**told, **commits(parts, store), **recipe_facts(parts), **convergence(parts, store)}
    text = markdown(table, facts, found, options.table)
    _file(stem, ".md").write_text(text, encoding="utf-8")
    files = [_file(stem, end) for end in (".json", "_details.json", ".md")]
    for part, by_arm, _ in found:
        place = stem if len(parts) == 1 else _file(stem, f"_{part.block.label.replace(' ', '_')}")
        files += _draw(table, part, by_arm, store, place)
    return files


def named(part: Part, parts: list[Part], images: str) -> str:
    """A set's name, beside its network's where a table has several."""
    return images if len(parts) == 1 else f"{part.block.label} {images}"


def references(part: Part, store: Store) -> Arms:
    """Scores of the input itself and of the teacher."""
    block, networks = part.block, {"Input": None, "Teacher": part.teacher}
    return {
        name: {
            images.name: columns(
                [
                    score(None, images, block.task, block.scale)
                    if trained is None
                    else store.scores(trained, images, block.task, block.scale)
                ]
            )
            for images in part.sets
        }
        for name, trained in networks.items()
    }


def seeds(parts: list[Part]) -> list[int]:
    """Of the students that were trained."""
    runs = (run for part in parts for runs in part.arms.values() for run in runs)
    return sorted({run.seed for run in runs if isinstance(run, Job)})


def commits(parts: list[Part], store: Store) -> dict[str, str]:
    """Where the runs were trained, if not all at the report's own commit."""
    runs = (run for part in parts for found in part.jobs.values() for run in found)
    known = sorted({str((store.result(run) or {}).get("commit")) for run in runs})
    return {} if known in ([], [provenance.commit()]) else {"trained at": ", ".join(known)}


def recipe_facts(parts: list[Part]) -> dict[str, str]:
    """What all arms of a block have in common, in words."""
    return {
        name if len(parts) == 1 else f"{part.block.label}, {name}": fact
        for part in parts
        for name, fact in _recipe_facts(part).items()
    }


def _recipe_facts(part: Part) -> dict[str, str]:
    runs = [run for runs in part.arms.values() for run in runs if isinstance(run, Job)]
    if not runs:
        return {}
    recipe, images = runs[0].recipe, part.images
    pulls = {run.settings.get("balance"): None for run in runs if run.method in CONTRASTIVE}
    balances = [f"{pull:g} of an L1's" if pull else "fixed weights" for pull in pulls]
    return {
        "student, teacher": f"{part.block.student}, {part.block.teacher}",
        "training": f"{recipe.iterations:,} steps, {recipe.batch_size} crops of {recipe.crop} "
        f"pixels, learning rate {recipe.lr:g}, on {images.train.name} "
        f"({len(images.train.files)} images)",
        "encoder of all contrastive methods": runs[0].encoder or "each one's own",
        **({"their gradient at the output": ", ".join(balances)} if balances else {}),
    }


def convergence(parts: list[Part], store: Store) -> dict[str, str]:
    """How much the arms' last steps still changed, each arm's mean over seeds."""
    gains = []
    for part in parts:
        for runs in part.arms.values():
            records = [result["records"] for result in _results(runs, store)]
            gains += [fmean(map(late_gain, records))] if records else []
    if not gains:
        return {}
    text = f"{min(gains):+.3f} to {max(gains):+.3f} dB on the development images"
    return {f"gained in the last {LATE:.0%} of the steps": text}


def _results(runs: Sequence[Job | Given], store: Store) -> list[dict[str, Any]]:
    """What the runs that were trained to their end say of themselves."""
    found = [store.result(run) for run in runs if isinstance(run, Job)]
    return [result for result in found if result is not None and "diverged" not in result]


def _runs(part: Part, store: Store) -> dict[str, list[dict[str, Any]]]:
    """What every arm's runs say of themselves."""
    return {name: [_told(run, store) for run in runs] for name, runs in part.arms.items()}


def _told(run: Job | Given, store: Store) -> dict[str, Any]:
    """What a run says of itself: settings, speed, its validation curve."""
    if isinstance(run, Given):
        return {"file": run.source, "weights": run.identity}
    result = store.result(run)
    assert result is not None
    looks = [r for r in result.pop("records") if "psnr" in r]
    return {**result, "curve": [[r["step"], r["psnr"]] for r in looks]}


def _draw(table: Table, part: Part, arms: Arms, store: Store, stem: Path) -> list[Path]:
    """The pictures of one block."""
    files = [_file(stem, ".png"), _file(stem, "_crops.png")]
    trained = {name: [r for r in runs if isinstance(r, Job)] for name, runs in part.arms.items()}
    every = {name: _results(runs, store) for name, runs in trained.items()}
    results = {name: found for name, found in every.items() if found}
    if table.x is None:
        pictures.gains(arms, table.reference, files[0])
    else:
        costs = _costs(results) if results else {}
        pictures.against_number(arms, costs, table.x, files[0])
    pictures.crops(_versions(part, store), files[1])
    if results:
        files.append(_file(stem, "_curves.png"))
        records = {name: [r["records"] for r in found] for name, found in results.items()}
        pictures.curves(records, table.reference, files[-1])
    for result, *_ in reversed(results.values()):  # the table's last arm that has any
        if "positive" in result["records"][-1]:
            files.append(_file(stem, "_distances.png"))
            count = result["settings"]["losses"].get("num_negatives", NUM_NEGATIVES)
            pictures.distances(result["records"], count, files[-1])
            break
    return files


def _costs(results: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Time and, on a GPU, memory of each arm's first run, by unit."""
    first = {name: runs[0] for name, runs in results.items()}
    costs = {"ms a step": {name: 1e3 * r["seconds_per_step"] for name, r in first.items()}}
    if all(result["peak_mb"] for result in first.values()):
        costs["peak MB"] = {name: result["peak_mb"] for name, result in first.items()}
    return costs


def _versions(part: Part, store: Store) -> dict[str, dict[str, tuple[Image, float | None]]]:
    """The first image of each set as input, teacher and every arm's first seed make it."""
    block, found = part.block, {}
    firsts = {name: runs[0] for name, runs in part.arms.items() if not store.diverged(runs[0])}
    models = {"input": None, **{name: store.network(run) for name, run in firsts.items()}}
    models["Teacher"] = store.network(part.teacher)
    rules = protocol(block.task, block.scale)
    for images in part.sets:
        pair = images.pairs[0]
        versions: dict[str, tuple[Image, float | None]] = {}
        for name, model in models.items():
            image = restored(model, pair, block.scale)
            versions[name] = image, psnr(image, pair.hq, rules)
        found[f"{images.name}: {pair.name}"] = {**versions, "ground truth": (pair.hq, None)}
    return found


def _file(stem: Path, end: str) -> Path:
    return stem.with_name(f"{stem.name}{end}")
