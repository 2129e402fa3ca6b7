"""Clips with another clip's sound: does a model listen, or does it find what usually sounds?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class RowsWithOtherSounds:
    """Rows of a data set, each with the sound of another one."""

    def __init__(self, rows: Any, categories: Sequence[str]) -> None:
        self.rows, self.sounds = rows, rows.select_columns(["audio"])
        self.partners = other_clips(categories)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], **self.sounds[self.partners[index]]}


def other_clips(categories: Sequence[str]) -> list[int]:
    """For every clip the one whose sound it borrows: half the data set on, and from there the first that shares no
    category with it; where all do, the first.

    Args:
        categories: names joined by commas, of every clip; "" is not known.

    Raises:
        ValueError: a single clip.
    """
    total = len(categories)
    if total < 2:
        raise ValueError("other_audio needs at least two clips.")
    named = [set(filter(None, names.split(","))) for names in categories]
    partners = []
    for index, own in enumerate(named):
        order = [(index + step) % total for step in (*range(max(1, total // 2), total), *range(1, total // 2))]
        partners.append(next((other for other in order if not own & named[other]), order[0]))
    return partners
