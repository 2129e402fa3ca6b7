"""The web page: a video in, what sounds where and when out.

`python space/app.py` in a clone runs it with the bundled weights; README.md beside this file lists the settings.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import queue
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("COMBO_PUBLIC_ADDRESSES_ONLY", "1")  # visitors must not reach what only this machine can

try:
    import combo_hf
except ModuleNotFoundError:  # a bare clone
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import combo_hf

import gradio as gr
from anyio.to_thread import run_sync

from combo_hf.media_combo import MediaError, probe_media
from combo_hf.media_combo_download import address_name, download
from combo_hf.prediction import predict_to_folder
from combo_hf.visualization import class_colors, draw_timeline, heat_map, overlay


SUPERPIXELS = "superpixels"
EVERYTHING_AT = 12  # frames of the gallery, evenly spread
MAX_FPS = 5
DOWNLOAD_S = 60
KEEP_FILES_S = 3600
WORKER = "combo-segment"
TITLE = "Which pixels make this sound?"
CSS = """
.gradio-container {max-width: 1100px !important; margin: 0 auto !important; width: 100% !important}
#summary {font-size: 1.1em}
#video video, #result video {max-height: 320px; object-fit: contain}
#timeline, #timeline * {max-height: none !important; min-width: 0; max-width: 100%}
#timeline img {width: 100%; height: auto; object-fit: contain}
@media (max-width: 500px) {
  .gradio-container {padding: 8px !important}
  #gallery .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important}
}
"""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        seconds: longest video.
        megabytes: largest upload.
        pixels: largest picture, width x height.
        queue: visitors waiting.
    """

    seconds: int = 60
    megabytes: int = 50
    pixels: int = 1920 * 1088
    queue: int = 64

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """`COMBO_MAX_SECONDS`, `COMBO_MAX_MEGABYTES` and `COMBO_MAX_QUEUE`.

        Raises:
            ValueError: not a whole number above 0.
        """
        values = {}
        for field in ("seconds", "megabytes", "queue"):
            name = f"COMBO_MAX_{field.upper()}"
            if name in environment:
                if not environment[name].isdigit() or int(environment[name]) < 1:
                    raise ValueError(f"{name}: wanted a whole number above 0, got {environment[name]!r}.")
                values[field] = int(environment[name])
        return cls(**values)


class Stopped(Exception):
    """The visitor has gone, or pressed stop."""


def proposal_sources(text: str) -> dict[str, str]:
    """`"sam=folder,mobile_sam=org/name"` -> name: folder or Hub id.

    Raises:
        ValueError: an entry without `=`.
    """
    sources = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, mark, source = entry.partition("=")
        if not (name.strip() and mark and source.strip()):
            raise ValueError(f"COMBO_PROPOSALS: wanted name=folder or Hub id, got {entry!r}.")
        sources[name.strip()] = source.strip()
    return sources


