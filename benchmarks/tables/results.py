"""Numbers of a finished table: ours by seed, the paper's, and what lies between."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tables.store import Store
from benchmarks.tables.study import Part
from examples.restoration.evaluation import Score

Scores = dict[str, list[float]]  # "psnr" and "ssim", one a seed
Arms = dict[str, dict[str, Scores]]  # by arm and set
Cited = Mapping[str, Mapping[str, Sequence[float]]]  # PSNR and SSIM by arm and set
LATE = 0.2  # share of a run's steps that should hardly gain any more
PAPER = Path(__file__).with_name("paper_numbers.json")


class Mean(NamedTuple):
    """Of a few seeds' numbers, with their standard deviation; nan for one seed, both for none."""

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


def scored(part: Part, store: Store) -> Arms:
    """Every arm's scores on every set."""
    block = part.block
    return {
        name: {
            images.name: columns(
                [store.scores(run, images, block.task, block.scale) for run in runs]
            )
            for images in part.sets
        }
        for name, runs in part.arms.items()
    }


def columns(scores: Sequence[Score]) -> Scores:
    """Scores by seed as lists."""
    return {"psnr": [s["psnr"] for s in scores], "ssim": [s["ssim"] for s in scores]}


def published() -> dict[str, Any]:
    """The paper's numbers, by table and network."""
    content: dict[str, Any] = json.loads(PAPER.read_text(encoding="utf-8"))
    return content


def cited(table: str, label: str) -> Cited:
    """The paper's numbers of one block; none where it has a plot instead."""
    found: Cited = published().get(table, {}).get(label, {})
    return found
