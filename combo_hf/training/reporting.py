"""What a run tells while it runs: metrics.jsonl, trackers, the bar."""

from __future__ import annotations

import json
import math
import numbers
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from combo_hf.files.atomic import appending
from combo_hf.loss_combo import LOSS_KINDS
from combo_hf.training.state import cut_log


if TYPE_CHECKING:
    from accelerate import Accelerator


class Reporter:
    """Writes records on the main process only.

    Args:
        accelerator: with `log_with` set to the trackers.
        output (`Path`): folder of the run.
        trackers: names of programs that are told, too.
    """

    def __init__(self, accelerator: Accelerator, output: Path, trackers: Sequence[str] = ()) -> None:
        self.accelerator, self.trackers = accelerator, trackers
        self.path = output / "metrics.jsonl"
        self.lines = 0  # that metrics.jsonl has
        self.rows: list[dict[str, float]] = []  # of the steps since the last line
        self.note = ""  # the terms of the loss in the last line, in words
        self.begin = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same records, of plain numbers."""
        return {"lines": self.lines, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a [`state_dict`]."""
        self.lines, self.rows = state["lines"], state["rows"]

    def start(self, step: int) -> None:
        """Before the first step of a run or of a resumed one; what was told after the state was saved goes."""
        if self.accelerator.is_main_process:
            cut_log(self.path, self.lines)
        if self.trackers:
            options = {"tensorboard": {"purge_step": step + 1}} if "tensorboard" in self.trackers else {}
            self.accelerator.init_trackers("logs", init_kwargs=options)

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers to the trackers."""
        if not self.accelerator.is_main_process:
            return
        with appending(self.path) as file:
            file.write(json.dumps(record).encode() + b"\n")
        self.lines += 1
        flat = {f"validation/{name}": value for name, value in record.get("validation", {}).items()}
        flat.update(
            {f"training/{name}": value for name, value in record.items() if name not in ("step", "validation")}
        )
        numeric = {name: value for name, value in flat.items() if isinstance(value, numbers.Real)}
        self.accelerator.log(numeric, step=record["step"])

    def restart_clock(self) -> None:
        """Before the first step, and after an evaluation, whose time belongs to no step."""
        self.begin = time.monotonic()

    def add(self, row: dict[str, float]) -> None:
        """The values of one step."""
        now = time.monotonic()
        self.rows.append({**row, "seconds_per_step": now - self.begin})
        self.begin = now

    def flush(self, step: int, epoch: int) -> None:
        """Log the means since the last time."""
        means = {name: math.fsum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}
        self.rows = []
        self.note = ", ".join(f"{name.removeprefix('loss_')} {means[name]:.3f}" for name in LOSS_KINDS)
        self.log({"step": step, "epoch": epoch, **means})
