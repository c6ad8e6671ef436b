"""Table 1: what the paper's networks are made of, beside what they are here."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.results import published
from examples.restoration import backbones
from examples.restoration.specifications import SPECIFICATIONS

PATCH = {"SwinIR": 48, "RCAN": 48, "NAFNet": 256, "Restormer": 256}  # LQ pixels a side
HEAD = (
    "network", "scale", "paper: channels", "paper: blocks", "parameters", "paper", "ours - paper",
    "multiply-adds", "of",
)  # fmt: skip
NOTE = """Parameters of every network at every scale that it has, all counted, beside the paper's
millions, which it gives once a network. Multiply-adds of convolutions and matrix products for one
input of the named size; the paper has none. SwinIR-light belongs to Table 8, which gives no size.
"""


def rows() -> list[dict[str, Any]]:
    """A row for each network and scale."""
    numbers = published()["table1"]
    found = []
    for name, specification in SPECIFICATIONS.items():
        family = specification.architecture
        role = name.partition("-")[2]
        paper = numbers[family].get(role.capitalize(), {})
        for scale in specification.scales:
            model = backbones.build(name, scale)
            count, side = sum(p.numel() for p in model.parameters()), PATCH[family]
            found.append(
                {
                    "network": name,
                    "scale": scale,
                    "channels": paper.get("channels"),
                    "blocks": paper.get("blocks"),
                    "parameters": count,
                    "paper_millions": paper.get("millions"),
                    # without values, so that counting takes no time
                    "multiply_adds": backbones.multiply_adds(model.to("meta"), side, side),
                    "input": f"{side}x{side}",
                }
            )
    return found


def markdown(found: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The table; channels and blocks are the paper's."""
    lines = ["# Table1: the networks", "", *(f"- {key}: {value}" for key, value in facts.items())]
    lines += ["", NOTE, "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for row in found:
        paper = row["paper_millions"]
        cells = [
            row["network"], f"x{row['scale']}", row["channels"] or "", row["blocks"] or "",
            f"{row['parameters']:,}", f"{paper:.1f}M" if paper else "",
            f"{row['parameters'] / 1e6 - paper:+.2f}M" if paper else "",
            f"{row['multiply_adds'] / 1e9:.2f}G", row["input"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
