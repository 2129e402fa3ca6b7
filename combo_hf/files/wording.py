"""Pieces of one-line messages."""

from __future__ import annotations

from collections.abc import Iterable


JOINERS = "\u200c\u200d"  # of letters in Persian and Hindi, and of pictures


def some(names: Iterable[object], shown: int = 4) -> str:
    """The first few of many names: `a, b, c, d and 7 more`."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")


def visible(text: object) -> str:
    """Text of a stranger (names of files and classes, remarks of decoders) for a terminal, which it cannot command.

    Line ends, control characters and marks that turn the direction of writing become `\\n`, `\\x1b`, `\\u202e`.
    """
    letters = (c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(letters)


def first_line(error: BaseException, length: int = 160) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]
