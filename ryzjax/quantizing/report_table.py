"""Prints the layer reports of a quantized model as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Group
from rich.table import Table

from ryzjax.models.weight_names import split_layer
from ryzjax.quantizing.layer_report import LayerReport

__all__ = ["report_table"]


def report_table(reports: Sequence[LayerReport]) -> Group:
    """Returns a table with one row per kind of layer ("mlp.down" of all blocks), followed by the fallbacks.

    A row gives the bits, the methods, and the mean and the worst output error.
    """
    total = sum(report.nbytes for report in reports)
    table = Table(title=f"linear layers, {total / 2**20:,.1f} MiB", title_justify="left")
    for column in ("layer", "bits", "group", "methods", "output error", "worst", "rounding to nearest"):
        is_number = column not in ("layer", "methods")
        table.add_column(column, justify="right" if is_number else "left")
    kinds: dict[str, list[LayerReport]] = {}
    for report in reports:
        kinds.setdefault(_kind(report.name), []).append(report)
    for kind, members in kinds.items():
        errors = [report.output_error for report in members if report.output_error is not None]
        nearest = [report.rtn_error for report in members if report.rtn_error is not None]
        worst = max(members, key=lambda report: report.output_error or 0.0)
        table.add_row(
            kind,
            _counts(str(report.bits) for report in members),
            _counts(str(report.group_size or "row") for report in members if report.method != "none"),
            _counts(report.method for report in members),
            _percent(errors),
            f"{_percent([worst.output_error])} in {_block(worst.name)}" if worst.output_error is not None else "",
            _percent(nearest),
        )
    notes = Counter(f"{_kind(report.name)}: {note}" for report in reports for note in report.notes)
    lines = [f"{count} x {note}" if count > 1 else note for note, count in notes.items()]
    return Group(table, *lines)


def _kind(name: str) -> str:
    return split_layer(name)[1]


def _block(name: str) -> str:
    layer, path = split_layer(name)
    return path if layer is None else str(layer)


def _counts(values: Iterable[str]) -> str:
    """Counts values: "gptq x3, rtn x2". If all are the same, returns the value alone."""
    counts = Counter(values)
    if len(counts) < 2:
        return next(iter(counts), "")
    return ", ".join(f"{value} x{count}" for value, count in counts.most_common())


def _percent(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.2f}%" if values else ""
