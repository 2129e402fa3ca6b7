"""What a check of a folder says: faults and remarks, and a table of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from combo_hf.files.wording import visible


SHOWN_EXAMPLES = 2


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        serious: a build stops at it, or labels would be wrong; otherwise only worth knowing.
        code: its kind.
        subset, split: "" where it concerns all.
        where: clip, or file below the folder that is checked.
        message: what was found, and what was wanted.
    """

    serious: bool
    code: str
    subset: str
    split: str
    where: str
    message: str


def format_findings(findings: Sequence[Finding], show_all: bool = False) -> str:
    """The findings as a table: one line per kind with its number and examples, or one line each.

    Args:
        findings: of [`check_dataset`].
        show_all (`bool`): every finding.
    """
    groups: dict[tuple[bool, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.serious, finding.subset, finding.code].append(finding)
    rows = [("", "subset", "kind", "number", "where and what")]
    for (serious, subset, code), group in groups.items():
        shown = group if show_all else group[:SHOWN_EXAMPLES]
        for number, finding in enumerate(shown):
            head = ("ERROR" if serious else "note", subset, code, str(len(group))) if number == 0 else ("", "", "", "")
            rows.append((*head, visible(f"{finding.where}: {finding.message}")))
        if len(group) > len(shown):
            rows.append(("", "", "", "", f"... and {len(group) - len(shown)} more"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
