"""A finished table: ours beside the paper's as Markdown and JSON, and Table 1, which counts."""

from __future__ import annotations

import json
import math
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import common
from benchmarks.tables.data import score
from benchmarks.tables.runs import CONTRASTIVE, Job, Part
from benchmarks.tables.specs import Table
from benchmarks.tables.store import Store, step_seconds
from dckd_losses import VQGANEncoder
from dckd_losses.negatives import NUM_NEGATIVES
from examples.restoration import networks
from examples.restoration.networks import SPECIFICATIONS

Scores = dict[str, list[float]]  # "psnr" and "ssim", one a seed
Arms = dict[str, dict[str, Scores]]  # by arm and set
Costs = Mapping[str, Mapping[str, float]]  # "ms" and, of encoders, "parameters", by arm
Cited = Mapping[str, Mapping[str, Sequence[float]]]  # the paper's PSNR and SSIM by arm and set
Results = Mapping[str, Sequence[dict[str, Any]]]  # what each arm's runs say of themselves
LATE = 0.2  # share of a run's steps that should hardly gain any more
ROUNDS = 3  # of the measurement of what an encoder adds to a step
PAPER = Path(__file__).with_name("paper_numbers.json")
HEAD = ("arm", "PSNR", "SSIM", "gain", "paper: PSNR", "SSIM", "ours - paper", "paper: gain")
OURS = 4  # columns that are not the paper's
NOTE = """PSNR in dB and SSIM, mean ± standard deviation over seeds. A gain is the mean over seeds
of the difference to *{reference}* of the same seed, which has the same initial weights and the same
crops in the same order, ± its standard error."""
CITATION = """The paper's numbers are cited; they are of {label}, which only --budget paper trains.
Arms marked *cited* were not run."""


COMPARISONS = """PSNR in dB of an arm beyond that of the arm beside it: mean over seeds of the
difference of the same seed ± its standard error. These are {count} comparisons."""
CHANCE = """With {seeds} seeds, chance alone takes one comparison beyond {one:.1f} standard errors
in 5 % of cases, and any of all beyond {every:.1f} (Student's t, Bonferroni)."""

# Numbers


class Mean(NamedTuple):
    """Of a few seeds' numbers, with their standard deviation, which is nan for one seed; for none
    both are."""

    mean: float
    deviation: float


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard deviation of a sample, of which nan, a run that diverged, is no part."""
    known = [value for value in values if not math.isnan(value)]
    deviation = statistics.stdev(known) if len(known) > 1 else math.nan
    return Mean(statistics.fmean(known) if known else math.nan, deviation)


def gain(values: Sequence[float], reference: Sequence[float]) -> Mean | None:
    """Mean of the seeds' differences to another arm's, and its standard error; None unpaired.

    A seed of which either run diverged is left out.
    """
    if len(values) != len(reference):
        return None
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    count = sum(not math.isnan(difference) for difference in differences)
    found = mean(differences)
    return Mean(found.mean, found.deviation / max(1, count) ** 0.5)


def late_gain(records: Sequence[Mapping[str, Any]]) -> float:
    """What the last of a run's steps gained on the development images, in dB."""
    looks = [(record["step"], record["psnr"]) for record in records if "psnr" in record]
    end = looks[-1][0]
    before = [psnr for step, psnr in looks if step <= (1 - LATE) * end]
    return looks[-1][1] - (before or [looks[0][1]])[-1]


def scored(part: Part, store: Store) -> tuple[Arms, Arms]:
    """Scores on every set: of the arms, and of the input itself and the teacher."""
    task, scale = part.block.task, part.block.scale
    arms: Arms = {name: {} for name in part.arms}
    others: Arms = {"Input": {}, "Teacher": {}}
    for images in part.sets:
        of_teacher = store.scores(part.teacher, images, task, scale)
        others["Input"][images.name] = _columns([score(None, images, task, scale)])
        others["Teacher"][images.name] = _columns([of_teacher])
        for name, runs in part.arms.items():
            found = [store.scores(run, images, task, scale) for run in runs]
            arms[name][images.name] = _columns(found)
    return arms, others


def _columns(scores: Sequence[Any]) -> Scores:
    return {key: [each[key] for each in scores] for key in ("psnr", "ssim")}


def cited(table: str, label: str) -> Cited:
    """The paper's numbers of one block; none where it has a plot instead."""
    found: Cited = json.loads(PAPER.read_text("utf-8")).get(table, {}).get(label, {})
    return found