class Segmenter:
    """What happens to a video, one after the other: the network uses all cores.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`].
        proposals: further proposal models, name -> folder or Hub id; loaded when first asked for.
        limits: what is refused.
    """

    def __init__(self, pipe: Any, proposals: Mapping[str, str], limits: Limits) -> None:
        self.proposals = dict(proposals)
        self.limits = limits
        self._pipes = {SUPERPIXELS: pipe}
        self._lock = threading.Lock()

    @property
    def classes(self) -> list[str]:
        """Labels without the background."""
        labels = self._pipes[SUPERPIXELS].model.config.id2label
        return [labels[index] for index in sorted(labels) if int(index) > 0]

    def check(self, video: Any, proposals: str, fps: Any, classes: Any) -> Path:
        """The file, if everything asked for can be done.

        Raises:
            gr.Error: in words for visitors.
        """
        if not video:
            raise gr.Error("Choose or record a video first.", print_exception=False)
        if proposals != SUPERPIXELS and proposals not in self.proposals:
            raise gr.Error(f"There is no proposal model {proposals!r} here.", print_exception=False)
        if isinstance(fps, bool) or fps not in range(1, MAX_FPS + 1):
            raise gr.Error(f"Frames per second: 1 to {MAX_FPS}.", print_exception=False)
        unknown = set(classes or ()) - set(self.classes)
        if unknown:
            raise gr.Error(f"These weights do not know {', '.join(sorted(map(str, unknown)))}.", print_exception=False)
        path = Path(video)
        if path.stat().st_size > self.limits.megabytes * 1e6:
            raise gr.Error(f"The file is larger than {self.limits.megabytes} MB.", print_exception=False)
        try:
            facts = probe_media(path)
        except MediaError as error:
            raise gr.Error(_plain(error, path), print_exception=False) from None
        if facts.seconds > self.limits.seconds:
            wanted = f"The video has {facts.seconds} seconds; at most {self.limits.seconds} are taken here."
            raise gr.Error(f"{wanted} The command line has no such limit.", print_exception=False)
        if facts.width * facts.height > self.limits.pixels:
            raise gr.Error(f"The picture is {facts.width} x {facts.height}; make it smaller.", print_exception=False)
        return path

    def pipe_with(self, proposals: str) -> Any:
        """The pipeline with this proposal model."""
        with self._lock:
            if proposals not in self._pipes:
                from combo_hf.proposals_combo import get_proposal_generator

                pipe = copy.copy(self._pipes[SUPERPIXELS])
                pipe.processor = copy.copy(pipe.processor)
                pipe.processor.proposal_generator = get_proposal_generator(
                    {"name": proposals, "model": self.proposals[proposals]}
                )
                self._pipes[proposals] = pipe
            return self._pipes[proposals]

    def run(
        self,
        video: str,
        proposals: str,
        fps: int,
        classes: list[str],
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, ...]]:
        """Segment one video; yields the five outputs, the last time with everything."""
        path = self.check(video, proposals, fps, classes)
        progress(0, desc="Reading the video")
        done: queue.Queue[tuple[str, Any]] = queue.Queue()
        stop = threading.Event()

        def report(count: int, total: int | None) -> None:
            if stop.is_set():
                raise Stopped
            done.put(("progress", (count, total)))

        def work() -> None:
            try:
                done.put(("result", self._segment(path, proposals, int(fps), classes, report)))
            except BaseException as error:  # carried over to the visitor's thread
                done.put(("error", error))

        threading.Thread(target=work, name=WORKER, daemon=True).start()
        folder = None
        try:
            while True:
                kind, value = done.get()
                if kind == "result":
                    folder, outputs = value
                    yield outputs  # when this goes on, gradio has its own copies
                    return
                if kind == "error":
                    raise self._in_words(value, path) from None
                progress(value, desc="Segmenting", unit="windows")
                yield (gr.skip(),) * 5  # lets a visitor who has gone end this
        finally:
            stop.set()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _segment(
        self, path: Path, proposals: str, fps: int, classes: list[str], report: Any
    ) -> tuple[Path, tuple[Any, ...]]:
        folder = Path(tempfile.mkdtemp(prefix="combo-result-"))
        try:
            found = predict_to_folder(
                self.pipe_with(proposals), path, folder, "combo", fps=fps, masks=True, summary=True,
                keep=EVERYTHING_AT, classes=classes or None, progress=report)  # fmt: skip
            archive = _zip(found.files["masks"], folder / "combo_masks.zip")
            files = [str(found.files["overlay"]), str(archive), str(found.files["json"])]
            duration = max(probe_media(path).duration, found.seconds)
            picture = draw_timeline(found.result, found.peaks, duration)
            return folder, (files[0], _text(found, path), picture, _gallery(found), files)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @staticmethod
    def _in_words(error: BaseException, path: Path) -> BaseException:
        if isinstance(error, (MediaError, ValueError, OSError, ImportError)):
            return gr.Error(_plain(error, path), print_exception=False)
        return error if isinstance(error, Stopped) else gr.Error("Something went wrong here; it has been noted.")


def build_demo(
    pipe: Any = None, proposals: Mapping[str, str] | None = None, limits: Limits | None = None
) -> gr.Blocks:
    """The page.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`]; default that of `COMBO_MODEL`, or the bundled weights.
        proposals: further proposal models, name -> folder or Hub id; default those of `COMBO_PROPOSALS`.
        limits: default those of the environment.
    """
    model = os.environ.get("COMBO_MODEL")
    pipe = combo_hf.load_pipeline(model) if pipe is None else pipe
    proposals = proposal_sources(os.environ.get("COMBO_PROPOSALS", "")) if proposals is None else proposals
    limits = Limits.from_environment() if limits is None else limits
    segment = Segmenter(pipe, proposals, limits)
    bundled = Path(str(pipe.model.config.name_or_path)) == combo_hf.BUNDLED_MODEL
    with gr.Blocks(title=TITLE, delete_cache=(600, KEEP_FILES_S), analytics_enabled=False) as demo:
        gr.Markdown(_introduction(limits, bundled))
        with gr.Row():
            with gr.Column(min_width=300):
                video = gr.Video(label="Video with sound", sources=["upload", "webcam"], elem_id="video")
                _limit_addresses(video, limits)
                names = [SUPERPIXELS, *proposals]
                generator = gr.Dropdown(
                    names, value=SUPERPIXELS, label="Proposal model (Maskige)", elem_id="proposals"
                )
                fps = gr.Slider(1, MAX_FPS, value=1, step=1, label="Frames per second", elem_id="fps")
                classes = gr.Dropdown(segment.classes, multiselect=True, label="Only these (empty: all)")
                with gr.Row():
                    run = gr.Button("Segment", variant="primary", elem_id="run")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(min_width=300):
                result = gr.Video(label="What sounds is coloured", elem_id="result", interactive=False)
                summary = gr.Markdown(elem_id="summary")
                sounding = gr.Image(
                    show_label=False, elem_id="timeline", interactive=False, format="png", buttons=[], container=False
                )
        gallery = gr.Gallery(
            label="Frame, Maskige, heat map, mask",
            columns=4,
            elem_id="gallery",
            buttons=["fullscreen", "download"],
            height="auto",
            format="png",
        )
        files = gr.File(label="Video, masks (PNG), summary (JSON)", file_count="multiple", elem_id="files")
        inputs, outputs = [video, generator, fps, classes], [result, summary, sounding, gallery, files]
        event = run.click(
            segment.run, inputs, outputs, api_name="segment", concurrency_limit=1, concurrency_id="model"
        )
        stop.click(None, cancels=[event], api_name=False)
        if bundled:
            clip = str(combo_hf.ASSETS / "demo_clip.mp4")
            gr.Examples(
                [[clip, SUPERPIXELS, 5, []]], inputs, outputs, fn=segment.run, cache_examples=True, cache_mode="lazy",
                label="A synthetic clip", api_name=False)  # fmt: skip
    demo.queue(max_size=limits.queue)
    demo.combo_launch = {
        "max_file_size": f"{limits.megabytes}mb",
        "ssr_mode": False,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": CSS,
    }
    return demo


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """Start the page with its look and its limits; `options` as for `gr.Blocks.launch`."""
    return demo.launch(**{**demo.combo_launch, **options})


