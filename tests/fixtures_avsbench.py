"""AVSBench trees that are broken in one way each, and what `check_dataset` shall say about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from combo_hf.data.avsbench import AVSS_CLASSES, ClipEntry, read_entries, subset_rule


class Tree:
    """A tree of one subset to be broken; `clip` is its first training clip."""

    def __init__(self, home: Path, subset: str) -> None:
        self.home, self.subset, self.rule = home, subset, subset_rule(subset)
        self.meta = home / self.rule.meta
        self.clip = read_entries(home, subset)[0]

    def file(self, kind: str, frame: int = 0, clip: ClipEntry | None = None) -> Path:
        template = self.rule.maskiges[0] if kind == "maskige" else getattr(self.rule, kind)
        return (clip or self.clip).path(self.home, self.rule, template, frame)

    def edit(self, old: str, new: str, count: int = 1) -> None:
        text = self.meta.read_text(encoding="utf-8")
        assert old in text
        self.meta.write_text(text.replace(old, new, count), encoding="utf-8")

    def line(self) -> str:
        lines = self.meta.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if self.clip.name in line)

    def array(self, kind: str, frame: int = 0) -> np.ndarray:
        with Image.open(self.file(kind, frame)) as image:
            return np.asarray(image).copy()

    def save(self, kind: str, array: np.ndarray, frame: int = 0, mode: str | None = None) -> None:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(self.file(kind, frame))

    def sound(self, waveform: np.ndarray, rate: int = 16000, **options: str) -> None:
        soundfile.write(self.file("wav"), waveform, rate, **options)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def palette_mask(tree: Tree) -> None:
    indices = (tree.array("mask") > 0).astype(np.uint8)
    colored = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    colored.putpalette([0, 0, 0, 128, 0, 0])
    colored.save(tree.file("mask"))


def shift_classes(tree: Tree) -> None:
    for k in range(tree.clip.num_frames):
        if tree.clip.label_frames[k]:
            tree.save("mask", tree.array("mask", k) + 1, k)


def swap_channels(tree: Tree, kind: str) -> None:
    tree.save(kind, np.ascontiguousarray(tree.array(kind)[..., ::-1]))


def relabel(tree: Tree, change: Callable[[dict[str, int]], object]) -> None:
    path = tree.home / "label2idx.json"
    indices = json.loads(path.read_text())
    change(indices)
    path.write_text(json.dumps(indices))


def swap_names(indices: dict[str, int]) -> None:
    indices["dog"], indices["cat"] = indices["cat"], indices["dog"]


def copy_clip(tree: Tree) -> None:
    other = next(entry for entry in read_entries(tree.home, tree.subset) if entry.split == "test")
    shutil.copy(tree.file("frame"), tree.file("frame", clip=other))
    shutil.copy(tree.file("wav"), tree.file("wav", clip=other))


WRITE = Path.write_bytes
SECOND = np.sin(np.arange(16000) / 20).astype(np.float32) / 4
ROOM = 5 * 16000

# (subset, what is done to the tree, code, part of the message, whether reading the rows stops at it)
CASES: dict[str, tuple[str, Callable[[Tree], object], str, str, bool]] = {
    "no csv": ("s4", lambda t: t.meta.unlink(), "csv-missing", "s4_meta_data.csv is missing", True),
    "empty csv": ("ms3", lambda t: t.meta.write_text(""), "csv-unreadable", "is empty", True),
    "utf-16 csv": (
        "ms3",
        lambda t: WRITE(t.meta, t.meta.read_text().encode("utf-16")),
        "csv-unreadable",
        "UTF-8",
        True,
    ),
    "semicolons": ("ms3", lambda t: t.edit(",", ";", 99), "csv-columns", "wanted commas", True),
    "no split column": ("s4", lambda t: t.edit("split", "part"), "csv-columns", "['split'] missing", True),
    "short line": ("ms3", lambda t: t.edit(f"{t.clip.name},train", f"{t.clip.name}"), "csv-row", "['split']", True),
    "name that climbs": ("ms3", lambda t: t.edit(t.clip.name, "../../x"), "csv-name", "'../../x' cannot be", True),
    "absolute name": ("s4", lambda t: t.edit(t.clip.name, "/etc/x"), "csv-name", "'/etc/x' cannot be", True),
    "backslash": ("avss", lambda t: t.edit(f",{t.clip.name}", ",a\\b"), "csv-name", "cannot be", True),
    "category that climbs": (
        "s4",
        lambda t: t.edit(f",{t.clip.category},train", ",..,train"),
        "csv-name",
        "'..'",
        True,
    ),
    "empty name": ("ms3", lambda t: t.edit(t.clip.name, ""), "csv-name", "'' cannot be", True),
    "listed twice": (
        "ms3",
        lambda t: t.edit(t.line(), f"{t.line()}\n{t.line()}"),
        "csv-duplicate",
        "listed twice",
        True,
    ),
    "unknown split": (
        "ms3",
        lambda t: t.edit(f"{t.clip.name},train", f"{t.clip.name},dev"),
        "csv-split",
        "'dev'",
        True,
    ),
    "unknown label": ("avss", lambda t: t.edit(f",{t.clip.label}", ",v9"), "csv-label", "'v9'", True),
    "no class": ("avss", lambda t: t.edit(t.clip.category, "hors"), "object-name", "'horse' is meant?", False),
    "class with a slip": ("avss", lambda t: t.edit(t.clip.category, "h orse"), "object-spelling", "'horse'", False),
    "no frames": ("s4", lambda t: shutil.rmtree(t.file("frame").parent), "clip-missing", "folder of its frames", True),
    "one frame lost": ("ms3", lambda t: t.file("frame", 2).unlink(), "frame-missing", "5 are wanted", True),
    "sixth frame": (
        "s4",
        lambda t: shutil.copy(t.file("frame"), t.file("frame", 5)),
        "frame-extra",
        "5 frames",
        False,
    ),
    "frame cut": ("s4", lambda t: cut(t.file("frame", 4)), "frame-damaged", "damaged", True),
    "frame of 0 bytes": ("avss", lambda t: t.file("frame", 1).write_bytes(b""), "frame-damaged", "is empty", True),
    "frame is text": ("ms3", lambda t: t.file("frame").write_text("hello"), "frame-damaged", "no picture", True),
    "frame as jpeg": (
        "ms3",
        lambda t: Image.fromarray(t.array("frame")).save(t.file("frame"), format="JPEG"),
        "frame-format",
        "is a JPEG file with the ending .png",
        False,
    ),
    "frame in grey": ("ms3", lambda t: t.save("frame", t.array("frame"), mode="L"), "frame-mode", "mode L", False),
    "mask lost": ("s4", lambda t: t.file("mask").unlink(), "mask-missing", "mask is missing", True),
    "masks lost": ("ms3", lambda t: shutil.rmtree(t.file("mask").parent), "mask-missing", "folder of its masks", True),
    "mask too many": (
        "s4",
        lambda t: shutil.copy(t.file("mask"), t.file("mask", 1)),
        "mask-extra",
        "do not have",
        False,
    ),
    "mask cut": ("ms3", lambda t: cut(t.file("mask")), "mask-damaged", "damaged", True),
    "mask of another size": ("ms3", lambda t: t.save("mask", t.array("mask")[::2]), "mask-size", "is 224 x 112", True),
    "mask of 0 and 1": ("ms3", lambda t: t.save("mask", np.eye(224, dtype=np.uint8)), "mask-values", "0 and 1", False),
    "mask with soft edges": (
        "ms3",
        lambda t: t.save("mask", np.tile(np.arange(224, dtype=np.uint8), (224, 1))),
        "mask-values",
        "one half",
        False,
    ),
    "mask in colours": (
        "ms3",
        lambda t: t.save("mask", np.full((224, 224, 3), (255, 0, 0), np.uint8)),
        "mask-values",
        "not colours",
        True,
    ),
    "mask grey but RGB": ("ms3", lambda t: t.save("mask", t.array("mask"), mode="RGB"), "mask-mode", "RGB", False),
    "mask with a palette": ("s4", palette_mask, "mask-palette", "indices are taken", False),
    "empty mask": ("s4", lambda t: t.save("mask", t.array("mask") * 0), "mask-empty", "always sounds", False),
    "class 200": ("avss", lambda t: t.save("mask", t.array("mask") | 200), "mask-values", "there are 0 to 70", True),
    "classes from 1": ("avss", shift_classes, "label-shift", "count from 1", False),
    "ignored pixels": (
        "avss",
        lambda t: t.save("mask", np.where(np.arange(224) < 5, 255, t.array("mask")).astype(np.uint8)),
        "mask-ignored",
        "holds 255",
        False,
    ),
    "label colours swapped": ("avss", lambda t: swap_channels(t, "label_rgb"), "label-rgb-order", "swapped", False),
    "label colours lost": ("avss", lambda t: t.file("label_rgb").unlink(), "label-rgb", "missing", False),
    "label colours of others": (
        "avss",
        lambda t: t.save("label_rgb", t.array("label_rgb") * 0 + 9),
        "label-rgb",
        "other classes",
        False,
    ),
    "classes in another order": (
        "avss",
        lambda t: relabel(t, swap_names),
        "label-order",
        "'cat' has number 18",
        False,
    ),
    "classes from 0": (
        "avss",
        lambda t: relabel(t, lambda d: d.update({n: k for k, n in enumerate(AVSS_CLASSES)})),
        "label-start",
        "counts from 0",
        False,
    ),
    "a class lost": ("avss", lambda t: relabel(t, lambda d: d.pop("dog")), "label-order", "missing ['dog']", False),
    "no label2idx": ("avss", lambda t: (t.home / "label2idx.json").unlink(), "label-file", "is missing", False),
    "no sound": ("s4", lambda t: t.file("wav").unlink(), "audio-missing", "no raw video", True),
    "sound of 0 bytes": ("ms3", lambda t: t.file("wav").write_bytes(b""), "audio-damaged", "is empty", True),
    "sound is text": ("ms3", lambda t: t.file("wav").write_text("hello"), "audio-damaged", "no sound file", True),
    "sound without samples": ("ms3", lambda t: t.sound(SECOND[:0]), "audio-damaged", "no samples", True),
    "short sound": ("ms3", lambda t: t.sound(np.tile(SECOND, 4)), "audio-short", "4.00 s for 5 frames", False),
    "stereo": ("ms3", lambda t: t.sound(np.tile(SECOND, (2, 5)).T), "audio-format", "2 channels", False),
    "44.1 kHz": ("s4", lambda t: t.sound(np.tile(SECOND, 15), 44100), "audio-format", "44100 Hz", False),
    "silence": ("ms3", lambda t: t.sound(np.zeros(ROOM)), "audio-silent", "silence only", False),
    "not a number": (
        "ms3",
        lambda t: t.sound(np.full(ROOM, np.nan, np.float32), subtype="FLOAT"),
        "audio-nan",
        "80000 samples",
        True,
    ),
    "one Maskige lost": ("s4", lambda t: t.file("maskige", 3).unlink(), "maskige-missing", "other frames", True),
    "Maskiges of a clip lost": (
        "s4",
        lambda t: shutil.rmtree(t.file("maskige").parent),
        "maskiges-partly",
        "1 of 3 clips",
        False,
    ),
    "Maskige damaged": ("s4", lambda t: cut(t.file("maskige")), "maskige-damaged", "damaged", True),
    "Maskige of another size": (
        "s4",
        lambda t: t.save("maskige", t.array("maskige")[::2]),
        "maskige-size",
        "112",
        True,
    ),
    "Maskige with red and blue swapped": (
        "s4",
        lambda t: swap_channels(t, "maskige"),
        "maskige-order",
        "swapped",
        False,
    ),
    "Maskige blended": ("s4", lambda t: t.save("maskige", t.array("maskige") + 3), "maskige-palette", "ADE20K", False),
    "folder without a line": (
        "ms3",
        lambda t: shutil.copytree(t.file("frame").parent, t.file("frame").parents[1] / "other"),
        "clip-extra",
        "does not list",
        False,
    ),
    "same clip in train and test": ("s4", copy_clip, "clip-copy", "the same first picture and sound", False),
}
# Not faults of their own, but the consequence of the one above.
CONSEQUENCES = {
    "csv-name": {"clip-extra"},
    "csv-split": {"clip-extra"},
    "csv-label": {"clip-extra"},
    "csv-row": {"clip-extra"},
    "mask-values": {"label-rgb"},
}
