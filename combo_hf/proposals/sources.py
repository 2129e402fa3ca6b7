"""What Maskiges can be made of: a video, a folder of pictures, AVSBench as downloaded, a built data set.

A source is cut into groups: the frames of one clip with the files that their Maskiges become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps


PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
ENDING = "_mask_color.png"  # of the release
SIDE = 224


@dataclass(frozen=True)
class Group:
    """Frames of one clip, in time order.

    Attributes:
        name: for messages and progress.
        frames: files, or the one video they are in.
        targets: file of every frame's Maskige, relative to the output folder; empty for a video (not known before).
        fps: frames per second taken from a video.
        size: height and width of the Maskiges; `None`: the frame's.
    """

    name: str
    frames: tuple[Path, ...]
    targets: tuple[Path, ...]
    fps: int = 0
    size: tuple[int, int] | None = None

    def count(self) -> int:
        """Frames; of a video about so many, 0 if it cannot be told."""
        if not self.fps:
            return len(self.frames)
        from combo_hf.media_combo import probe_media

        try:
            return probe_media(self.frames[0]).seconds * self.fps
        except ValueError:
            return 0

    def singles(self) -> list[Group]:
        """A group for each picture; a video stays whole."""
        if self.fps:
            return [self]
        return [
            Group(self.name, (frame,), (target,), 0, self.size)
            for frame, target in zip(self.frames, self.targets, strict=True)
        ]

    def read(self) -> Iterator[tuple[Path, Callable[[], Image.Image]]]:
        """(target, how to read the frame) in time order.

        Raises:
            ValueError: the video cannot be read, or has no pictures.
        """
        if not self.fps:
            for frame, target in zip(self.frames, self.targets, strict=True):
                yield target, partial(read_picture, frame)
            return
        from combo_hf.media_combo import iter_clips

        number = 0
        for clip in iter_clips(self.frames[0], fps=self.fps):
            for picture in clip.frames:
                number += 1
                yield video_target(self.name, number), picture.copy
        if not number:
            raise ValueError(f"{self.frames[0].name}: no pictures in it.")


def video_target(name: str, number: int) -> Path:
    """File of the Maskige of a video's frame, counting from 1."""
    return Path(name) / f"{name}_{number}{ENDING}"


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB, turned as its EXIF data say.

    Raises:
        ValueError: missing, damaged, or far too large.
    """
    from combo_hf.files.pictures import open_image, read_bytes

    return ImageOps.exif_transpose(open_image(read_bytes(path), path.name)).convert("RGB")


def find_groups(source: str | Path, fps: int = 1, size: tuple[int, int] | None = None) -> list[Group]:
    """Groups of a video, of AVSBench as downloaded, or of a folder of pictures and videos (searched to any depth).

    Args:
        source: file or folder.
        fps: frames per second taken from videos.
        size: height and width of the Maskiges; `None`: 224 x 224, or the frame's own size for AVSBench, where the
            release wants that.

    Raises:
        ValueError: nothing there.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix.lower() in PICTURES:
            return [_picture(source, source.parent, size)]
        return [Group(source.stem, (source,), (), fps, size or (SIDE, SIDE))]
    if not source.is_dir():
        raise ValueError(f"{source}: no such file or folder.")
    groups = _avsbench(source, size)
    if groups:
        return groups
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    videos = [path for path in files if path.suffix.lower() in VIDEOS]
    groups = [
        Group(name, (path,), (), fps, size or (SIDE, SIDE))
        for name, path in zip(_video_names(source, videos), videos, strict=True)
    ]
    by_folder: dict[Path, list[Group]] = {}
    for path in files:
        if path.suffix.lower() in PICTURES and not path.name.endswith(ENDING):
            by_folder.setdefault(path.parent, []).append(_picture(path, source, size))
    for folder, pictures in by_folder.items():
        pictures.sort(key=lambda group: natural(group.frames[0].name))
        frames, targets = (tuple(getattr(one, part)[0] for one in pictures) for part in ("frames", "targets"))
        groups.append(Group(str(folder.relative_to(source)), frames, targets, 0, size or (SIDE, SIDE)))
    if not groups:
        raise ValueError(f"{source}: no pictures, videos or AVSBench in it.")
    return groups


def natural(name: str) -> tuple[object, ...]:
    """Sort key by which frame 10 comes after frame 9."""
    parts, digits = [""], False
    for letter in name:
        if letter.isdecimal() != digits:
            parts.append("")
            digits = not digits
        parts[-1] += letter
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def _video_names(source: Path, videos: list[Path]) -> list[str]:
    """Names of videos: path with dashes; where two would meet (a.mp4, a.mkv) these keep their ending.

    Raises:
        ValueError: two videos still have the same name (a/b.mp4 and a-b.mp4, each beside a b.mkv).
    """
    short = ["-".join(path.relative_to(source).with_suffix("").parts) for path in videos]
    names = [
        name + path.suffix.replace(".", "-") if short.count(name) > 1 else name
        for name, path in zip(short, videos, strict=True)
    ]
    for name, path in zip(names, videos, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"{path}: the Maskiges of another video would get the same names; rename one of them.")
    return names


def _picture(path: Path, root: Path, size: tuple[int, int] | None) -> Group:
    target = path.relative_to(root).with_name(path.name + ENDING)  # a.png and a.jpg must not meet
    return Group(path.name, (path,), (target,), 0, size or (SIDE, SIDE))


def _avsbench(root: Path, size: tuple[int, int] | None) -> list[Group]:
    """Clips of all subsets found below a folder, in the official layout below the same folders."""
    from combo_hf.data.avsbench_layout import find_home, read_entries
    from combo_hf.data.subsets import RULES

    groups = []
    for subset, rule in RULES.items():
        try:
            home = find_home(root, subset)
        except ValueError:
            continue
        if not (home / rule.meta).is_file():
            continue
        below = home.relative_to(root) if home.is_relative_to(root) else Path()
        for entry in read_entries(root, subset):
            frames = tuple(entry.paths(home, rule, rule.frame))
            place = entry.maskige_place(home, rule) or rule.maskiges[0]
            targets = tuple(below / path.relative_to(home) for path in entry.paths(home, rule, place))
            groups.append(Group(f"{subset}/{entry.name}", frames, targets, 0, size))
    return groups
