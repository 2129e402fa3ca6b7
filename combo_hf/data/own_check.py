"""What is wrong with a folder of own videos and masks: every fault in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from combo_hf.configuration_combo import IGNORE_INDEX
from combo_hf.data.findings import Finding
from combo_hf.data.own_layout import OwnFolder
from combo_hf.data.own_masks import Annotation, OwnVideo, read_mask
from combo_hf.data.own_rows import check_shape
from combo_hf.data.subsets import OWN, SPLITS
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress
from combo_hf.media_combo import MediaInfo, probe_media


def check_own(
    root: str | Path, num_processes: int = 1, decode: bool = True, progress: bool | None = None
) -> list[Finding]:
    """Look for faults in a folder of own videos and masks.

    Args:
        root, num_processes, progress: see `combo_hf.data.own.build_own`.
        decode (`bool`): off: names, tables and the forms of masks only; videos and PNGs are not opened.

    Returns:
        `list[Finding]`, serious ones first.

    Raises:
        ValueError: no such folder, or without videos.
    """
    folder = OwnFolder(root)
    findings = list(folder.findings)
    tasks = [(video, tuple(folder.classes), folder.root) for video in folder.annotated()] if decode else []
    used: dict[str, set[int]] = {split: set() for split in SPLITS}
    with Progress("check", "video", len(tasks), shown=progress is not False) as bar:
        for video, found, classes in run_tasks(_check_video, tasks, num_processes):
            findings += found
            used[video.split] |= classes
            bar.advance()
    if tasks and folder.classes:
        findings += _unused(folder.classes, used)
    return sorted(findings, key=lambda finding: (not finding.serious, finding.code, finding.where))


def _check_video(task: tuple[OwnVideo, tuple[str, ...], Path]) -> tuple[OwnVideo, list[Finding], set[int]]:
    """What is wrong with a video and its masks, and the classes in them."""
    check = _VideoCheck(*task)
    check.run()
    return check.video, check.findings, check.used


class _VideoCheck:
    def __init__(self, video: OwnVideo, classes: tuple[str, ...], root: Path) -> None:
        self.video, self.classes = video, classes
        self.name = video.path.relative_to(root).as_posix()
        self.findings: list[Finding] = []
        self.used: set[int] = set()

    def add(self, code: str, where: str, message: str, serious: bool = True) -> None:
        self.findings.append(Finding(serious, code, OWN, self.video.split, where, message.rstrip(".") + "."))

    def run(self) -> None:
        try:
            info = probe_media(self.video.path)
        except (ValueError, OSError) as error:
            self.add("video-unreadable", self.name, str(error))
            return
        if not info.has_audio:
            self.add("video-silent", self.name, "has no sound track; silence is taken", serious=False)
        for warning in info.warnings:
            self.add("video-damaged", self.name, warning, serious=False)
        taken: dict[int, str] = {}
        for annotation in self.video.annotations:
            time = annotation.seconds(info.fps)
            if time > info.duration:
                self.add("mask-late", annotation.where, f"is at {time:g} s; {self.name} ends at {info.duration:.2f} s")
            elif int(time) in taken:
                text = f"one mask a second is used; so is {taken[int(time)]}"
                self.add("mask-second", annotation.where, text, serious=False)
            taken.setdefault(int(time), annotation.where)
            self._mask(annotation, info)

    def _mask(self, annotation: Annotation, info: MediaInfo) -> None:
        size = (info.height, info.width)
        try:
            ids = read_mask(annotation.mask, len(self.classes))
        except ValueError as error:
            self.add("mask-unreadable", annotation.where, str(error))
            return
        if ids is None:
            return
        self.used |= {int(k) for k in np.unique(ids)} - {0, IGNORE_INDEX}
        try:
            check_shape(ids, size)
        except ValueError as error:
            self.add("mask-shape", annotation.where, str(error))
            return
        if ids.shape != size:
            text = f"is {ids.shape[1]} x {ids.shape[0]}, its video {size[1]} x {size[0]}; it is brought to that size"
            self.add("mask-size", annotation.where, text, serious=False)
        if (ids == IGNORE_INDEX).all():
            text = "is ignored everywhere (255); nothing is learnt from it"
            self.add("mask-ignored", annotation.where, text, serious=False)


def _unused(classes: Sequence[str], used: dict[str, set[int]]) -> list[Finding]:
    """Classes without a mask, in training or at all."""
    findings = []
    everywhere = set().union(*used.values())
    for number, name in enumerate(classes[1:], start=1):
        if number not in everywhere:
            findings.append(Finding(False, "class-unused", OWN, "", name, "is in no mask."))
        elif number not in used["train"]:
            findings.append(Finding(False, "class-untrained", OWN, "train", name, "is in no mask of the train split."))
    return findings
