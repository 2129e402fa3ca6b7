"""A folder of own videos and masks, in one of three layouts; whatever is wrong with it is listed, not raised.

    FOLDER/videos/[train|val|test/]NAME.mp4     any ending and size; the name counts, without folder and ending
    FOLDER/classes.txt                          one class a line, `background` first
    FOLDER/splits.csv                           optional: video,split
    (a) FOLDER/masks/NAME/SECONDS.png           class indices; SECONDS from the first picture, such as 3.5
    (b) FOLDER/NAME.json                        COCO instances; its images name video and time; classes.txt optional
    (c) FOLDER/metadata.jsonl                   a line per video: {"file_name": "videos/a.mp4", "split": "train",
                                                "masks": [{"time": 3.5, "mask": "masks/any.png"}, ...]}

A second without a mask is not annotated. A mask of zeros, an image of the COCO file without objects, and a `"mask"` of
null say that nothing sounds. Whole videos belong to a split, never parts of them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from combo_hf.data.avsbench_layout import is_plain_name
from combo_hf.data.findings import Finding
from combo_hf.data.own_coco import CocoReader
from combo_hf.data.own_masks import Annotation, IndexMask, OwnVideo
from combo_hf.data.subsets import OWN, SPLITS
from combo_hf.files.pictures import read_bytes
from combo_hf.remote_code_combo import LONGEST_LABEL, is_label


VIDEO_ENDINGS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp")
MAX_CLASSES = 254
MAX_CLASSES_BYTES = 1 << 20  # of their names
MAX_TIME = 1e7  # s
MAX_JSON = 1 << 30
NOT_OURS = ("package.json", "compose.json", "synthetic.json")
_SECONDS = re.compile(r"\d{1,7}(?:[.]\d+)?")


class OwnFolder:
    """What a folder holds.

    Attributes:
        root: the folder.
        classes: names, background first; class k of the masks is `classes[k]`.
        videos: by name.
        findings: what is wrong or odd.

    Raises:
        ValueError: no folder, or without a folder `videos` with videos in it.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.classes: list[str] = []
        self.videos: dict[str, OwnVideo] = {}
        self.findings: list[Finding] = []
        if not self.root.is_dir():
            raise ValueError(f"{root}: no such folder; name one with your videos in {Path(root).name}/videos.")
        self._find_videos()
        self._read_classes()
        self._read_masks()
        self._find_splits()
        self._check_all()

    def add(self, code: str, where: str | Path, message: str, serious: bool = True, split: str = "") -> None:
        """Note a finding; `where` is a file below the folder, or a name."""
        if isinstance(where, Path):
            where = where.relative_to(self.root).as_posix()
        self.findings.append(Finding(serious, code, OWN, split, where, message.rstrip(".") + "."))

    def _find_videos(self) -> None:
        folder = self.root / "videos"
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        for path in paths:
            if path.suffix.lower() not in VIDEO_ENDINGS:
                self.add("video-ending", path, f"is not read; wanted one of {', '.join(VIDEO_ENDINGS)}", False)
            elif not is_plain_name(path.stem) or "," in path.stem:
                self.add("video-name", path, "has a name that cannot be that of a clip (commas, colons, too long)")
            elif path.stem in self.videos:
                other = self.videos[path.stem].path.relative_to(self.root).as_posix()
                self.add("video-twice", path, f"has the name of {other}; every video needs its own")
            else:
                self.videos[path.stem] = OwnVideo(path.stem, path)
        if not self.videos:
            raise ValueError(f"{self.root}: no videos; wanted them in {self.root.name}/videos/NAME.mp4.")

    def _read_classes(self) -> None:
        path = self.root / "classes.txt"
        if not path.is_file():
            return
        try:
            lines = [line.strip() for line in read_bytes(path, MAX_CLASSES_BYTES).decode("utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            self.add("classes-unreadable", path, f"cannot be read as UTF-8 ({type(error).__name__})")
            return
        except ValueError as error:
            self.add("classes-unreadable", path, str(error))
            return
        while lines and not lines[-1]:
            lines.pop()
        wrong = _wrong_classes(lines)
        if wrong is None:
            self.classes = ["background", *lines[1:]]
        else:
            self.add(wrong[0], path, wrong[1])

    def _read_masks(self) -> None:
        tables = [p for p in sorted(self.root.glob("*.json")) if p.name not in NOT_OURS and not p.name.startswith(".")]
        lines, folder = self.root / "metadata.jsonl", self.root / "masks"
        if lines.is_file():
            if tables:
                self.add("layouts", tables[0], "is there beside metadata.jsonl; one of them says where masks are")
            self._need_classes("metadata.jsonl")
            self._read_metadata(lines)
        elif tables:
            if folder.is_dir():
                self.add("layouts", tables[0], "is there beside the folder masks; one of them says where masks are")
            for path in tables:
                CocoReader(self, path).read()
        elif folder.is_dir():
            self._need_classes("masks")
            self._read_pngs(folder)
        else:
            self.add("masks-missing", "", "no masks; wanted a folder masks, a COCO file or metadata.jsonl")

    def _need_classes(self, name: str) -> None:
        if not self.classes and not any(finding.code.startswith("classes") for finding in self.findings):
            self.add("classes-missing", "classes.txt", f"is missing; {name} needs the names of the classes")

    # (a)
    def _read_pngs(self, folder: Path) -> None:
        for place in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
            video = self.videos.get(place.name)
            if video is None:
                self.add("mask-video", place, f"belongs to no video; there are {', '.join(list(self.videos)[:4])}")
                continue
            for path in sorted(place.iterdir()) if place.is_dir() else ():
                if path.name.startswith("."):
                    continue
                if path.suffix.lower() != ".png" or not _SECONDS.fullmatch(path.stem):
                    self.add("mask-name", path, "is no time in seconds; wanted a name such as 3.png or 3.5.png")
                else:
                    self.annotate(video, Annotation(float(path.stem), IndexMask(path), self._name(path)))

    # (c)
    def _read_metadata(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            self.add("metadata-unreadable", path, f"cannot be read as UTF-8 ({type(error).__name__})")
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
                self.add("metadata-line", f"{path.name}:{number}", "is no JSON object with a file_name")
                continue
            self._line(f"{path.name}:{number}", entry)

    def _line(self, where: str, entry: dict[str, Any]) -> None:
        target = self._inside(entry["file_name"])
        video = next((video for video in self.videos.values() if target and video.path.resolve() == target), None)
        if video is None:
            self.add("metadata-video", where, f"{entry['file_name']!r} is no video below {self.root.name}/videos")
            return
        if "split" in entry:
            video.split = str(entry["split"])
        masks = entry.get("masks", [])
        for mask in masks if isinstance(masks, list) else [masks]:
            time = mask.get("time") if isinstance(mask, dict) else None
            if not isinstance(time, (int, float)) or not 0 <= time < MAX_TIME:
                self.add("metadata-mask", where, 'wanted masks as [{"time": seconds, "mask": "file.png"}, ...]')
                continue
            name = mask.get("mask")
            path = None if name is None else self._inside(str(name))
            if name is not None and path is None:
                self.add("mask-missing", where, f"the mask {name!r} is not there")
                continue
            self.annotate(video, Annotation(float(time), IndexMask(path), f"{where}, {time} s"))

    def _inside(self, name: str) -> Path | None:
        """The file of a name, if it is one below the folder."""
        try:
            path = (self.root / name).resolve()
            return path if path.is_relative_to(self.root.resolve()) and path.is_file() else None
        except (ValueError, OSError):  # zero bytes, half characters, too long
            return None

    def annotate(self, video: OwnVideo, annotation: Annotation) -> None:
        """Give a video a mask; a second one at the same time is a fault."""
        same = [a for a in video.annotations if (a.time, a.is_frame) == (annotation.time, annotation.is_frame)]
        if same:
            self.add(
                "mask-twice", annotation.where, f"is a second mask of {video.name} at the time of {same[0].where}"
            )
        else:
            video.annotations.append(annotation)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _find_splits(self) -> None:
        """From splits.csv, metadata.jsonl or folders; else by the names' digests, val and test a tenth each."""
        table = self.root / "splits.csv"
        if table.is_file():
            self._read_splits(table)
        for video in self.videos.values():
            parent = video.path.relative_to(self.root / "videos").parts[0]
            video.split = video.split or (parent if parent in SPLITS else "")
        named = [video for video in self.videos.values() if video.split]
        if not named:
            order = sorted(self.videos, key=lambda name: hashlib.sha256(name.encode()).digest())
            held = max(1, round(len(order) / 10)) if len(order) > 2 else 0
            for place, name in enumerate(order):
                self.videos[name].split = "val" if place < held else "test" if place < 2 * held else "train"
        for video in self.videos.values():
            if video.split not in SPLITS:
                what = f"the split {video.split!r}" if video.split else "no split, and others have one"
                self.add("split", video.path, f"has {what}; wanted one of {', '.join(SPLITS)}")

    def _read_splits(self, path: Path) -> None:
        try:
            reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
            rows = [(reader.line_num, row) for row in reader]
        except (UnicodeDecodeError, OSError, csv.Error) as error:
            self.add("splits-unreadable", path, f"cannot be read ({type(error).__name__})")
            return
        if not {"video", "split"} <= set(reader.fieldnames or ()):
            self.add("splits-columns", path, f"has the columns {reader.fieldnames}; wanted video,split")
            return
        for line, row in rows:
            name = str(row["video"] or "").strip()
            video = self.videos.get(name) or self.videos.get(Path(name).stem)
            if video is None:
                self.add("splits-video", f"{path.name}:{line}", f"names the video {name!r}, which is not there")
            elif video.split:
                self.add("splits-twice", f"{path.name}:{line}", f"names {name!r} again")
            else:
                video.split = str(row["split"] or "").strip()

    def _check_all(self) -> None:
        without = [video for video in self.videos.values() if not video.annotations]
        if len(without) == len(self.videos) and not any(finding.serious for finding in self.findings):
            self.add("masks-none", "", "no video has a mask")
        for video in without:
            self.add("video-unmasked", video.path, "has no mask; it is left out", False, video.split)
        self._find_copies()
        for video in self.videos.values():
            video.annotations.sort(key=lambda annotation: annotation.time)

    def _find_copies(self) -> None:
        """The same file under two names; the whole file is read only where sizes are equal."""
        by_size: dict[int, list[OwnVideo]] = {}
        for video in self.videos.values():
            by_size.setdefault(video.path.stat().st_size, []).append(video)
        for group in (group for group in by_size.values() if len(group) > 1):
            first: dict[str, OwnVideo] = {}
            for video in group:
                with open(video.path, "rb") as file:
                    other = first.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), video)
                if other is not video:
                    text = f"is the same file as {other.name} ({other.split})"
                    self.add("video-copy", video.path, text, other.split != video.split, video.split)

    def annotated(self) -> Iterator[OwnVideo]:
        """Videos with masks, in the order of splits and names."""
        videos = (video for video in self.videos.values() if video.annotations and video.split in SPLITS)
        yield from sorted(videos, key=lambda video: (SPLITS.index(video.split), video.name))


def is_own_folder(root: str | Path) -> bool:
    """Whether a folder looks like own data rather than AVSBench."""
    return (Path(root) / "videos").is_dir()


def _wrong_classes(lines: list[str]) -> tuple[str, str] | None:
    """Kind and text of what is wrong with the lines of classes.txt, if anything is."""
    if not lines or lines[0].lower() != "background":
        return "classes-first", f"begins with {lines[0][:40]!r}" if lines else "is empty: wanted background first"
    if len(lines) < 2:
        return "classes-few", "names no class but the background"
    if "" in lines:
        return "classes-blank", f"line {lines.index('') + 1} is blank; the number of a line is the class"
    if len(lines) > MAX_CLASSES:
        return "classes-many", f"names {len(lines)} classes; masks of 8 bits tell {MAX_CLASSES}"
    for line, count in Counter(lines).items():
        if count > 1:
            return "classes-twice", f"names {line[:40]!r} twice"
        if "," in line:
            return "classes-comma", "has a name with a comma, which separates names in rows"
        if not is_label(line):
            return "classes-name", f"has the name {line[:40]!r}; wanted {LONGEST_LABEL} visible letters at most"
    return None
