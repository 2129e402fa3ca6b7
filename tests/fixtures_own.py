"""Folders of own videos with masks, and the faults that they can have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.results.video import write_video


CLASSES = ["background", "cat", "dog"]
WIDTH, HEIGHT, SECONDS, FPS = 64, 48, 7, 4
TIMES = {"a": (0.9375, 1.25, 3.5, 5.0), "b": (0.5,), "c": (2.0, 4.0)}


def label_map(time: float) -> np.ndarray:
    """Two rectangles that move; nothing at 3.5 s."""
    ids, shift = np.zeros((HEIGHT, WIDTH), np.uint8), int(4 * time)
    if time != 3.5:
        ids[8:24, 4 + shift : 20 + shift] = 1
        ids[28:40, 30 - shift // 2 : 44 - shift // 2] = 2
    return ids


def make_folder(folder: Path, videos: Mapping[str, Sequence[float]] = TIMES) -> Path:
    """Videos of seven seconds, each with masks at these times (each picture's grey tells its time, each second's pitch
    its number)."""
    (folder / "videos").mkdir(parents=True)
    (folder / "classes.txt").write_text("background\ncat\ndog\n")
    seconds = np.arange(SECONDS * 16000) / 16000
    for number, (name, times) in enumerate(videos.items()):
        frames = (np.full((HEIGHT, WIDTH, 3), 20 + 30 * k / FPS, np.uint8) for k in range(SECONDS * FPS))
        pitch = 200 + 100 * np.floor(seconds) + number
        wave = (0.3 * np.sin(2 * np.pi * pitch * seconds)).astype(np.float32)
        write_video(folder / "videos" / f"{name}.mp4", frames, FPS, wave, 16000)
        for time in times:
            save(folder, name, time, label_map(time))
    return folder


def save(folder: Path, video: str, time: float, ids: np.ndarray) -> Path:
    path = folder / "masks" / video / f"{time:g}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)
    return path


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


SQUARE = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]


def coco(folder: Path, **changes: Any) -> None:
    """The folder with a COCO file of one image instead of PNGs; `changes` to its image, annotation or category."""
    shutil.rmtree(folder / "masks")
    image = {"id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "a/1.5.jpg"}
    entry = {"id": 7, "image_id": 1, "category_id": 3, "segmentation": [SQUARE]}
    category = {"id": 3, "name": "cat"}
    for part, values in changes.items():
        {"image": image, "entry": entry, "category": category}[part].update(values)
    write_json(folder / "coco.json", {"images": [image], "annotations": [entry], "categories": [category]})


def metadata(folder: Path, line: str) -> None:
    (folder / "metadata.jsonl").write_text(line + "\n")


def line(**changes: Any) -> str:
    return json.dumps({"file_name": "videos/a.mp4", "masks": [{"time": 1, "mask": "masks/a/1.25.png"}]} | changes)


def silent(folder: Path) -> None:
    frames = (np.full((HEIGHT, WIDTH, 3), k, np.uint8) for k in range(SECONDS * FPS))
    write_video(folder / "videos" / "a.mp4", frames, FPS)


def copy_video(folder: Path) -> None:
    shutil.copy(folder / "videos" / "a.mp4", folder / "videos" / "b.mp4")
    (folder / "splits.csv").write_text("video,split\na,train\nb,test\nc,train\n")


def other_classes(folder: Path) -> None:
    """Dogs are in the validation video only."""
    (folder / "splits.csv").write_text("video,split\na,train\nb,val\nc,train\n")
    for name in ("a", "c"):
        for time in TIMES[name]:
            save(folder, name, time, np.minimum(label_map(time), 1))


def edit(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


# Name -> (change, kind, part of the message, serious).
FAULTS: dict[str, tuple[Callable[[Path], object], str, str, bool]] = {
    "no classes": (lambda f: (f / "classes.txt").unlink(), "classes-missing", "masks needs the names", True),
    "classes not text": (
        lambda f: (f / "classes.txt").write_bytes(b"\xff\xfe\x00"),
        "classes-unreadable",
        "UTF-8",
        True,
    ),
    "no background": (edit("classes.txt", "cat\ndog\n"), "classes-first", "begins with 'cat'", True),
    "empty classes": (edit("classes.txt", ""), "classes-first", "is empty", True),
    "only background": (edit("classes.txt", "background\n"), "classes-few", "no class but", True),
    "blank line": (edit("classes.txt", "background\n\ncat\n"), "classes-blank", "line 2 is blank", True),
    "class twice": (edit("classes.txt", "background\ncat\ncat\n"), "classes-twice", "'cat' twice", True),
    "class with a comma": (edit("classes.txt", "background\ncat, big\ndog\n"), "classes-comma", "comma", True),
    "too many classes": (
        edit("classes.txt", "background\n" + "\n".join(f"c{k}" for k in range(300))),
        "classes-many",
        "301 classes",
        True,
    ),
    "a million classes": (
        edit("classes.txt", "background\n" + "\n".join(map(str, range(100_000)))),
        "classes-many",
        "100001 classes",
        True,
    ),
    "classes without end": (edit("classes.txt", "x" * (1 << 21)), "classes-unreadable", "at most 1048576", True),
    "class that commands a terminal": (
        edit("classes.txt", "background\ncat\x1b[2J\ndog\n"),
        "classes-name",
        r"'cat\x1b[2J'",
        True,
    ),
    "category that turns": (
        lambda f: coco(f, category={"name": "c\u202eat"}),
        "category-name",
        r"'c\u202eat'; wanted 200 visible letters",
        True,
    ),
    "image of 200 million pixels": (
        lambda f: coco(f, image={"width": 16384, "height": 12000}),
        "image-size",
        "at most 50000000 of them",
        True,
    ),
    "no picture ending": (lambda f: (f / "videos" / "x.txt").touch(), "video-ending", "x.txt: is not read", False),
    "video with a comma": (lambda f: (f / "videos" / "a,b.mp4").touch(), "video-name", "commas", True),
    "two videos of a name": (
        lambda f: shutil.copy(f / "videos" / "a.mp4", f / "videos" / "a.mov"),
        "video-twice",
        "has the name of videos/a.mov",
        True,
    ),
    "video damaged": (
        lambda f: (f / "videos" / "a.mp4").write_bytes(b"x"),
        "video-unreadable",
        "videos/a.mp4: ",
        True,
    ),
    "no sound": (silent, "video-silent", "silence is taken", False),
    "video without masks": (lambda f: shutil.rmtree(f / "masks" / "b"), "video-unmasked", "left out", False),
    "same video in two splits": (copy_video, "video-copy", "the same file as a (train)", True),
    "no masks": (lambda f: shutil.rmtree(f / "masks"), "masks-missing", "wanted a folder masks", True),
    "empty masks": (
        lambda f: [shutil.rmtree(path) for path in (f / "masks").iterdir()],
        "masks-none",
        "no video has a mask",
        True,
    ),
    "masks of no video": (lambda f: (f / "masks" / "d").mkdir(), "mask-video", "there are a, b, c", True),
    "mask without a time": (
        lambda f: shutil.copy(f / "masks/a/5.png", f / "masks/a/five.png"),
        "mask-name",
        "wanted a name such as",
        True,
    ),
    "mask damaged": (lambda f: (f / "masks/a/5.png").write_bytes(b"x"), "mask-unreadable", "no picture", True),
    "mask in colours": (
        lambda f: save(f, "a", 5, np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
        "mask-unreadable",
        "not colours",
        True,
    ),
    "class without a name": (
        lambda f: save(f, "a", 5, np.full((HEIGHT, WIDTH), 9, np.uint8)),
        "mask-unreadable",
        "classes [9]; classes.txt names 0 to 2",
        True,
    ),
    "mask of another shape": (
        lambda f: save(f, "a", 5, np.ones((HEIGHT, HEIGHT), np.uint8)),
        "mask-shape",
        "its video is 64 x 48",
        True,
    ),
    "mask of another size": (
        lambda f: save(f, "a", 5, np.ones((HEIGHT * 2, WIDTH * 2), np.uint8)),
        "mask-size",
        "is 128 x 96",
        False,
    ),
    "mask after the end": (lambda f: save(f, "a", 9, label_map(0)), "mask-late", "is at 9 s", True),
    "two masks in a second": (lambda f: save(f, "a", 5.5, label_map(0)), "mask-second", "one mask a second", False),
    "everything ignored": (
        lambda f: save(f, "a", 5, np.full((HEIGHT, WIDTH), 255, np.uint8)),
        "mask-ignored",
        "255",
        False,
    ),
    "class in no mask": (
        edit("classes.txt", "background\ncat\ndog\nhen\n"),
        "class-unused",
        "is in no mask",
        False,
    ),
    "class not in train": (other_classes, "class-untrained", "dog: is in no mask of the train split", False),
    "splits without columns": (edit("splits.csv", "a;train\n"), "splits-columns", "wanted video,split", True),
    "split of no video": (
        edit("splits.csv", "video,split\nz,train\n"),
        "splits-video",
        "'z', which is not",
        True,
    ),
    "split named twice": (edit("splits.csv", "video,split\na,train\na,val\n"), "splits-twice", "'a' again", True),
    "unknown split": (edit("splits.csv", "video,split\na,dev\nb,train\nc,val\n"), "split", "the split 'dev'", True),
    "video without a split": (edit("splits.csv", "video,split\na,train\nb,val\n"), "split", "others have one", True),
    "two layouts": (lambda f: write_json(f / "coco.json", {}), "layouts", "beside the folder masks", True),
    "json damaged": (lambda f: [coco(f), (f / "coco.json").write_text("{")], "json-damaged", "no JSON", True),
    "json of another kind": (
        lambda f: [coco(f), write_json(f / "coco.json", {"images": []})],
        "json-form",
        "no COCO file of instances",
        True,
    ),
    "image without a time": (
        lambda f: coco(f, image={"file_name": "a/x.jpg"}),
        "image-name",
        "no video and time",
        True,
    ),
    "image of no video": (lambda f: coco(f, image={"file_name": "z_1.5.jpg"}), "image-video", "video 'z'", True),
    "image without a size": (lambda f: coco(f, image={"width": None}), "image-size", "no width and height", True),
    "annotation of no image": (lambda f: coco(f, entry={"image_id": [9]}), "annotation-image", "no image", True),
    "annotation without category": (lambda f: coco(f, entry={"category_id": 9}), "annotation-category", "(9)", True),
    "category not in classes.txt": (lambda f: coco(f, category={"name": "cow"}), "category-unknown", "'cow'", True),
    "category without a name": (lambda f: coco(f, category={"name": ""}), "category-name", "the name ''", True),
    "a box alone": (lambda f: coco(f, entry={"segmentation": []}), "segmentation", "a box alone", True),
    "half a point": (lambda f: coco(f, entry={"segmentation": [SQUARE[:-1]]}), "segmentation", "three points", True),
    "run lengths of another size": (
        lambda f: coco(f, entry={"segmentation": {"size": [4, 4], "counts": [16]}}),
        "segmentation",
        "its image is [48, 64]",
        True,
    ),
    "run lengths too short": (
        lambda f: coco(f, entry={"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5]}}),
        "segmentation",
        "for 5 pixels",
        True,
    ),
    "packed run lengths damaged": (
        lambda f: coco(f, entry={"segmentation": {"size": [HEIGHT, WIDTH], "counts": "é"}}),
        "segmentation",
        "damaged",
        True,
    ),
    "metadata that is no JSON": (lambda f: metadata(f, "{"), "metadata-line", "metadata.jsonl:1", True),
    "metadata of no video": (
        lambda f: metadata(f, line(file_name="../a.mp4")),
        "metadata-video",
        "'../a.mp4' is no video below",
        True,
    ),
    "metadata with a mask that is missing": (
        lambda f: metadata(f, line(masks=[{"time": 1, "mask": "masks/z.png"}])),
        "mask-missing",
        "'masks/z.png' is not there",
        True,
    ),
    "metadata without times": (
        lambda f: metadata(f, line(masks=["masks/a/5.png"])),
        "metadata-mask",
        'wanted masks as [{"time": seconds',
        True,
    ),
    "metadata with a time twice": (
        lambda f: metadata(f, line(masks=[{"time": 1, "mask": None}, {"time": 1.0, "mask": None}])),
        "mask-twice",
        "a second mask of a",
        True,
    ),
}