def _limit_addresses(component: gr.Video, limits: Limits) -> None:
    """API clients may name an address in place of a file; gradio would fetch it whole, whatever its size."""
    move = component.async_move_resource_to_block_cache

    async def fetch(source: Any) -> str | None:
        if not str(source).lower().startswith(("http://", "https://")):
            return await move(source)
        name = address_name(str(source))
        folder = tempfile.mkdtemp(prefix="address-", dir=_folder(component.GRADIO_CACHE))
        path = os.path.join(folder, name)
        limit = int(limits.megabytes * 1e6)
        try:
            await run_sync(functools.partial(download, str(source), path, name, limit, DOWNLOAD_S))
        except MediaError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise gr.Error(_plain(error, Path(path)), print_exception=False) from None
        component.temp_files.add(path)
        return path

    component.async_move_resource_to_block_cache = fetch


def _folder(path: str) -> str:
    os.makedirs(path, exist_ok=True)
    return path


def _introduction(limits: Limits, bundled: bool) -> str:
    text = (
        f"# {TITLE}\nEvery object that sounds is coloured, second by second; silent ones are left alone "
        "([COMBO](https://arxiv.org/abs/2312.06462), CVPR 2024). "
        f"Videos of at most {limits.seconds} seconds and {limits.megabytes} MB, one at a time, up to {limits.queue} "
        "waiting. Files are deleted after about an hour."
    )
    if bundled:
        text += (
            "\n\n**The bundled weights know only synthetic scenes:** try the example. They do not segment real videos."
        )
    return text


def _text(found: Any, path: Path) -> str:
    lines = [f"**{found.summary}**"]
    if not found.has_audio:
        lines.append("The video has no sound track: it was treated as silence.")
    if found.warnings:
        lines.append("Parts of the file are damaged: " + "; ".join(_plain(text, path) for text in found.warnings[:3]))
    return "\n\n".join(lines)


def _gallery(found: Any) -> list[tuple[Any, str]]:
    pictures = []
    colors = class_colors(len(found.result["labels"]))
    for frame in found.kept:
        time, names = f"{frame['timestamp']:.1f} s", ", ".join(part["label"] for part in frame["segments"])
        marked = overlay(frame["image"].convert("L").convert("RGB"), frame["label_map"], colors, alpha=0.65)
        pictures.append((frame["image"], f"{time} frame"))
        if frame.get("maskige") is not None:
            pictures.append((frame["maskige"].resize(frame["image"].size), f"{time} Maskige"))
        pictures.append((heat_map(frame["image"], frame["heat_map"]), f"{time} heat map"))
        pictures.append((marked, f"{time} {names or 'nothing sounds'}"))
    return pictures


def _zip(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.iterdir()):
            archive.write(path, path.name)
    return target


def _plain(error: Any, path: Path) -> str:
    """A message without the name that the file has on this machine."""
    text = " ".join(str(error).split("\n")[0].split()).replace(str(path), "the video").replace(path.name, "the video")
    return f"{text[:1].upper()}{text[1:300]}"


def main() -> None:
    """Run the page."""
    launch(build_demo(), server_name=os.environ.get("GRADIO_SERVER_NAME"), show_error=True)


if __name__ == "__main__":
    main()