def step_costs(table: Table, part: Part, store: Store) -> dict[str, dict[str, float]]:
    """What an arm adds to a step in ms, where the arms have encoders or comparisons; their sizes.

    The steps are measured in turns with the reference arm's.
    """
    firsts = {name: runs[0] for name, runs in part.arms.items()}
    reference = firsts.get(table.reference)
    if reference is None:
        return {}
    jobs, seen = {}, {reference.identity}
    for arm in table.arms:
        job = firsts.get(arm.name)
        if job and (arm.encoder or table.comparisons) and job.identity not in seen:
            jobs[arm.name] = job
            seen.add(job.identity)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS if jobs else 0):
        without = step_seconds(reference, store)
        for name, job in jobs.items():
            times[name].append(1e3 * (step_seconds(job, store) - without))
    costs = {name: {"ms": statistics.median(found)} for name, found in times.items()}
    for arm in table.arms:
        if arm.encoder and arm.name in costs:
            network = VQGANEncoder.from_pretrained(arm.encoder).network
            costs[arm.name]["parameters"] = sum(p.numel() for p in network.parameters())
    return costs


# Files


def write_table(
    table: Table, name: str, part: Part, store: Store, stem: Path
) -> tuple[list[Path], Arms]:
    """Everything that a block of a table leaves behind, all trained.

    Args:
        table: What was asked for.
        name: Its name.
        part: The block.
        store: Where its runs are.
        stem: Path of the files without their ends.

    Returns:
        the files, and the arms' scores.
    """
    arms, others = scored(part, store)
    costs = step_costs(table, part, store)
    results = {arm: [store.result(run) or {} for run in runs] for arm, runs in part.jobs.items()}
    by_arm = {name: results[name] for name in arms}
    ended = {name: [r for r in found if "diverged" not in r] for name, found in by_arm.items()}
    ended = {name: found for name, found in ended.items() if found}
    machine = common.machine(store.accelerator.device)
    head = {"table": name, "command": common.command()}
    made = {**head, "commit": machine["commit"], "device": machine["device"], "arms": arms}
    files = [_file(stem, end) for end in (".json", "_details.json", ".md")]
    common.write_json(files[0], {**made, **({"costs": costs} if costs else {})})
    runs = [run for runs in part.arms.values() for run in runs]
    told = {**head, **machine, "seeds": sorted({run.seed for run in runs})}
    label, said = part.block.label, {name: [*map(_told, found)] for name, found in by_arm.items()}
    details = {"references": {label: others}, "runs": {label: said}}
    common.write_json(files[1], {**told, **details})
    facts = {**told, **commits(results), **_recipe(part, runs), **_convergence(ended)}
    files[2].write_text(markdown(table, facts, part, arms, others, name, costs), "utf-8")
    try:
        files += _draw(table, arms, ended, stem)
    except (ImportError, ValueError) as error:  # no matplotlib, or one that is set up oddly
        print(f"no pictures: {error}")
    return files, arms


def write_comparisons(table: Table, blocks: Mapping[str, Arms], stem: Path) -> str:
    """Write what the arms gained for each student, beside chance; the Markdown.

    Args:
        table: Its arms beside its reference, and its further comparisons, where both are trained.
        blocks: The arms' scores, by student.
        stem: Path of the files without their ends.
    """
    columns = [(label, s) for label, arms in blocks.items() for s in next(iter(arms.values()))]
    rows, found, seeds = [], [], 0
    usual = [(arm.name, table.reference) for arm in table.arms if arm.name != table.reference]
    for arm, beside in (*usual, *table.comparisons):
        cells = []
        for label, images in columns:
            mine, other = (blocks[label].get(n, {}).get(images) for n in (arm, beside))
            value = gain(mine["psnr"], other["psnr"]) if mine and other else None
            cells.append(_spread(value, 3, sign="+"))
            if value is not None and mine:
                seeds = len(mine["psnr"])
                pair = {"arm": arm, "beside": beside, "student": label, "set": images}
                found.append({**pair, "mean": value.mean, "error": value.deviation})
        if any(cells):
            rows.append([arm, beside, *cells])
    told = {"table": table.title, "command": common.command(), "commit": common.commit()}
    common.write_json(_file(stem, ".json"), {**told, "seeds": seeds, "rows": found})
    head = ("arm", "beside", *(f"{label}, {images}" for label, images in columns))
    lines = ["# Comparisons", "", *_list(told), ""]
    lines += [COMPARISONS.format(count=len(found)), chance(seeds, len(found)), ""]
    text = "\n".join([*lines, *common.grid(head, rows)]) + "\n"
    _file(stem, ".md").write_text(text, "utf-8")
    return text


def chance(seeds: int, count: int) -> str:
    """How far, in standard errors, chance alone goes; nothing of fewer than two seeds."""
    from scipy.stats import t  # scikit-image brings it

    if seeds < 2:
        return "One seed says nothing of chance."
    one, every = (t.ppf(1 - share / 2, seeds - 1) for share in (0.05, 0.05 / max(1, count)))
    return CHANCE.format(seeds=seeds, one=one, every=every)


