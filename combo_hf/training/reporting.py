"""What a run tells while it runs: metrics.jsonl, trackers, the bar."""

from __future__ import annotations

import json
import math
import numbers
import time
from pathlib import Path
from typing import Any

from combo_hf.training.state import cut_log
from combo_hf.training.step import LOSS_KINDS


class Reporter:
    """Writes records on the main process only.

    Args:
        accelerator: with `log_with` set to the recipe's trackers.
        output (`Path`): folder of the run.
        recipe ([`TrainingRecipe`])
    """

    def __init__(self, accelerator: Any, output: Path, recipe: Any) -> None:
        self.accelerator, self.recipe = accelerator, recipe
        self.path = output / "metrics.jsonl"
        self.rows: list[dict[str, float]] = []  # of the steps since the last line; saved with the state
        self.begin = time.monotonic()

    def start(self, step: int) -> None:
        """Before the first step of a run or of a resumed one; what was told of later steps is taken back."""
        if self.accelerator.is_main_process:
            cut_log(self.path, step)
        if self.recipe.trackers:
            options = {"tensorboard": {"purge_step": step + 1}} if "tensorboard" in self.recipe.trackers else {}
            self.accelerator.init_trackers("logs", init_kwargs=options)

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers to the trackers."""
        if not self.accelerator.is_main_process:
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
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

    def flush(self, step: int, epoch: int) -> dict[str, float]:
        """Log the means since the last time, and return them."""
        means = {name: math.fsum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}
        self.rows = []
        self.log({"step": step, "epoch": epoch, **means})
        return means

    @staticmethod
    def postfix(means: dict[str, float]) -> dict[str, str]:
        """The terms of the loss, for the bar."""
        return {name.removeprefix("loss_"): f"{means[name]:.3f}" for name in LOSS_KINDS}
