"""Masks of own videos from a COCO file of instances, as pycocotools, CVAT, Label Studio and Roboflow write it.

The name of an image says of which video and time it is: `NAME/3.5.jpg`, `NAME_3.5.jpg` (with what the tools add), or
`NAME/frame_000123.png` by the number of the picture.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from combo_hf.data.own_masks import MAX_SIDE, Annotation, CocoMask, decode_segmentation
from combo_hf.files.pictures import MAX_PIXELS
from combo_hf.remote_code_combo import LONGEST_LABEL, is_label


if TYPE_CHECKING:
    from combo_hf.data.own_layout import OwnFolder


MAX_JSON = 1 << 30
# What tools make of "NAME/3.5.jpg" and "NAME_3.5.jpg": Roboflow's "NAME_3-5_jpg.rf.HASH.jpg", Label Studio's
# "HASH-NAME_3.5.jpg", CVAT's "NAME/frame_000123.PNG".
_ENDING = re.compile(r"\.(?:png|jpe?g|webp|bmp|tiff?)$", re.IGNORECASE)
_ROBOFLOW = re.compile(r"_(?:jpe?g|png)\.rf\.[0-9A-Za-z]+$")
_LABEL_STUDIO = re.compile(r"^[0-9a-f]{8}-")
_TIME = re.compile(r"^(?:(?P<video>.+)_)?t?(?P<seconds>\d{1,7}(?:[.-]\d+)?)s?$")
_FRAME = re.compile(r"^(?:(?P<video>.+)_)?frame_?(?P<number>\d{1,9})$", re.IGNORECASE)


class CocoReader:
    """Reads one file into an [`OwnFolder`]; faults become findings."""

    def __init__(self, folder: OwnFolder, path: Path) -> None:
        self.folder, self.path, self.videos = folder, path, folder.videos

    def add(self, code: str, message: str) -> None:
        """Note a fault of the file."""
        self.folder.add(code, self.path, message)

    def read(self) -> None:
        """Classes, if classes.txt names none, and annotations."""
        content = self._read_json()
        if content is None:
            return
        images, annotations, categories = (_entries(content, key) for key in ("images", "annotations", "categories"))
        if images is None or annotations is None or categories is None:
            self.add("json-form", "is no COCO file of instances: wanted lists images, annotations and categories")
            return
        numbers = self._categories(categories)
        objects: dict[Any, list[tuple[int, Any, bool]]] = {}
        known: dict[Any, dict[str, Any]] = {}
        for image in images:
            if _key(image, "id") in known:
                self.add("image-twice", f"has two images of id {image.get('id')!r}")
            known[_key(image, "id")] = image
        for entry in annotations:
            self._object(entry, known, numbers, objects)
        for number, image in known.items():
            self._image(image, tuple(objects.get(number, ())))

    def _categories(self, categories: list[dict[str, Any]]) -> dict[Any, int]:
        """COCO's number of a category -> ours; names of classes if classes.txt gives none."""
        names = {_key(entry, "id"): str(entry.get("name") or "").strip() for entry in categories}
        for number, name in names.items():
            if not name or "," in name or not is_label(name):
                shown = f"category {number!r} has the name {name[:40]!r}"
                self.add("category-name", f"{shown}; wanted {LONGEST_LABEL} visible letters at most, no commas")
        found = [name for _, name in sorted(names.items(), key=lambda item: str(item[0]).zfill(12)) if name]
        if len(set(found)) < len(found):
            twice = next(name for name, count in Counter(found).items() if count > 1)
            self.add("category-twice", f"has two categories {twice!r}")
        if not (self.folder.root / "classes.txt").is_file():
            own = ("background", *self.folder.classes[1:], *(name for name in found if name.lower() != "background"))
            self.folder.classes = list(dict.fromkeys(own))
        order = {name.lower(): number for number, name in enumerate(self.folder.classes)}
        for name in found:
            if name.lower() not in order:
                self.add("category-unknown", f"category {name!r} is not in classes.txt")
        return {number: order[name.lower()] for number, name in names.items() if name.lower() in order}

    def _object(
        self,
        entry: dict[str, Any],
        images: Mapping[Any, dict[str, Any]],
        numbers: Mapping[Any, int],
        objects: dict[Any, list[tuple[int, Any, bool]]],
    ) -> None:
        name = f"annotation {entry.get('id')!r}"
        image = images.get(_key(entry, "image_id"))
        if image is None:
            self.add("annotation-image", f"{name} belongs to no image ({entry.get('image_id')!r})")
        elif _key(entry, "category_id") not in numbers:
            self.add("annotation-category", f"{name} has no category ({entry.get('category_id')!r})")
        elif (size := _size(image)) is not None:
            try:
                decode_segmentation(entry.get("segmentation"), size)
            except ValueError as error:
                self.add("segmentation", f"{name} {error}")
                return
            found = objects.setdefault(_key(entry, "image_id"), [])
            found.append((numbers[_key(entry, "category_id")], entry["segmentation"], bool(entry.get("iscrowd"))))

    def _image(self, image: dict[str, Any], objects: tuple[tuple[int, Any, bool], ...]) -> None:
        name, size = str(image.get("file_name") or ""), _size(image)
        if size is None:
            text = f"has no width and height of 1 to {MAX_SIDE} pixels, and at most {MAX_PIXELS} of them in all"
            self.add("image-size", f"image {name!r} {text}")
            return
        place = self._place(name)
        if place is None:
            text = "names no video and time; wanted NAME/SECONDS.jpg, NAME_SECONDS.jpg or NAME/frame_000123.png"
            self.add("image-name", f"image {name!r} {text}")
            return
        video, time, is_frame = place
        if video not in self.videos:
            self.add("image-video", f"image {name!r} is of video {video!r}, which is not there")
            return
        where = f"{self.path.name}: {name}"
        self.folder.annotate(self.videos[video], Annotation(time, CocoMask(size, objects), where, is_frame))

    def _place(self, name: str) -> tuple[str, float, bool] | None:
        """Video, time (or number of a picture) and which of both, of an image's name."""
        parts = [part for part in re.split(r"[/\\]", name) if part]
        if not parts:
            return None
        stem = _ROBOFLOW.sub("", _ENDING.sub("", parts[-1]))
        above = parts[-2] if len(parts) > 1 and parts[-2] in self.videos else None
        for text in (stem, _LABEL_STUDIO.sub("", stem)):
            frame, time = _FRAME.match(text), _TIME.match(text)
            match = frame or time
            if match is None:
                continue
            video = match["video"] or above or (next(iter(self.videos)) if len(self.videos) == 1 else None)
            if above is not None and match["video"] not in self.videos:
                video = above
            if video is None or (video not in self.videos and text == stem and _LABEL_STUDIO.match(stem)):
                continue
            return video, float(match["number"] if frame else match["seconds"].replace("-", ".")), frame is not None
        return None

    def _read_json(self) -> dict[str, Any] | None:
        try:
            if self.path.stat().st_size > MAX_JSON:
                raise ValueError(f"more than {MAX_JSON} bytes")
            content = json.loads(self.path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError, OSError) as error:
            self.add("json-damaged", f"is damaged or no JSON ({str(error).splitlines()[0][:80]})")
            return None
        if not isinstance(content, dict):
            self.add("json-form", "is no COCO file: wanted an object")
            return None
        return content


def _entries(content: Mapping[str, Any], key: str) -> list[dict[str, Any]] | None:
    part = content.get(key)
    return part if isinstance(part, list) and all(isinstance(entry, dict) for entry in part) else None


def _key(entry: Mapping[str, Any], name: str) -> int | str | None:
    """A number or name by which others are found; anything else finds nothing."""
    value = entry.get(name)
    return value if isinstance(value, (int, str)) else None


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or height is True or width is True:
        return None
    fits = 1 <= min(height, width) and max(height, width) <= MAX_SIDE and height * width <= MAX_PIXELS
    return (height, width) if fits else None