def commits(results: Results) -> dict[str, str]:
    """Where the runs were trained, if not all at the report's own commit."""
    known = sorted({str(result.get("commit")) for found in results.values() for result in found})
    return {} if known == [common.commit()] else {"trained at": ", ".join(known)}


def _recipe(part: Part, runs: Sequence[Job]) -> dict[str, str]:
    """What all arms have in common, in words."""
    recipe, images = runs[0].recipe, part.images.train
    encoders = dict.fromkeys(r.encoder or "each one's own" for r in runs)
    norms = dict.fromkeys(r.settings.get("balance") for r in runs if r.method in CONTRASTIVE)
    texts = [f"{norm:g} of an L1's" if norm else "fixed weights" for norm in norms]
    teacher = part.teacher
    if isinstance(teacher, Job):
        known = part.block.teacher
    else:  # its code, or its file where that says what it is
        known = Path((*teacher.code, teacher.source)[0]).name
    facts = {
        "student, teacher": f"{part.block.student}, {known}",
        "training": f"{recipe.iterations:,} steps, {recipe.batch_size} crops of {recipe.crop} "
        f"pixels, learning rate {recipe.lr:g}, on {images.name} ({len(images.files)} images)",
        "encoder of all contrastive methods": ", ".join(encoders),
        "their gradient at the output": ", ".join(texts),
    }
    return {name: text for name, text in facts.items() if text}


def _convergence(ended: Results) -> dict[str, str]:
    """How much the arms' last steps still changed, each arm's mean over seeds."""
    gains = [statistics.fmean(late_gain(r["records"]) for r in found) for found in ended.values()]
    if not gains:
        return {}
    text = f"{min(gains):+.3f} to {max(gains):+.3f} dB on the development images"
    return {f"gained in the last {LATE:.0%} of the steps": text}


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says of itself: settings, speed, its validation curve."""
    curve = [[r["step"], r["psnr"]] for r in result["records"] if "psnr" in r]
    return {**{key: value for key, value in result.items() if key != "records"}, "curve": curve}


def _draw(table: Table, arms: Arms, ended: Results, stem: Path) -> list[Path]:
    """The pictures of one block, of the runs that were trained to their end."""
    from benchmarks.tables import plots  # here: the rest does without matplotlib

    files = [_file(stem, ".png")]
    if table.x is None:
        plots.gains(arms, table.reference, files[0])
    else:
        first = {name: runs[0] for name, runs in ended.items()}
        costs = {"ms a step": {name: 1e3 * r["seconds_per_step"] for name, r in first.items()}}
        costs["peak MB"] = {name: r["peak_mb"] for name, r in first.items() if r["peak_mb"]}
        known = {unit: found for unit, found in costs.items() if found}
        plots.against_number(arms, known, table.x, files[0])
    if ended:
        files.append(_file(stem, "_curves.png"))
        records = {name: [r["records"] for r in found] for name, found in ended.items()}
        plots.curves(records, table.reference, files[-1])
    for result, *_ in reversed(ended.values()):  # the table's last arm that has any
        if "positive" in result["records"][-1]:
            files.append(_file(stem, "_distances.png"))
            count = result["settings"]["losses"].get("num_negatives", NUM_NEGATIVES)
            plots.distances(result["records"], count, files[-1])
            break
    return files


def _file(stem: Path, end: str) -> Path:
    return stem.with_name(f"{stem.name}{end}")


# Markdown


def markdown(
    table: Table,
    facts: Mapping[str, Any],
    part: Part,
    arms: Arms,
    others: Arms,
    name: str,
    costs: Costs,
) -> str:
    """The whole report; facts say how it was measured, and `name` is the table's."""
    title = re.sub(r"(?<=[a-z])(?=\d)", " ", name.capitalize())  # "Table 5"
    lines = [f"# {title}: {table.title}", ""]
    lines += _list(facts)
    lines += ["", NOTE.format(reference=table.reference), *textwrap.wrap(table.note, 100)]
    numbers = cited(name, part.block.label)
    if numbers:
        lines += [CITATION.format(label=part.block.label)]
    ours = [images.name for images in part.sets]
    theirs = [s for s in dict.fromkeys(s for a in numbers.values() for s in a) if s not in ours]
    for images in ours:
        lines += ["", f"### {images}", "", *_rows(table, arms, others, numbers, images)]
    for images in theirs:
        title = f"### {images}, the paper's only"
        lines += ["", title, "", *_rows(table, {}, {}, numbers, images)]
    if costs:
        sizes = {n: f"{cost['parameters']:,}" for n, cost in costs.items() if "parameters" in cost}
        cells = [
            [n, *([sizes.get(n, "")] if sizes else []), f"{c['ms']:.0f}"] for n, c in costs.items()
        ]
        head = ("arm", *(["encoder's parameters"] if sizes else []), "ms added to a step")
        lines += ["", "### Cost", "", *common.grid(head, cells)]
    return "\n".join(lines) + "\n"


