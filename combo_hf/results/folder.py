"""A video in, files out: overlay video, mask pictures, summary and contact sheet (`combo-hf predict` and `demo`)."""

from __future__ import annotations

import errno
import json
import math
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from combo_hf.files.ahead import running_ahead
from combo_hf.files.atomic import owned_prefix, remove_leftovers
from combo_hf.files.download import DownloadError, download
from combo_hf.media_combo import MediaError, probe_media
from combo_hf.media_combo_shown import check_fps
from combo_hf.media_combo_source import DOWNLOAD_SECONDS, MAX_DOWNLOAD_BYTES, MediaSource, address_name
from combo_hf.pipeline_combo_inputs import sound_peaks
from combo_hf.results.mattes import MaskPictures, Matte, write_mask
from combo_hf.results.painting import MapSink
from combo_hf.results.pictures import class_colors, contact_sheet, summarize, timeline
from combo_hf.results.records import TIMELINES, Stretch, result_record, segment_record, write_timeline
from combo_hf.results.video import write_overlay_video


if TYPE_CHECKING:
    from combo_hf.pipeline_combo import AudioVisualSegmentationPipeline


STAGE = ".combo"
ATTEMPTS = 20  # to put a folder in the place of another run's
SHEET_COLUMNS = 10
BYTES_AHEAD = 1 << 25  # of label maps that wait for the writer, a window at most: 36 of 720p
MASK_RATES = ("network", "video")
MATTES = {"mov": "matte", "webm": "webm"}  # form of a matte -> kind of result
# Kind of result -> what follows the name of the video.
ENDINGS = {"overlay": "_overlay.mp4", "masks": "_masks", "json": ".json", "sheet": "_sheet.png"}
ENDINGS |= {"matte": "_matte.mov", "webm": "_matte.webm", "mattes": "_mattes"}
ENDINGS |= {"srt": "_timeline.srt", "vtt": "_timeline.vtt", "csv": "_timeline.csv", "audacity": "_timeline.txt"}


