"""Where AVSBench keeps what: its folders by the table in `subsets`, and the reader of its csv files.

Names from a csv file are checked before they become part of a path.
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from combo_hf.data.subsets import AVSS_CLASSES, SPLITS, SubsetRule, subset_rule


AVSS_LABELS = ("v1s", "v1m", "v2")
OFF_SCREEN = "off-the-screen"  # the sound of something that is not in the picture
MAX_NAME = 200
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
_SPELLINGS = {name.replace("-", ""): name for name in (*AVSS_CLASSES[1:], OFF_SCREEN)}


@dataclass(frozen=True)
class ClipEntry:
    """One line of a csv file.

    Attributes:
        name: id of the clip (S4 and MS3: `name`, AVSS: `uid`).
        category: S4: the category; MS3: ""; AVSS: its `a_obj` as written.
        label: AVSS: "v1s", "v1m" or "v2"; else "".
        youtube_id: the video that the clip was cut from.
        line: of the csv file, counting from 1.
    """

    subset: str
    split: str
    name: str
    category: str
    label: str
    youtube_id: str
    line: int

    @property
    def num_frames(self) -> int:
        """T: pictures, and seconds of sound."""
        return 10 if self.label == "v2" else 5

    @property
    def label_frames(self) -> list[bool]:
        """T flags: which frames are annotated."""
        first_only = self.split == "train" and (self.subset == "s4" or self.label == "v1s")
        return [k == 0 or not first_only for k in range(self.num_frames)]

    def path(self, home: Path, rule: SubsetRule, template: str, frame: int = 0) -> Path:
        """A file of the clip; `frame` counts from 0."""
        names = {"split": self.split, "category": self.category, "name": self.name, "label": self.label}
        return home / template.format(**names, k=frame + rule.first)

    def paths(self, home: Path, rule: SubsetRule, template: str) -> list[Path]:
        """The files of all T frames."""
        return [self.path(home, rule, template, frame) for frame in range(self.num_frames)]

    def maskige_place(self, home: Path, rule: SubsetRule) -> str | None:
        """The first template of `rule.maskiges` under which this clip has a file."""
        for template in rule.maskiges:
            if any(path.is_file() for path in self.paths(home, rule, template)):
                return template
        return None

    def video(self, home: Path, rule: SubsetRule) -> Path | None:
        """The raw video, if there is one."""
        for template in rule.videos:
            stem = self.path(home, rule, template)
            for suffix in VIDEO_SUFFIXES:
                if (path := stem.with_name(stem.name + suffix)).is_file():
                    return path
        return None


@dataclass(frozen=True)
class MetaProblem:
    """Something wrong with a csv file: `code` names the kind, `line` counts from 1 (0 = the whole file)."""

    code: str
    line: int
    message: str
    serious: bool = True


def find_home(root: str | Path, subset: str) -> Path:
    """The folder of a subset: below the folder of all AVSBench, or that folder itself.

    Raises:
        ValueError: the folder is not there, or does not hold the subset.
    """
    rule, folder = subset_rule(subset), Path(root)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the folder of AVSBench or of its subset {subset}.")
    homes = [folder / home for home in rule.homes]
    homes += [folder.parent] if folder.name == rule.marker else []
    for wanted in (rule.meta, rule.marker):
        for home in homes:
            if (home / wanted).exists():
                return home
    places = ", ".join(home or "." for home in rule.homes)
    raise ValueError(f"{folder}: no subset {subset} here; wanted {rule.meta} in one of {places}.")


def is_plain_name(name: str) -> bool:
    """A name that stays inside its folder, on every system, and that files can have."""
    return (
        0 < len(name.encode("utf-8", "replace")) <= MAX_NAME
        and name not in (".", "..")
        and not re.search(r"[\x00-\x1f\x7f/\\:]", name)
        and name == name.strip()
    )


def read_entries(root: str | Path, subset: str, splits: Sequence[str] = SPLITS) -> list[ClipEntry]:
    """The clips of a subset, sorted by split (in the order of `splits`) and name.

    Raises:
        ValueError: subset or split unknown or not there, or anything wrong with the csv file.
    """
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; use one of {list(SPLITS)}.")
    home = find_home(root, subset)
    entries, problems = scan_entries(home, subset)
    serious = [problem for problem in problems if problem.serious]
    if serious:
        line = f" line {serious[0].line}" if serious[0].line else ""
        more = f" (and {len(serious) - 1} more, see `combo-hf data check`)" if len(serious) > 1 else ""
        raise ValueError(f"{subset_rule(subset).meta}{line}: {serious[0].message}{more}")
    order = {split: number for number, split in enumerate(splits)}
    return sorted((entry for entry in entries if entry.split in order), key=lambda e: (order[e.split], e.name))


def scan_entries(home: Path, subset: str) -> tuple[list[ClipEntry], list[MetaProblem]]:
    """All good lines of the subset's csv file, and what is wrong with the others."""
    rule = subset_rule(subset)
    entries: list[ClipEntry] = []
    problems: list[MetaProblem] = []
    seen: dict[str, int] = {}
    try:
        for line, row in _csv_rows(home / rule.meta, rule):
            problem = _row_problem(row, rule)
            if problem is None:
                entry = _entry(row, rule, line)
                if entry.name in seen:
                    text = f"{entry.name} is listed twice, first in line {seen[entry.name]}."
                    problems.append(MetaProblem("csv-duplicate", line, text))
                    continue
                seen[entry.name] = line
                entries.append(entry)
            else:
                problems.append(replace(problem, line=line))
    except _BadFile as error:
        problems.append(MetaProblem(error.args[0], 0, error.args[1]))
    return entries, problems


