"""Tables and plots of what `speed` measured, from its rows alone."""

from pathlib import Path

Row = dict[str, object]


def table(rows: list[Row]) -> str:
    """Markdown; the ratios are those of the released way above, or of Scratch, to this row."""
    lines = [
        "| batch, size | negatives | way | precision | ms (IQR) | faster | saved MB | less | "
        "peak MB | less | gradient |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    base: Row = {}
    for r in rows:
        base = r if r["way"] == "released" or r["mode"] == "scratch" else base
        way = r["mode"] if r["student"] is None else f"{r['student']}: {r['mode']}"
        cells = [
            f"{r['batch']}x{r['size']}x{r['size']}", _number(r["negatives"], "d"),
            way, r["precision"],
            f"{r['ms_median']:.0f} ({r['ms_iqr']:.0f})", _less(base, r, "ms_median", 2),
            _number(r["saved_mb"], ".1f"), _less(base, r, "saved_mb"),
            _number(r["peak_mb"], ".0f"), _less(base, r, "peak_mb"),
            _number(r["grad_rel_l2"], ".0e"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _number(value: object, form: str) -> str:
    return "" if value is None else format(value, form)


def _less(base: Row, row: Row, key: str, digits: int = 1) -> str:
    one, other = base.get(key), row[key]
    if not isinstance(one, float) or not isinstance(other, float):
        return ""
    return f"{one / other:.{digits}f}"


def plot(rows: list[Row], path: Path) -> None:
    """Time and peak memory against pixels and negatives, a line for each way; a PNG."""
    import matplotlib.pyplot as plt  # here: the table needs none of it

    losses = [r for r in rows if r["student"] is None]
    usual = losses[0]
    by_size = [r for r in losses if r["negatives"] == usual["negatives"]]
    where = ("batch", "size")
    by_count = [r for r in losses if all(r[key] == usual[key] for key in where)]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    for row, (key, unit) in zip(axes, (("ms_median", "ms"), ("peak_mb", "MB")), strict=True):
        name = {"ms": "forward and backward", "MB": "peak memory"}[unit]
        for axis, found, x in zip(row, (by_size, by_count), ("pixels", "negatives"), strict=True):
            for way in dict.fromkeys((r["mode"], r["precision"]) for r in found):
                line = sorted((_at(r, x), r[key]) for r in found if _way(r) == way)
                axis.plot(*zip(*line, strict=True), marker="o", label=", ".join(way))
            axis.set(xlabel=f"{x} in a batch" if x == "pixels" else x, ylabel=f"{name}, {unit}")
            axis.set_xscale("log")
            axis.set_yscale("log")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _way(row: Row) -> tuple[object, object]:
    return row["mode"], row["precision"]


def _at(row: Row, x: str) -> int:
    values = {"pixels": row["batch"] * row["size"] ** 2, "negatives": row["negatives"]}  # type: ignore[operator]
    return values[x]
