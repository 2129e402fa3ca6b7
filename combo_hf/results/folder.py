"""A video in, files out: overlay video, mask pictures, summary and contact sheet (`combo-hf predict` and `demo`)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from combo_hf.files.atomic import owned_prefix, remove_leftovers
from combo_hf.files.download import DownloadError, download
from combo_hf.media_combo import MediaError, probe_media
from combo_hf.media_combo_source import DOWNLOAD_SECONDS, MAX_DOWNLOAD_BYTES, MediaSource, address_name
from combo_hf.results.pictures import class_colors, contact_sheet, summarize
from combo_hf.results.video import write_overlay_video


if TYPE_CHECKING:
    from combo_hf.pipeline_combo import AudioVisualSegmentationPipeline


STAGE = ".combo"
ATTEMPTS = 20  # to put a folder in the place of another run's
SHEET_COLUMNS = 10
PEAKS_PER_SECOND = 200  # of the sound drawn below a contact sheet: an hour takes 6 MB, not 230


@dataclass
class Prediction:
    """What was found in a video, and the files that say so.

    Attributes:
        summary: what sounds when, as text.
        has_audio: False: the video has no sound track, and silence was used.
        seconds: number of frames divided by fps.
        warnings: damage found in the video.
        files: what was written, by kind: `"overlay"`, `"masks"` (a folder), `"json"`, `"sheet"`.
        result: like the pipeline's result, but its frames hold only `timestamp` and `segments` without masks.
        kept: the frames that were asked for with `keep`, as the pipeline returns them with `return_maps=True`.
        peaks: lowest and highest sample of every stretch of the sound, alternating; drawn, it looks like the waveform.
            Only where frames were kept.
    """

    summary: str
    has_audio: bool
    seconds: float
    warnings: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    kept: list[dict[str, Any]] = field(default_factory=list)
    peaks: np.ndarray | None = None


def predict_to_folder(
    pipe: AudioVisualSegmentationPipeline,
    source: MediaSource,
    folder: str | Path,
    name: str | None = None,
    *,
    fps: int = 1,
    batch_size: int = 1,
    masks: bool = False,
    summary: bool = False,
    sheet: bool = False,
    keep: int = 0,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    video_track: int | None = None,
    audio_track: int | None = None,
    max_seconds: float | None = None,
) -> Prediction:
    """Segment a video and write what was found; memory does not grow with the length of the video.

    All files are written beside their place and moved into it at the end: after a failure or an interruption the
    folder is as it was before. After a kill, too, but for a hidden folder, which the next call removes.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`].
        source: path or http(s) URL.
        folder: made where it does not exist.
        name: what the files begin with; default the name of the source.
        fps: frames per second to segment.
        batch_size: windows per batch.
        masks: also one index PNG (class numbers, coloured by a palette) per frame.
        summary: also a JSON file: per frame the labels, scores and areas.
        sheet: also a contact sheet, of at most 10 frames evenly spread.
        keep: return so many frames, evenly spread, with all their maps.
        classes: only these labels.
        progress: called with (windows done, windows in all or None).
        video_track, audio_track, max_seconds: as for [`iter_clips`].

    Raises:
        MediaError: the video cannot be read, has no pictures, or is too long.
        OSError: the folder cannot be written.
        ValueError: `name` holds a folder.
    """
    name = name or source_name(source)
    if name != Path(name).name or name == ".." or "\\" in name or "\0" in name:
        raise ValueError(f"name: wanted the name of a file without folders, got {name!r}.")
    with _local(source) as video, _staged(Path(folder)) as (stage, targets):
        columns = _columns(video, fps, max(keep, SHEET_COLUMNS if sheet else 0)) if sheet or keep else []
        collector = _Collector(pipe.model.config.num_labels or 1, stage / "masks" if masks else None, columns)
        windows = pipe.stream(
            video, batch_size, fps=fps, return_maps=bool(columns), progress=progress, classes=classes)  # fmt: skip
        maps = collector.label_maps(windows)
        # The network runs in here: the writer pulls the map of a second when the video gets there, the map comes out
        # of the collector, and that pulls a window of pictures through the pipeline. So nothing piles up.
        write_overlay_video(video, stage / "overlay.mp4", maps, collector.colors, fps=fps)
        for _ in maps:  # a last picture may be shown for seconds: the overlay needs no maps for these, the others do
            pass
        targets["overlay"] = (stage / "overlay.mp4", f"{name}_overlay.mp4")
        if masks:
            targets["masks"] = (stage / "masks", f"{name}_masks")
        if summary:
            (stage / "summary.json").write_text(json.dumps(collector.report(source), indent=1), encoding="utf-8")
            targets["json"] = (stage / "summary.json", f"{name}.json")
        if sheet:
            collector.sheet().save(stage / "sheet.png")
            targets["sheet"] = (stage / "sheet.png", f"{name}_sheet.png")
    files = {kind: Path(folder) / target for kind, (_, target) in targets.items()}
    facts = collector.result
    return Prediction(
        summarize(facts), facts["has_audio"], len(collector.facts) / fps, facts["warnings"], files, facts,
        collector.kept, np.concatenate(collector.peaks) if collector.peaks else None,
    )  # fmt: skip


def source_name(source: MediaSource) -> str:
    """What the files of a source are called: its own name without folder, query and ending."""
    stem = Path(display_name(source)).stem
    stem = stem.replace("\\", "_")  # from a zip made on Windows; in a name it could be a folder
    return "video" if stem in ("", ".", "..") or (stem == "URL" and "://" in str(source)) else stem


def display_name(source: MediaSource) -> str:
    """The name of a source without its folder; of an address without its query, which may hold a key."""
    text = str(source) if isinstance(source, (str, os.PathLike)) else "video"  # bytes have no name
    return address_name(text) if "://" in text else Path(text).name


class _Collector:
    """Takes label maps out of the stream of windows, and on their way notes what the other files need."""

    def __init__(self, num_labels: int, masks: Path | None, columns: Sequence[int]) -> None:
        self.colors = class_colors(num_labels)
        self.masks = masks
        self.columns = frozenset(columns)
        self.kept: list[dict[str, Any]] = []
        self.facts: list[dict[str, Any]] = []
        self.peaks: list[np.ndarray] = []
        self.result: dict[str, Any] = {"frames": self.facts, "has_audio": False, "fps": 1}

    def label_maps(self, windows: Iterator[dict[str, Any]]) -> Iterator[tuple[float, np.ndarray]]:
        """(timestamp, label map (H, W)) of every frame."""
        if self.masks is not None:
            self.masks.mkdir()
        for window in windows:
            self.result["has_audio"] |= window["has_audio"]
            self.result.update({key: window[key] for key in ("labels", "size", "fps", "warnings")})
            if self.columns:
                self.peaks.append(_peaks(window["waveform"], window["sampling_rate"]))
            for frame in window["frames"]:
                self._note(frame)
                yield frame["timestamp"], frame["label_map"]

    def _note(self, frame: dict[str, Any]) -> None:
        number = len(self.facts)
        ids = {label: index for index, label in self.result["labels"].items()}
        areas = np.bincount(frame["label_map"].ravel(), minlength=len(ids))
        segments = [
            {"label": segment["label"], "score": round(segment["score"], 4), "area": int(areas[ids[segment["label"]]])}
            for segment in frame["segments"]
        ]
        self.facts.append({"timestamp": frame["timestamp"], "segments": segments})
        if number in self.columns:
            self.kept.append({key: value for key, value in frame.items() if key != "scores"})
        if self.masks is not None:
            picture = Image.fromarray(frame["label_map"].astype(np.uint8))
            picture.putpalette(self.colors.tobytes())
            picture.save(self.masks / f"{number:06d}.png")

    def report(self, source: MediaSource) -> dict[str, Any]:
        """The JSON file: labels with id, size, and per frame labels, scores and areas in pixels."""
        facts = {key: self.result[key] for key in ("size", "fps", "has_audio", "labels", "warnings")}
        return {"source": display_name(source), **facts, "summary": summarize(self.result), "frames": self.facts}

    def sheet(self) -> Image.Image:
        """Contact sheet of the frames that were kept, over the sound of the whole video."""
        if not self.kept:  # a broken video can have fewer frames than it says
            raise MediaError("no frame for the contact sheet")
        kept = {**self.result, "frames": self.kept}
        return contact_sheet(kept, np.concatenate(self.peaks), summary=summarize(self.result))


def _columns(source: MediaSource, fps: int, most: int) -> list[int]:
    count = max(1, probe_media(source).seconds * fps)
    return sorted({0, *np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()})


def _peaks(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Lowest and highest sample of every stretch, alternating: drawn, it looks like the waveform."""
    step = max(1, rate // PEAKS_PER_SECOND)
    padded = np.pad(waveform, (0, -len(waveform) % step)).reshape(-1, step)
    return np.stack([padded.min(1), padded.max(1)], axis=1).ravel()


@contextmanager
def _local(source: MediaSource) -> Iterator[MediaSource]:
    """A URL as a file, so that it is downloaded once, however often it is read; anything else as it is."""
    if not (isinstance(source, str) and "://" in source):
        yield source
        return
    name = address_name(source)
    with tempfile.TemporaryDirectory(prefix="combo-") as folder:
        path = Path(folder) / name  # errors shall have the name of the address
        try:
            download(source, path, name, MAX_DOWNLOAD_BYTES, DOWNLOAD_SECONDS)
        except DownloadError as error:
            raise MediaError(str(error)) from None
        yield path


def _take_place(new: Path, target: Path, stage: Path) -> None:
    """Give a file or folder its name; a folder of that name goes as a whole, so that a kill does not leave half of it.

    Another run may put its own there at the same moment: the last one stays.
    """
    for attempt in range(ATTEMPTS):
        aside = stage / f"old-{attempt}-{target.name}"
        with suppress(FileNotFoundError):  # the other run has just moved it
            if target.is_dir():
                os.replace(target, aside)
        try:
            os.replace(new, target)
            return
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and attempt < ATTEMPTS - 1:
                continue
            if aside.is_dir():  # Windows: something in there is open
                os.replace(aside, target)
            raise


@contextmanager
def _staged(folder: Path) -> Iterator[tuple[Path, dict[str, tuple[Path, str]]]]:
    """A folder to write into; what is entered as `kind: (file, name)` moves to `folder/name` if nothing fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, STAGE)  # of a process that was killed
    stage = Path(tempfile.mkdtemp(prefix=owned_prefix(STAGE), dir=folder))
    targets: dict[str, tuple[Path, str]] = {}
    try:
        yield stage, targets
        for file, name in targets.values():
            _take_place(file, folder / name, stage)
        made = []
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # somebody else may have put something there
                path.rmdir()
