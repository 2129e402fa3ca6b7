"""Is this folder AVSBench, whole and in order? Everything missing, extra or odd, in one table."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from combo_hf.data.avsbench_check_clips import ClipReport, ClipTask, check_clip
from combo_hf.data.avsbench_layout import OFF_SCREEN, ClipEntry, find_home, nearest_class, parse_objects, scan_entries
from combo_hf.data.findings import Finding
from combo_hf.data.subsets import AVSS_CLASSES, RULES, SPLITS, SUBSETS, subset_rule
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress


def find_subsets(root: str | Path) -> list[str]:
    """The subsets that a folder holds.

    Raises:
        ValueError: no such folder, or none of them is there.
    """
    found = []
    for subset in SUBSETS:
        try:
            find_home(root, subset)
        except ValueError:
            if not Path(root).is_dir():
                raise
            continue
        found.append(subset)
    if not found:
        names = ", ".join(rule.meta for rule in RULES.values())
        raise ValueError(f"{root}: no subset of AVSBench here; wanted a folder with one of {names} in it or below.")
    return found


def check_dataset(
    root: str | Path,
    subset: str | None = None,
    num_processes: int = 1,
    processed: bool = False,
    decode: bool = True,
    progress: bool | None = None,
) -> list[Finding]:
    """Look for faults in the official folders.

    Args:
        root (`str` or `Path`): the folder of AVSBench, or of a subset.
        subset (`str`, *optional*): "s4", "ms3" or "avss"; default all that are there.
        num_processes (`int`, defaults to 1): above 1, a script needs the `if __name__ == "__main__"` guard.
        processed (`bool`): look at the files that a build with this would take.
        decode (`bool`, defaults to `True`): off: names and sizes only, pictures and sound are not decoded.
        progress (`bool`, *optional*): show how far it has come (default), see [`Progress`]; off: nothing.

    Returns:
        `list[Finding]`, serious ones first; empty where all is as it should be, and complete.

    Raises:
        ValueError: no such folder, or no (such) subset in it.
    """
    subsets = [subset] if subset else find_subsets(root)
    findings: list[Finding] = []
    videos: dict[str, dict[str, set[str]]] = {}
    for name in subsets:
        own = processed and name == "avss"
        home = find_home(root, name)
        entries, problems = scan_entries(home, name)
        meta = RULES[name].meta
        findings += [
            Finding(p.serious, p.code, name, "", f"{meta}:{p.line}" if p.line else meta, p.message) for p in problems
        ]
        findings += _check_tables(entries, home, name)
        tasks = [ClipTask(entry, home, own, decode) for entry in entries]
        findings += _check_clips(tasks, name, num_processes, progress)
        if entries:
            findings += _extra_clips(entries, home, name)
        videos[name] = _source_videos(entries)
    findings += _leaks_between(videos)
    return sorted(findings, key=lambda f: (not f.serious, SUBSETS.index(f.subset), f.code))


def _check_clips(tasks: list[ClipTask], subset: str, num_processes: int, progress: bool | None) -> list[Finding]:
    reports: list[ClipReport] = []
    with Progress(f"check {subset}", "clip", len(tasks), shown=progress is not False) as bar:
        for report in run_tasks(check_clip, tasks, num_processes):
            reports.append(report)
            bar.advance()
    reports.sort(key=lambda report: (SPLITS.index(report.entry.split), report.entry.name))
    findings = [finding for report in reports for finding in report.findings]
    without = [report.entry for report in reports if not report.has_maskiges]
    if without and len(without) < len(reports):
        text = f"{len(without)} of {len(reports)} clips have no Maskiges; their rows hold null."
        findings.append(Finding(False, "maskiges-partly", subset, "", without[0].name, text))
    rule = subset_rule("avss", True)
    if subset == "avss" and tasks and len(without) == len(reports) and not tasks[0].processed:
        if any(task.entry.maskige_place(task.home, rule) for task in tasks[:50]):
            text = "Maskiges are there for processed_frames only; build with --processed to have them."
            findings.append(Finding(False, "maskiges-processed", subset, "", "pre_SAM_mask", text))
    return findings + _copies(reports)


def _copies(reports: Iterable[ClipReport]) -> list[Finding]:
    """Clips with the same first picture and the same sound."""
    seen: dict[str, ClipEntry] = {}
    findings = []
    for report in reports:
        if len(report.digest) < 128:  # picture or sound could not be read
            continue
        first = seen.setdefault(report.digest, report.entry)
        if first is not report.entry:
            entry = report.entry
            text = f"the same first picture and sound as {first.name} ({first.split})."
            findings.append(
                Finding(first.split != entry.split, "clip-copy", entry.subset, entry.split, entry.name, text)
            )
    return findings


def _check_tables(entries: Sequence[ClipEntry], home: Path, subset: str) -> list[Finding]:
    """Counts, videos in several splits, class names: what the csv file alone tells."""
    rule, findings = RULES[subset], []
    for split, wanted in rule.counts.items():
        count = sum(entry.split == split for entry in entries)
        if count != wanted:
            text = f"{count} clips; the official subset has {wanted}."
            findings.append(Finding(False, "count", subset, split, split, text))
    for video, splits in _source_videos(entries).items():
        if len(splits) > 1:
            names = sorted(entry.name for entry in entries if entry.youtube_id == video)
            text = f"clips of one video in {', '.join(s for s in SPLITS if s in splits)}: {', '.join(names[:4])}."
            findings.append(Finding(False, "split-leak", subset, "", video, text))
    if rule.semantic:
        findings += _check_objects(entries, subset) + _check_classes(home, subset)
    return findings


def _check_objects(entries: Sequence[ClipEntry], subset: str) -> list[Finding]:
    findings = []
    for entry in entries:
        names, unknown = parse_objects(entry.category)
        where = f"{RULES[subset].meta}:{entry.line}"
        for word in unknown:
            near = nearest_class(word)
            text = f"a_obj {word!r} is no class" + (f"; {near!r} is meant?" if near else f" and not {OFF_SCREEN!r}.")
            findings.append(Finding(False, "object-name", subset, entry.split, where, text))
        if not names:
            findings.append(Finding(False, "object-name", subset, entry.split, where, "a_obj names nothing."))
        elif not unknown and "_".join(names) != entry.category:
            text = f"a_obj {entry.category!r} is read as {'_'.join(names)!r}."
            findings.append(Finding(False, "object-spelling", subset, entry.split, where, text))
    return findings


def _check_classes(home: Path, subset: str) -> list[Finding]:
    """label2idx.json counts from 1; the masks count from 0."""

    def finding(text: str, code: str = "label-order", serious: bool = True) -> list[Finding]:
        return [Finding(serious, code, subset, "", path.name, text)]

    path = home / "label2idx.json"
    if not path.is_file():
        return finding("is missing; the class names are built in, so nothing depends on it.", "label-file", False)
    try:
        indices = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        return finding(f"cannot be read ({type(error).__name__}).", "label-file", False)
    if not isinstance(indices, dict) or not all(type(value) is int for value in indices.values()):
        return finding("wanted an object of class names and their numbers.", "label-file", False)
    order = {name: number for number, name in enumerate(AVSS_CLASSES)}
    if set(indices) != set(order):
        missing, unknown = sorted(set(order) - set(indices)), sorted(set(indices) - set(order))
        return finding(f"wanted the 71 official classes; missing {missing[:4]}, unknown {unknown[:4]}.")
    first = indices["background"]
    wrong = [name for name, number in order.items() if indices[name] - first != number]
    if wrong:
        name = wrong[0]
        text = (
            f"{name!r} has number {indices[name]} where {order[name] + first} is official: the masks may mean others."
        )
        return finding(text)
    if first == 0:
        return finding("counts from 0 as the masks do; the official file counts from 1.", "label-start", False)
    return [] if first == 1 else finding(f"counts from {first}; the official file counts from 1.")


def _extra_clips(entries: Sequence[ClipEntry], home: Path, subset: str) -> list[Finding]:
    """Folders that no line of the csv file names."""
    rule, findings = RULES[subset], []
    known = {entry.path(home, rule, rule.frame).parent for entry in entries}
    known = {folder.parent if subset == "avss" else folder for folder in known}
    patterns = {rule.clips.format(split=split) for split in SPLITS}
    for pattern in sorted(patterns):
        for folder in sorted(home.glob(pattern)):
            if folder not in known and not folder.name.startswith("."):
                where = folder.relative_to(home).as_posix()
                kind = "a folder" if folder.is_dir() else "a file"
                text = f"{kind} that {rule.meta} does not list there."
                findings.append(Finding(False, "clip-extra", subset, "", where, text))
    return findings


def _source_videos(entries: Iterable[ClipEntry]) -> dict[str, set[str]]:
    """The videos that the clips were cut from, with the splits of their clips."""
    videos: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        videos[entry.youtube_id].add(entry.split)
    return videos


def _leaks_between(videos: dict[str, dict[str, set[str]]]) -> list[Finding]:
    """Videos that one subset trains on and another tests on: matters to who trains on both, one after the other."""
    findings = []
    for train in videos:
        for test in videos:
            shared = [
                video
                for video, splits in videos[train].items()
                if train != test and "train" in splits and videos[test].get(video, set()) & {"val", "test"}
            ]
            if shared:
                text = f"{len(shared)} videos of its train split are in val or test of {test}."
                findings.append(Finding(False, "subset-leak", train, "train", min(shared), text))
    return findings
