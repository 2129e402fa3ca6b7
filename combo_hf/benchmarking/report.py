"""The table of a benchmark, for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from combo_hf.benchmarking.machine import Machine
from combo_hf.files.atomic import write_text


@dataclass
class Result:
    """One line of the table.

    Attributes:
        case, variant: names.
        wall, cpu: seconds of one run, medians over the rounds; CPU time is that of all threads.
        wall_ratio, cpu_ratio: how many times faster than the first variant of the case.
        flops, bytes: counted; `None` where torch does not do the work.
        flop_share, byte_share: of the measured rates, by CPU time per thread.
        peak: bytes, with what was held before; `None` where not measured.
        note: how close the output is to the first variant's.
    """

    case: str
    variant: str
    wall: float
    cpu: float
    wall_ratio: float
    cpu_ratio: float
    flops: float | None = None
    bytes: float | None = None
    flop_share: float | None = None
    byte_share: float | None = None
    peak: float | None = None
    note: str = ""

    @property
    def bound(self) -> str:
        """What limits it: the larger share, where it is at least a third."""
        shares = {"products": self.flop_share or 0.0, "memory": self.byte_share or 0.0}
        name = max(shares, key=lambda limit: shares[limit])
        return name if shares[name] >= 1 / 3 else "-"


HEADERS = (
    "case",
    "variant",
    "wall",
    "cpu",
    "x wall",
    "x cpu",
    "GFLOP",
    "% product",
    "% copy",
    "peak",
    "bound",
    "note",
)


def as_table(results: Sequence[Result], machine: Machine) -> str:
    """Markdown."""
    rows = [
        (
            result.case, result.variant, seconds(result.wall), seconds(result.cpu),
            f"{result.wall_ratio:.2f}", f"{result.cpu_ratio:.2f}",
            _number(result.flops, 1e-9, "{:.1f}"), _number(result.flop_share, 100, "{:.0f}"),
            _number(result.byte_share, 100, "{:.0f}"), _number(result.peak, 2**-30, "{:.2f} GB"), result.bound,
            result.note,
        )
        for result in results
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in [HEADERS, *rows]) for column in range(len(HEADERS))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([describe(machine), "", line(HEADERS), rule, *map(line, rows)])


def describe(machine: Machine) -> str:
    """One paragraph about the machine."""
    return (
        f"{machine.processor}, {machine.threads} of {machine.cores} cores (network on {machine.device}), "
        f"torch {machine.torch}, load {machine.load:.1f}. Measured: product {machine.float32 / 1e9:.0f} GFLOP/s "
        f"float32, {machine.bfloat16 / 1e9:.0f} bfloat16, copy {machine.copy / 1e9:.1f} GB/s. Medians; x = how many "
        "times faster than the first line of the case; % = of the product and the copy rate, by CPU time per thread."
    )


def seconds(value: float) -> str:
    """With a unit that suits."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _number(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else form.format(value * factor)


def write_json(results: Sequence[Result], machine: Machine, path: str | Path) -> None:
    """Machine and lines, all numbers in SI units.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    lines: list[dict[str, Any]] = [{**asdict(result), "bound": result.bound} for result in results]
    write_text(path, json.dumps({"machine": machine.as_dict(), "results": lines}, indent=1))