def _list(facts: Mapping[str, Any]) -> list[str]:
    texts = {k: ", ".join(map(str, v)) if isinstance(v, list) else v for k, v in facts.items()}
    return [f"- {key}: {text}" for key, text in texts.items()]


def _rows(table: Table, arms: Arms, others: Arms, numbers: Cited, images: str) -> list[str]:
    """One set's rows: input and teacher, the arms, and what only the paper has."""
    known = {arm.name: arm.paper or arm.name for arm in table.arms}
    names = [*others, *(arms or [n for n, paper in known.items() if paper in numbers])]
    seen = {known.get(name, name) for name in names}
    names += [name for name in numbers if name not in seen]
    paper_reference = numbers.get(known[table.reference], {}).get(images)
    reference = arms.get(table.reference, {}).get(images)
    head, rows = HEAD if numbers else HEAD[:OURS], []
    for name in names:
        ours = {**others, **arms}.get(name, {}).get(images)
        theirs = numbers.get(known.get(name, name), {}).get(images)
        if not (ours or theirs):
            continue
        cells = [name if ours or not arms else f"{name} (*cited*)", *[""] * (len(HEAD) - 1)]
        if ours:
            diverged = sum(map(math.isnan, ours["psnr"]))
            cells[0] += f" ({diverged} of {len(ours['psnr'])} diverged)" if diverged else ""
            cells[1:3] = _spread(mean(ours["psnr"]), 2), _spread(mean(ours["ssim"]), 4)
            if reference and name in arms and name != table.reference:
                cells[3] = _spread(gain(ours["psnr"], reference["psnr"]), 3, sign="+")
        if theirs:
            cells[4:6] = f"{theirs[0]:.2f}", f"{theirs[1]:.4f}"
            cells[6] = f"{mean(ours['psnr']).mean - theirs[0]:+.2f}" if ours else ""
            cells[7] = f"{theirs[0] - paper_reference[0]:+.2f}" if paper_reference else ""
        rows.append(cells[: len(head)])
    return common.grid(head, rows)


def _spread(value: Mean | None, digits: int, sign: str = "") -> str:
    if value is None or math.isnan(value.mean):
        return ""
    text = f"{value.mean:{sign}.{digits}f}"
    return text if math.isnan(value.deviation) else f"{text} ± {value.deviation:.{digits}f}"


# Table 1

PATCH = {"SwinIR": 48, "RCAN": 48, "NAFNet": 256, "Restormer": 256}  # LQ pixels a side
NETWORK_HEAD = (
    "network", "scale", "paper: channels", "paper: blocks", "parameters", "paper", "ours - paper",
    "multiply-adds", "of",
)  # fmt: skip
NETWORK_NOTE = """Parameters of every network at every scale that it has, all counted, beside the
paper's millions, which it gives once a network. Multiply-adds of convolutions and matrix products
for one input of the named size; the paper has none. SwinIR-light belongs to Table 8, which gives no
size.
"""


def write_networks(stem: Path) -> str:
    """Count what the paper's networks are made of, at each scale, as JSON and Markdown; the latter.

    Channels and blocks are the paper's.
    """
    numbers, found, cells = json.loads(PAPER.read_text("utf-8"))["table1"], [], []
    for name, specification in SPECIFICATIONS.items():
        family = specification.architecture
        paper, side = numbers[family].get(name.partition("-")[2].capitalize(), {}), PATCH[family]
        millions, channels, blocks = map(paper.get, ("millions", "channels", "blocks"))
        for scale in specification.scales:
            model = networks.build(name, scale)
            count = sum(p.numel() for p in model.parameters())
            model.to("meta")  # without values counting takes no time
            multiply_adds, size = networks.multiply_adds(model, side, side), f"{side}x{side}"
            found.append({
                "network": name, "scale": scale, "channels": channels, "blocks": blocks,
                "parameters": count, "paper_millions": millions, "multiply_adds": multiply_adds,
                "input": size,
            })  # fmt: skip
            cells.append([
                name, f"x{scale}", channels or "", blocks or "", f"{count:,}",
                f"{millions:.1f}M" if millions else "",
                f"{count / 1e6 - millions:+.2f}M" if millions else "",
                f"{multiply_adds / 1e9:.2f}G", size,
            ])  # fmt: skip
    facts = {"table": "table1", **common.facts("benchmarks.tables", torch.device("cpu"))}
    common.write_json(_file(stem, ".json"), {**facts, "rows": found})
    head = ["# Table 1: the networks", "", *_list(facts)]
    text = "\n".join([*head, "", NETWORK_NOTE, "", *common.grid(NETWORK_HEAD, cells)]) + "\n"
    _file(stem, ".md").write_text(text, "utf-8")
    return text