@dataclass
class Prediction:
    """What was found in a video, and the files that say so.

    Attributes:
        summary: what sounds when, as text.
        has_audio: False: the video has no sound track, and silence was used.
        seconds: number of frames divided by fps.
        warnings: damage found in the video, and what was changed or chosen on the way.
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


# Longer than other functions: every option has a line in the signature and one where it is passed on.
def predict_to_folder(
    pipe: AudioVisualSegmentationPipeline,
    source: MediaSource,
    folder: str | Path,
    name: str | None = None,
    *,
    fps: float | str = "auto",
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
    timelines: Sequence[str] = (),
    threshold: float = 0.0,
    min_area: int = 0,
    labels: bool = True,
    follow: bool = True,
    matte: str | None = None,
    matte_each: bool = False,
    mask_rate: str = "network",
) -> Prediction:
    """Segment a video and write what was found; memory does not grow with the length of the video.

    All files are written beside their place and moved into it at the end: after a failure or an interruption the
    folder is as it was before. After a kill, too, but for a hidden folder, which the next call removes.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`].
        source: path or http(s) URL.
        folder: made where it does not exist.
        name: what the files begin with; default the name of the source.
        fps: frames per second to segment; below 1 the nearest 1/n. `"auto"`: one, and up to four where something moves
            (as in [`iter_clips`]), for the masks that follow; all other files know the one only.
        batch_size: windows per batch.
        masks: also one index PNG (class numbers, coloured by a palette) per frame.
        mask_rate: `network`: of the frames that were segmented; `video`: of every picture of the video.
        matte: also a video with an alpha channel, every picture of the source and transparent where nothing sounds:
            `mov` (ProRes 4444) or `webm` (VP9).
        matte_each: a file for each class that is found, in a folder, in place of one for all.
        summary: also a JSON file: per frame the labels, scores and areas.
        sheet: also a contact sheet, of at most 10 frames evenly spread.
        keep: return so many frames, evenly spread, with all their maps.
        classes: only these labels.
        progress: called with (windows done, windows in all or None).
        video_track, audio_track, max_seconds: as for [`iter_clips`].
        timelines: also what sounds when, in each of these forms: `srt`, `vtt`, `csv`, `audacity`.
        threshold, min_area: as for the pipeline.
        labels: write the names of the classes on the objects of the overlay, and a legend with their colours.
        follow: move the masks of the overlay along with the pictures between those that the network saw
            ([`follow_label_maps`]); otherwise each is painted over its whole 1/fps s.

    Raises:
        MediaError: the video cannot be read, has no pictures, or is too long.
        OSError: the folder cannot be written.
        ValueError: `name` holds a folder; a form of timelines or mattes or a rate of masks that is not known.
    """
    name = name or source_name(source)
    if name != Path(name).name or name == ".." or "\\" in name or "\0" in name:
        raise ValueError(f"name: wanted the name of a file without folders, got {name!r}.")
    kinds = _kinds({"masks": masks, "json": summary, "sheet": sheet}, timelines, matte, matte_each)
    if mask_rate not in MASK_RATES:
        raise ValueError(f"mask_rate: wanted one of {', '.join(MASK_RATES)}, got {mask_rate!r}.")
    fps = check_fps(fps)
    tracks: dict[str, Any] = {"video_track": video_track, "audio_track": audio_track}
    with _local(source) as video, _staged(Path(folder), name, kinds) as stage, ExitStack() as stack:
        rate = 1 if isinstance(fps, str) else fps
        columns = _columns(video, rate, max(keep, SHEET_COLUMNS if sheet else 0), tracks) if sheet or keep else []
        names = pipe.model.config.id2label
        collector = _Collector(len(names), stage.get("masks"), columns, classes, write_masks=mask_rate == "network")
        sinks: list[MapSink] = []
        if masks and mask_rate == "video":
            sinks.append(MaskPictures(stage["masks"], collector.colors))
        if matte is not None:
            place = next(stage[kind] for kind in (*MATTES.values(), "mattes") if kind in stage)
            sinks.append(stack.enter_context(Matte(place, matte, names if matte_each else None)))
        windows = pipe.stream(
            video, batch_size, fps=fps if follow else rate, return_maps=bool(columns), progress=progress,
            classes=classes, max_seconds=max_seconds, threshold=threshold, min_area=min_area, **tracks)  # fmt: skip
        # The network runs in here: the collector pulls windows of pictures through the pipeline, in a thread beside
        # this one, which decodes, paints and encodes, and a few maps ahead of it. So nothing piles up.
        least = BYTES_AHEAD // max(1, int(pipe.model.config.num_frames * rate))  # no more than a window waits
        with running_ahead(
            collector.label_maps(windows), lambda timed: max(timed[1].nbytes, least), BYTES_AHEAD
        ) as maps:
            write_overlay_video(
                video, stage["overlay"], maps, collector.colors, fps=rate, labels=names if labels else None,
                follow=follow, sinks=sinks, **tracks)  # fmt: skip
            for _ in maps:  # a last picture may be shown for seconds: the overlay needs no maps for these, others do
                pass
        if summary:
            stage["json"].write_text(json.dumps(collector.report(source), indent=1), encoding="utf-8")
        if sheet:
            collector.sheet().save(stage["sheet"])
        for kind in dict.fromkeys(timelines):
            write_timeline(stage[kind], kind, collector.stretches())
    files = {kind: Path(folder) / f"{name}{ENDINGS[kind]}" for kind in kinds}
    facts = collector.result
    return Prediction(
        summarize(facts), facts["has_audio"], len(collector.facts) / rate, facts["warnings"], files, facts,
        collector.kept, np.concatenate(collector.peaks) if collector.peaks else None,
    )  # fmt: skip


def _kinds(wanted: Mapping[str, bool], timelines: Sequence[str], matte: str | None, matte_each: bool) -> list[str]:
    """The kinds of files to write."""
    if unknown := set(timelines) - set(TIMELINES):
        raise ValueError(f"timelines: wanted some of {', '.join(TIMELINES)}, got {', '.join(sorted(unknown))}.")
    if matte is not None and matte not in MATTES:
        raise ValueError(f"matte: wanted one of {', '.join(MATTES)}, got {matte!r}.")
    if matte_each and matte is None:
        raise ValueError("matte_each: say which kind of matte, matte='mov' for example.")
    kinds = ["overlay", *(kind for kind, is_wanted in wanted.items() if is_wanted), *dict.fromkeys(timelines)]
    return kinds + ([] if matte is None else ["mattes" if matte_each else MATTES[matte]])


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

    def __init__(
        self,
        num_labels: int,
        masks: Path | None,
        columns: Sequence[int],
        classes: Sequence[str] | None,
        write_masks: bool,
    ) -> None:
        self.colors = class_colors(num_labels)
        if masks is not None:
            masks.mkdir()
        self.masks = masks if write_masks else None
        self.columns = frozenset(columns)
        self.kept: list[dict[str, Any]] = []
        self.facts: list[dict[str, Any]] = []
        self.peaks: list[np.ndarray] = []
        self.result: dict[str, Any] = {"frames": self.facts, "has_audio": False, "fps": 1, "classes": classes}

    def label_maps(self, windows: Iterator[dict[str, Any]]) -> Iterator[tuple[float, np.ndarray]]:
        """(timestamp, label map (H, W)) of every frame, those between the others included."""
        for window in windows:
            self.result["has_audio"] |= window["has_audio"]
            self.result.update({key: window[key] for key in ("labels", "size", "fps", "warnings")})
            if self.columns:
                self.peaks.append(sound_peaks(window["waveform"], window["sampling_rate"]))
            for frame in window["frames"]:
                self._note(frame)
            moments = [*window["frames"], *window.get("frames_between", ())]
            for frame in sorted(moments, key=operator.itemgetter("timestamp")):
                yield frame["timestamp"], frame["label_map"]

    def _note(self, frame: dict[str, Any]) -> None:
        number = len(self.facts)
        ids = {label: index for index, label in self.result["labels"].items()}
        segments = [segment_record(segment, ids[segment["label"]]) for segment in frame["segments"]]
        self.facts.append({"timestamp": frame["timestamp"], "segments": segments})
        if number in self.columns:
            self.kept.append({key: value for key, value in frame.items() if key != "scores"})
        if self.masks is not None:
            write_mask(self.masks, number, frame["timestamp"], frame["label_map"], self.colors)

    def report(self, source: MediaSource) -> dict[str, Any]:
        """The JSON file; `docs/results.md` says what is in it."""
        return {"source": display_name(source), **result_record(self.result)}

    def stretches(self) -> list[Stretch]:
        """What sounds when."""
        return timeline(self.facts, self.result["fps"])

    def sheet(self) -> Image.Image:
        """Contact sheet of the frames that were kept, over the sound of the whole video."""
        if not self.kept:  # a broken video can have fewer frames than it says
            raise MediaError("no frame for the contact sheet")
        kept = {**self.result, "frames": self.kept}
        return contact_sheet(kept, np.concatenate(self.peaks), summary=summarize(self.result))


def _columns(source: MediaSource, fps: float, most: int, tracks: dict[str, int | None]) -> list[int]:
    count = max(1, math.ceil(probe_media(source, **tracks).seconds * fps))
    return sorted({0, *np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()})


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


def _is_ours(path: Path) -> bool:
    """Whether a file in a place of ours was written by us: only the name of the JSON file could be anybody's."""
    if path.suffix != ".json" or not path.is_file():
        return path.exists()
    with open(path, "rb") as file:
        return b'"source"' in file.read(200)


@contextmanager
def _staged(folder: Path, name: str, kinds: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Where to write each kind of result; if nothing fails, they move to `folder` under their own names.

    Files that an earlier run left under these names go, also those of kinds that are not wanted this time.

    Raises:
        OSError: a name that is too long, no room, or no right to write there; found out before anything is made.
    """
    places = {kind: folder / f"{name}{ending}" for kind, ending in ENDINGS.items()}
    root = next(path for path in (folder, *folder.parents) if path.exists())
    for place in places.values():
        with suppress(FileNotFoundError, NotADirectoryError):
            (root / place.name).lstat()  # a name that is too long fails here
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, STAGE)  # of a process that was killed
    stage = Path(tempfile.mkdtemp(prefix=owned_prefix(STAGE), dir=folder))
    try:
        yield {kind: stage / f"{kind}{places[kind].suffix}" for kind in kinds}
        for kind, place in places.items():
            if kind in kinds:
                _take_place(stage / f"{kind}{place.suffix}", place, stage)
            elif _is_ours(place):  # of an earlier run with other options
                with suppress(FileNotFoundError):
                    os.replace(place, stage / f"old-{kind}")
        made = []
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # somebody else may have put something there
                path.rmdir()