def parse_objects(text: str) -> tuple[list[str], list[str]]:
    """`a_obj` of AVSS -> class names, with slips of the pen put right ("h orse"), and words that are no class.

    Words that are no class stay in the first list as they are.
    """
    names, unknown = [], []
    for part in re.split(r"[_,]", text):
        word = "".join(part.split()).lower()
        if not word:
            continue
        name = _SPELLINGS.get(word.replace("-", ""))
        names.append(name or part.strip())
        if name is None:
            unknown.append(part.strip())
    return names, unknown


def nearest_class(word: str) -> str | None:
    """The class whose name looks most like a word, if any does."""
    close = difflib.get_close_matches(word, AVSS_CLASSES, 1, 0.7)
    return close[0] if close else None


@functools.lru_cache(maxsize=1)
def label_colors() -> np.ndarray:
    """Colours of `labels_rgb`, uint8 (71, 3) RGB: the palette of PASCAL VOC, the index's bits spread over channels."""
    colors = np.zeros((len(AVSS_CLASSES), 3), np.uint8)
    for index in range(len(AVSS_CLASSES)):
        for bit in range(3):
            for channel in range(3):
                colors[index, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colors


class _BadFile(Exception):
    """A csv file as a whole: (code, message)."""


def _csv_rows(path: Path, rule: SubsetRule) -> Iterator[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise _BadFile("csv-missing", f"{rule.meta} is missing; it lists the clips and their splits.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel puts a byte order mark in front
    except (UnicodeDecodeError, OSError) as error:
        raise _BadFile("csv-unreadable", f"{rule.meta} cannot be read as UTF-8 ({type(error).__name__}).") from error
    if not text.strip() or "\0" in text:
        what = "is empty" if not text.strip() else "holds zero bytes, so it is no text"
        raise _BadFile("csv-unreadable", f"{rule.meta} {what}.")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, restkey="")
        yield from _named_rows(reader, rule)
    except csv.Error as error:
        raise _BadFile("csv-unreadable", f"{rule.meta} is no csv file ({error}).") from error


def _named_rows(reader: csv.DictReader, rule: SubsetRule) -> Iterator[tuple[int, dict[str, str]]]:
    columns = [column.strip() for column in reader.fieldnames or []]
    missing = [column for column in rule.needed if column not in columns]
    if missing:
        raise _BadFile("csv-columns", f"{rule.meta}: columns {missing} missing, got {columns}; wanted commas between.")
    reader.fieldnames = columns
    for row in reader:
        if any(isinstance(value, str) and value.strip() for value in row.values()):
            yield reader.line_num, {key: value for key, value in row.items() if isinstance(value, str)}


def _row_problem(row: dict[str, str], rule: SubsetRule) -> MetaProblem | None:
    absent = [column for column in rule.needed if column not in row]
    if absent:
        return MetaProblem("csv-row", 0, f"the line ends before {absent}.")
    folders = [rule.id_column] + (["category"] if "category" in rule.needed else [])
    for column in folders:
        if not is_plain_name(row[column]):
            return MetaProblem("csv-name", 0, f"{column} {row[column]!r} cannot be the name of a file.")
    if row["split"].strip() not in SPLITS:
        return MetaProblem("csv-split", 0, f"split {row['split']!r} is none of {list(SPLITS)}.")
    if rule.semantic and row["label"].strip() not in AVSS_LABELS:
        return MetaProblem("csv-label", 0, f"label {row['label']!r} is none of {list(AVSS_LABELS)}.")
    return None


def _entry(row: dict[str, str], rule: SubsetRule, line: int) -> ClipEntry:
    name = row[rule.id_column]
    category = row["a_obj"] if rule.semantic else row.get("category", "") if "category" in rule.needed else ""
    video = row["vid"].strip() if rule.semantic else name
    label = row["label"].strip() if rule.semantic else ""
    # Ids of YouTube have 11 characters; MS3, and v1m after it, count several clips of one video with "_0", "_1".
    return ClipEntry(rule.name, row["split"].strip(), name, category, label, video[:11], line)
