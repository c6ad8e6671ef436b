"""Pictures of a finished table: gains, curves, distances, and Figure 8's plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.tables.report import Arms, mean

COLOURS, STYLES = 10, ("-", "--", ":")  # matplotlib's cycle, and what comes after its end
Records = Sequence[Mapping[str, Any]]


def gains(arms: Arms, reference: str, path: Path) -> None:
    """A dot for each seed's PSNR beyond the reference arm's, and a bar for their mean.

    Without the reference arm, or unpaired, PSNR itself.
    """
    sets = list(next(iter(arms.values())))
    figure = Figure(figsize=(1 + 3.6 * len(sets), 0.9 + 0.32 * len(arms)), layout="constrained")
    for axis, images in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        base = arms.get(reference, {}).get(images, {}).get("psnr")
        paired = base and all(len(found[images]["psnr"]) == len(base) for found in arms.values())
        for row, (_, found) in enumerate(arms.items()):
            values = np.array(found[images]["psnr"]) - (base if paired else 0)
            axis.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.5)
            axis.plot([mean(list(values)).mean] * 2, [row - 0.3, row + 0.3], color="black")
        axis.set_yticks(range(len(arms)), list(arms))
        axis.invert_yaxis()
        axis.set_title(images)
        axis.set_xlabel(f"dB beyond {reference}" if paired else "PSNR (dB)")
        axis.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=120)


def curves(records: Mapping[str, Sequence[Records]], reference: str, path: Path) -> None:
    """PSNR on the development images over the steps, each arm's mean over seeds.

    Beside it, where the reference arm was trained, the same beyond the reference's.
    """
    found = {name: _looks(runs) for name, runs in records.items()}
    base = found.get(reference)
    panels = 1 if base is None or len(found) == 1 else 2
    figure = Figure(figsize=(3 + 5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for row, (name, (steps, psnr)) in enumerate(found.items()):
        style = STYLES[row // COLOURS % len(STYLES)]
        axes[0].plot(steps, psnr, style, label=name)
        if panels == 2 and base is not None and len(psnr) == len(base[1]):
            axes[1].plot(steps, psnr - base[1], style)
    axes[0].set(xlabel="step", ylabel="PSNR on development images (dB)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    if panels == 2:
        axes[1].set(xlabel="step", ylabel=f"dB beyond {reference}")
    for axis in axes:
        axis.grid(alpha=0.3)
        _leave_out_the_start(axis)
    figure.savefig(path, dpi=120)


def _leave_out_the_start(axis: Axes) -> None:
    """Fit the axis to the last four fifths of its lines, beside which the first looks are large."""
    values = [np.asarray(line.get_ydata(), dtype=float) for line in axis.lines]
    shown = np.concatenate([value[len(value) // 5 :] for value in values])
    low, high = shown.min(), shown.max()
    if high > low:
        axis.set_ylim(low - (high - low) / 10, high + (high - low) / 10)


def _looks(runs: Sequence[Records]) -> tuple[list[float], npt.NDArray[np.float64]]:
    """Steps at which runs were looked at, and their mean PSNR there."""
    looks = [[(r["step"], r["psnr"]) for r in run if "psnr" in r] for run in runs]
    return [step for step, _ in looks[0]], np.mean([[p for _, p in look] for look in looks], axis=0)


def distances(records: Records, num_negatives: int, path: Path) -> None:
    """As the paper's Figure 1: how far the student is from its teacher, and from its negatives.

    One panel a level, of one run, whose `negative` is summed over the negatives. While the upper
    line stays above the lower one the lower bound still pushes; where they meet, negatives have
    become as good as the student.
    """
    seen = [record for record in records if "positive" in record]
    steps = [record["step"] for record in seen]
    levels = len(seen[0]["positive"])
    figure = Figure(figsize=(3 * levels, 2.8), layout="constrained")
    for level, axis in enumerate(figure.subplots(1, levels, squeeze=False)[0]):
        mine = [record["positive"][level] for record in seen]
        others = [record["negative"][level] / num_negatives for record in seen]
        axis.plot(steps, others, label="to a negative, mean", color="tab:red")
        axis.plot(steps, mine, label="to the teacher", color="tab:green")
        axis.set(title=f"level {level}", xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
        if level == 0:
            axis.set_ylabel("student's distance")
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def against_number(
    arms: Arms, costs: Mapping[str, Mapping[str, float]], label: str, path: Path
) -> None:
    """Figure 8: PSNR, and what a step costs in some units, against the number that names an arm."""
    x, sets = [float(name) for name in arms], list(next(iter(arms.values())))
    panels = len(sets) + len(costs)
    figure = Figure(figsize=(3.4 * panels, 3), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for images, axis in zip(sets, axes, strict=False):
        found = [mean(arm[images]["psnr"]) for arm in arms.values()]
        errors = np.nan_to_num([value.deviation for value in found])
        axis.errorbar(x, [value.mean for value in found], errors, marker="o", capsize=3)
        _finish(axis, x, label, f"{images}, PSNR (dB)")
    for (unit, by_arm), axis in zip(costs.items(), axes[len(sets) :], strict=True):
        measured = [name for name in arms if name in by_arm]  # not of those that diverged
        axis.plot([*map(float, measured)], [by_arm[name] for name in measured], "o-", color="gray")
        _finish(axis, x, label, unit)
    figure.savefig(path, dpi=120)


def _finish(axis: Axes, x: list[float], label: str, unit: str) -> None:
    axis.set(xlabel=label, ylabel=unit)
    axis.grid(alpha=0.3)
    if max(x) > 20 * min(x) > 0:
        axis.set_xscale("log")
