"""Pieces of one-line messages."""

from __future__ import annotations

from collections.abc import Iterable


def some(names: Iterable[object], shown: int = 4) -> str:
    """The first few of many names: `a, b, c, d and 7 more`."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")


def first_line(error: BaseException, length: int = 160) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
