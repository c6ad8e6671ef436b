"""A finished table as Markdown: ours beside the paper's."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables.arms import Table
from benchmarks.tables.results import Arms, Cited, Mean, Scores, cited, gain, mean
from benchmarks.tables.study import Part

HEAD = (
    "arm", "PSNR", "SSIM", "gain", "paper: PSNR", "SSIM", "ours - paper", "paper: gain",
)  # fmt: skip
OURS = 4  # columns that are not the paper's
NOTE = """PSNR in dB and SSIM, mean ± standard deviation over seeds. A gain is the mean over seeds
of the difference to *{reference}* of the same seed, which has the same initial weights and the same
crops in the same order, ± its standard error."""
CITATION = """The paper's numbers are cited; they are of {label}, which only --budget paper trains.
Arms marked *cited* were not run."""


def markdown(
    table: Table,
    facts: Mapping[str, Any],
    found: list[tuple[Part, Arms, Arms]],
    name: str,
) -> str:
    """The whole report.

    Args:
        table: What is shown.
        facts: How it was measured: text by name.
        found: Each block with the scores of its arms, and of input and teacher.
        name: Of the table.
    """
    title = re.sub(r"(?<=[a-z])(?=\d)", " ", name.capitalize())  # "Table 5"
    lines = [f"# {title}: {table.title}", ""]
    for key, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"- {key}: {text}")
    labels = ", ".join(part.block.label for part, _, _ in found)
    lines += ["", NOTE.format(reference=table.reference)]
    lines += textwrap.wrap(table.note, 100)
    if any(cited(name, part.block.label) for part, _, _ in found):
        lines += [CITATION.format(label=labels)]
    for part, arms, others in found:
        numbers = cited(name, part.block.label)
        ours = [images.name for images in part.sets]
        theirs = [s for s in dict.fromkeys(s for a in numbers.values() for s in a) if s not in ours]
        if len(found) > 1:
            lines += ["", f"## {part.block.label}"]
        for images in ours:
            lines += ["", f"### {images}", "", *_rows(table, arms, others, numbers, images)]
        for images in theirs:
            title = f"### {images}, the paper's only"
            lines += ["", title, "", *_rows(table, {}, {}, numbers, images)]
    return "\n".join(lines) + "\n"


def _rows(table: Table, arms: Arms, others: Arms, numbers: Cited, images: str) -> list[str]:
    """One set's rows: input and teacher, the arms, and what only the paper has."""
    known = {arm.name: arm.paper or arm.name for arm in table.arms}
    names = [*others, *(arms or [n for n, paper in known.items() if paper in numbers])]
    seen = {known.get(name, name) for name in names}
    names += [name for name in numbers if name not in seen]
    paper_reference = numbers.get(known[table.reference], {}).get(images)
    reference = arms.get(table.reference, {}).get(images)
    head = HEAD if numbers else HEAD[:OURS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in names:
        ours = {**others, **arms}.get(name, {}).get(images)
        theirs = numbers.get(known.get(name, name), {}).get(images)
        if not (ours or theirs):
            continue
        title = name if ours or not arms else f"{name} (*cited*)"
        title += _diverged(ours["psnr"]) if ours else ""
        paired = ours and reference and name in arms and name != table.reference
        cells = [
            title,
            _spread(mean(ours["psnr"]), 2) if ours else "",
            _spread(mean(ours["ssim"]), 4) if ours else "",
            _gain(ours, reference) if paired and ours and reference else "",
            f"{theirs[0]:.2f}" if theirs else "",
            f"{theirs[1]:.4f}" if theirs else "",
            f"{mean(ours['psnr']).mean - theirs[0]:+.2f}" if ours and theirs else "",
            f"{theirs[0] - paper_reference[0]:+.2f}" if theirs and paper_reference else "",
        ]
        lines.append(f"| {' | '.join(cells[: len(head)])} |")
    return lines


def _diverged(values: Sequence[float]) -> str:
    """How many runs are missing in the means."""
    count = sum(map(math.isnan, values))
    return f" ({count} of {len(values)} diverged)" if count else ""


def _gain(ours: Scores, reference: Scores) -> str:
    found = gain(ours["psnr"], reference["psnr"])
    return _spread(found, 3, sign="+") if found else ""


def _spread(value: Mean, digits: int, sign: str = "") -> str:
    if math.isnan(value.mean):
        return ""
    text = f"{value.mean:{sign}.{digits}f}"
    return text if value.deviation != value.deviation else f"{text} ± {value.deviation:.{digits}f}"
