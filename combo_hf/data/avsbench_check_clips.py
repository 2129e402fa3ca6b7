"""What may be wrong with the files of one AVSBench clip."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from combo_hf.data.avsbench_layout import ClipEntry, label_colors
from combo_hf.data.avsbench_rows import grey_mask
from combo_hf.data.findings import Finding
from combo_hf.data.row_format import SAMPLING_RATE
from combo_hf.data.sound import read_sound
from combo_hf.data.subsets import AVSS_CLASSES, SubsetRule, subset_rule
from combo_hf.files.pictures import open_image, read_bytes
from combo_hf.maskige_combo import PALETTE


EXAMPLE_SECONDS = 0.96  # of one log-mel example; the last of T must start at (T - 1) * 0.96 s and be whole
EXAMPLE_TAIL = 0.015  # the last window of an example reaches beyond it
SILENCE = 1e-5  # amplitude
MAX_PALETTE_SHARE = 0.02  # of Maskige pixels, for colours that no palette explains


@dataclass(frozen=True)
class ClipTask:
    """A clip to look at; `decode` off looks at names and sizes only."""

    entry: ClipEntry
    home: Path
    processed: bool
    decode: bool


@dataclass
class ClipReport:
    """Findings of a clip, and digests to find copies of it."""

    entry: ClipEntry
    findings: list[Finding] = field(default_factory=list)
    digest: str = ""
    has_maskiges: bool = False


def check_clip(task: ClipTask) -> ClipReport:
    """Look at all files of a clip."""
    return _ClipCheck(task).run()


class _ClipCheck:
    def __init__(self, task: ClipTask) -> None:
        self.task, self.entry, self.home = task, task.entry, task.home
        self.rule: SubsetRule = subset_rule(task.entry.subset, task.processed)
        self.report = ClipReport(task.entry)
        self.sizes: list[tuple[int, int] | None] = []
        self.ids: dict[int, np.ndarray] = {}

    def run(self) -> ClipReport:
        paths = self.entry.paths(self.home, self.rule, self.rule.frame)
        folder = paths[0].parent
        if not folder.is_dir():
            twin = _other_form(folder)
            self.add("clip-missing", folder, "the folder of its frames is missing" + twin)
            self.report.has_maskiges = self.entry.maskige_place(self.home, self.rule) is not None
            return self.report
        self._frames(paths)
        self._masks()
        self._label_colors()
        self._audio()
        self._maskiges()
        return self.report

    def path(self, template: str, frame: int = 0) -> Path:
        return self.entry.path(self.home, self.rule, template, frame)

    def add(self, code: str, path: Path | None, message: str, serious: bool = True) -> None:
        where = self.entry.name if path is None else path.relative_to(self.home).as_posix()
        self.report.findings.append(
            Finding(serious, code, self.entry.subset, self.entry.split, where, message.rstrip(".") + ".")
        )

    def _extra(self, code: str, folder: Path, wanted: list[Path], text: str) -> None:
        names = {path.name for path in wanted}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name not in names and not path.name.startswith("."):
                self.add(code, path, text, serious=False)

    def _frames(self, paths: list[Path]) -> None:
        for path in paths:
            self.sizes.append(self._frame(path))
        self._extra("frame-extra", paths[0].parent, paths, f"not one of the {len(paths)} frames of the clip")
        known = {size for size in self.sizes if size}
        if self.rule.size and known - {self.rule.size}:
            width, height = self.rule.size
            self.add(
                "frame-size", paths[0].parent, f"frames are {_sizes(known)}, official ones {width} x {height}", False
            )
        elif len(known) > 1:
            self.add("frame-sizes", paths[0].parent, f"frames of one clip differ in size: {_sizes(known)}")

    def _frame(self, path: Path) -> tuple[int, int] | None:
        if not path.is_file():
            self.add(
                "frame-missing", path, f"frame is missing, {self.entry.num_frames} are wanted" + _other_form(path)
            )
            return None
        try:
            data = read_bytes(path)
            image = open_image(data, path.name, decode=self.task.decode)
        except ValueError as error:
            self.add("frame-damaged", path, str(error))
            return None
        wanted = "JPEG" if path.suffix == ".jpg" else "PNG"
        if image.format != wanted:
            self.add("frame-format", path, f"is a {image.format} file with the ending {path.suffix}", serious=False)
        if image.mode not in ("RGB", "P"):
            self.add("frame-mode", path, f"has mode {image.mode}; wanted RGB", serious=False)
        if not self.report.digest:
            self.report.digest = hashlib.sha256(data).hexdigest()
        return image.size

    def _masks(self) -> None:
        paths = self.entry.paths(self.home, self.rule, self.rule.mask)
        wanted = [path for path, known in zip(paths, self.entry.label_frames, strict=True) if known]
        if not paths[0].parent.is_dir():
            self.add(
                "mask-missing", paths[0].parent, "the folder of its masks is missing" + _other_form(paths[0].parent)
            )
            return
        for k, path in enumerate(paths):
            if path in wanted:
                self._mask(k, path)
        self._extra("mask-extra", paths[0].parent, wanted, "a mask that the official data do not have")

    def _mask(self, k: int, path: Path) -> None:
        if not path.is_file():
            self.add("mask-missing", path, "mask is missing" + _other_form(path))
            return
        if not self.task.decode:
            return
        try:
            data = read_bytes(path)
            image = open_image(data, path.name)
            copied, ids, size = grey_mask(data, self.rule, path.name)
        except ValueError as error:
            text = str(error)
            code = "mask-damaged" if "damaged" in text or "empty" in text else "mask-values"
            self.add(code, path, text)
            return
        frame = self.sizes[k]
        if frame and size != frame:
            self.add("mask-size", path, f"is {size[0]} x {size[1]}, its frame {frame[0]} x {frame[1]}")
        if copied != data:
            self.add("mask-palette", path, f"mode {image.mode} in colours; its indices are taken as labels", False)
        elif image.mode not in ("1", "L", "P"):
            self.add("mask-mode", path, f"grey, but saved as {image.mode}", serious=False)
        if copied == data:
            self._mask_values(path, np.asarray(image.convert("L")), ids)
        self.ids[k] = ids

    def _mask_values(self, path: Path, levels: np.ndarray, ids: np.ndarray) -> None:
        values = np.unique(levels)
        if self.rule.semantic:
            if (ids == 255).any():
                self.add("mask-ignored", path, "holds 255 (ignored); the official masks do not", serious=False)
            return
        between = values[(values > 1) & (values < 255)]
        if values.max() == 1:
            self.add("mask-values", path, "holds 0 and 1 in place of 0 and 255 (read as it is meant)", serious=False)
        elif between.size:
            shown = between[:4].tolist()
            self.add(
                "mask-values", path, f"holds grey levels such as {shown}; they are cut at one half", serious=False
            )
        if self.entry.subset == "s4" and not ids.any():
            self.add("mask-empty", path, "nothing is marked; the one source of S4 always sounds", serious=False)

    def _label_colors(self) -> None:
        """AVSS: the colour pictures must show the same classes, in red-green-blue order."""
        if self.rule.label_rgb is None or not self.ids:
            return
        k, ids = next(iter(self.ids.items()))
        path = self.path(self.rule.label_rgb, k)
        if not path.is_file():
            self.add("label-rgb", path, "colour picture of the labels is missing", serious=False)
            return
        try:
            colors = np.asarray(open_image(read_bytes(path), path.name).convert("RGB"))
        except ValueError as error:
            self.add("label-rgb", path, str(error), serious=False)
            return
        if colors.shape[:2] != ids.shape:
            self.add("label-rgb", path, "differs in size from the index picture", serious=False)
            return
        known = ids < len(AVSS_CLASSES)
        expected = label_colors()[np.where(known, ids, 0)]
        if (colors == expected)[known].all():
            return
        if (colors[..., ::-1] == expected)[known].all():
            self.add("label-rgb-order", path, "red and blue are swapped", serious=False)
            return
        one_less = label_colors()[np.where(known, np.maximum(ids.astype(int) - 1, 0), 0)]
        if (colors == one_less)[known].all() and ids.any():
            text = "the indices count from 1, as label2idx.json does; masks must count from 0 = background"
            self.add("label-shift", self.path(self.rule.mask, k), text)
            return
        self.add("label-rgb", path, "shows other classes than the index picture", serious=False)

    def _audio(self) -> None:
        path = self.path(self.rule.wav)
        if not path.is_file():
            if (video := self.entry.video(self.home, self.rule)) is not None:
                name = video.relative_to(self.home).as_posix()
                self.add("audio-video", path, f"is missing; the sound of {name} is taken", serious=False)
            else:
                self.add("audio-missing", path, "is missing, and there is no raw video" + _other_form(path))
            return
        if not self.task.decode:
            return
        try:
            data = read_bytes(path)
            samples, rate, bad = read_sound(data, path.name)
        except ValueError as error:
            self.add("audio-damaged", path, str(error))
            return
        self.report.digest += hashlib.sha256(data).hexdigest()
        if bad:
            self.add("audio-nan", path, f"has {bad} samples that are NaN or infinite")
        if rate != SAMPLING_RATE or samples.shape[1] != 1:
            text = f"{rate} Hz, {samples.shape[1]} channels; it is resampled to 16000 Hz mono"
            self.add("audio-format", path, text, serious=False)
        seconds, wanted = len(samples) / rate, self.entry.num_frames
        if seconds < wanted * EXAMPLE_SECONDS + EXAMPLE_TAIL:
            text = f"{seconds:.2f} s for {wanted} frames; the missing log-mel examples are made from silence"
            self.add("audio-short", path, text, serious=False)
        if not bad and np.abs(samples).max() < SILENCE:
            self.add("audio-silent", path, "holds silence only", serious=False)

    def _maskiges(self) -> None:
        place = self.entry.maskige_place(self.home, self.rule)
        if place is None:
            return
        self.report.has_maskiges = True
        swapped = odd = None
        for k, path in enumerate(self.entry.paths(self.home, self.rule, place)):
            if not path.is_file():
                self.add("maskige-missing", path, "Maskige is missing, other frames of the clip have one")
                continue
            try:
                image = open_image(read_bytes(path), path.name, decode=self.task.decode)
            except ValueError as error:
                self.add("maskige-damaged", path, str(error))
                continue
            if (frame := self.sizes[k]) and image.size != frame:
                self.add("maskige-size", path, f"is {_sizes([image.size])}, its frame {_sizes([frame])}")
            if self.task.decode:
                order = palette_order(np.asarray(image.convert("RGB")))
                swapped = swapped or (path if order == "swapped" else None)
                odd = odd or (path if order == "other" else None)
        if swapped:
            self.add("maskige-order", swapped, "red and blue of the palette are swapped; generate it anew")
        if odd:
            self.add("maskige-palette", odd, "has colours outside the 150 of ADE20K (blended by resizing?)", False)


def palette_order(picture: np.ndarray) -> str:
    """Whether the colours of a Maskige, uint8 (H, W, 3), are those of the palette: "right", "swapped" or "other"."""
    codes = _codes(picture)
    right, swapped = (np.isin(codes, _codes(palette)).mean() for palette in (PALETTE[:150], PALETTE[:150, ::-1]))
    if right >= 1 - MAX_PALETTE_SHARE:
        return "right"
    return "swapped" if swapped >= 1 - MAX_PALETTE_SHARE else "other"


def _codes(colors: np.ndarray) -> np.ndarray:
    values = colors.reshape(-1, 3).astype(np.int64)
    return values[:, 0] << 16 | values[:, 1] << 8 | values[:, 2]


def _sizes(sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{width} x {height}" for width, height in sorted(sizes))


def _other_form(path: Path) -> str:
    """A hint where the name is there in another Unicode form, as disks of Macs write it, or in other case."""
    if path.parent.is_dir():
        wanted = unicodedata.normalize("NFC", path.name)
        for other in path.parent.iterdir():
            name = unicodedata.normalize("NFC", other.name)
            if name == wanted:
                return " (it is there with its accents written in another Unicode form)"
            if name.casefold() == wanted.casefold():
                return f" (there is {other.name})"
    return ""
