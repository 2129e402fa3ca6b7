"""The web page: a video in, what sounds where and when out.

`python space/app.py` in a clone runs it with the bundled weights; README.md beside this file lists the settings.
limits.py beside it says what is refused, zero_gpu.py how a GPU comes in on ZeroGPU.
"""

from __future__ import annotations

import copy
import logging
import os
import queue
import shutil
import signal
import sys
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
# Gradio would put a table of all earlier requests together after every one (pandas, for a page nobody opens).
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))

from zero_gpu import page_functions


try:
    import combo_hf
except ModuleNotFoundError:  # a bare clone
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import combo_hf

import gradio as gr
from housekeeping import Storage, temporary_folder
from limits import Limits, plain, proposal_sources, refuse_addresses
from PIL import Image

from combo_hf.cli import run_script
from combo_hf.media_combo import MediaError, probe_media
from combo_hf.results.figures import prediction_gallery
from combo_hf.results.folder import predict_to_folder
from combo_hf.results.pictures import draw_timeline


SUPERPIXELS = "superpixels"
EVERYTHING_AT = 12  # frames of the gallery, evenly spread
MAX_FPS = 5
KEEP_MASKS = 1000  # frames whose masks stay in the cache: at most about 300 MB
KEPT_VISITORS = 64  # of whom gradio remembers the state of the page, about 0.2 MB each; its default is 10000
LOOK_S = 1.0  # how often it is looked whether the visitor is still there
LOG = logging.getLogger("combo_space")
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


class Stopped(Exception):
    """The visitor has gone, or pressed stop."""


class Segmenter:
    """What happens to a video, one after the other: the network uses all cores.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`].
        proposals: further proposal models, name -> folder or Hub id; loaded when first asked for.
        limits: what is refused.
        cache: folder for the masks of these models; default: a temporary one, removed at the end.
    """

    def __init__(self, pipe: Any, proposals: Mapping[str, str], limits: Limits, cache: str | None = None) -> None:
        self.pipe, self.proposals, self.limits, self._cache = pipe, dict(proposals), limits, cache
        self._generators: dict[str, Any] = {}
        self._turn = threading.Lock()

    @property
    def classes(self) -> list[str]:
        """Labels without the background."""
        labels = self.pipe.model.config.id2label
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
        if not path.is_file():
            raise gr.Error("The video is not here any more; choose it again.", print_exception=False)
        with suppress(OSError):  # somebody else's, an example say
            os.utime(path)  # it must not go by its age while it is worked on
        if path.stat().st_size > self.limits.megabytes * 1e6:
            raise gr.Error(f"The file is larger than {self.limits.megabytes} MB.", print_exception=False)
        try:
            facts = probe_media(path)
        except MediaError as error:
            raise gr.Error(plain(error, path), print_exception=False) from None
        if facts.seconds > self.limits.seconds:
            wanted = f"The video has {facts.seconds} seconds; at most {self.limits.seconds} are taken here."
            raise gr.Error(f"{wanted} The command line has no such limit.", print_exception=False)
        if facts.width * facts.height > self.limits.pixels:
            raise gr.Error(f"The picture is {facts.width} x {facts.height}; make it smaller.", print_exception=False)
        return path

    def pipe_with(self, proposals: str, check: Callable[[], None]) -> Any:
        """The pipeline with this proposal model; `check` is called before every frame.

        Raises:
            gr.Error: the model cannot be loaded.
        """
        pipe = copy.copy(self.pipe)
        if pipe.model.config.use_maskige:
            generator = self._generator(proposals)

            def watched(frames: list[Any]) -> list[Any]:
                check()  # the processor comes with one frame at a time
                return generator(frames)

            pipe.processor = copy.copy(pipe.processor)
            pipe.processor.proposal_generator = watched
        return pipe

    def _generator(self, name: str) -> Any:
        from combo_hf.proposals_combo import get_proposal_generator

        if name == SUPERPIXELS:
            own = self.pipe.processor.proposal_generator
            return own if getattr(own, "name", None) == SUPERPIXELS else get_proposal_generator(SUPERPIXELS)
        if name not in self._generators:
            model = {"name": name, "model": self.proposals[name]}
            try:
                if self._cache is None:
                    self._cache = str(temporary_folder())
                    weakref.finalize(self, shutil.rmtree, self._cache, ignore_errors=True)
                self._generators[name] = get_proposal_generator(
                    {"name": "cached", "generator": model, "folder": str(self._cache), "max_entries": KEEP_MASKS}
                )
            except Exception:  # it may name folders of this machine
                LOG.exception("proposal model %s", name)
                text = f"The proposal model {name!r} cannot be used here at the moment; choose another."
                raise gr.Error(text, print_exception=False) from None
        return self._generators[name]

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
        stop, folder = threading.Event(), temporary_folder()

        def check(*counts: Any) -> None:
            if stop.is_set():
                raise Stopped
            if counts:
                done.put(("progress", counts))

        def work() -> None:
            try:
                with self._turn:  # who has just been stopped may still be busy with a frame
                    check()
                    pipe = self.pipe_with(proposals, check)
                    options = {"fps": int(fps), "classes": classes or None, "progress": check}
                    options["max_seconds"] = self.limits.seconds  # whatever the header of the file says
                    done.put(("result", self._segment(pipe, path, folder, **options)))
            except BaseException as error:  # carried over to the visitor's thread
                done.put(("error", error))
            if stop.is_set():
                shutil.rmtree(folder, ignore_errors=True)

        threading.Thread(target=work, name=WORKER, daemon=True).start()
        try:
            for kind, value in _messages(done):
                if kind == "error":
                    raise self._in_words(value, path) from None
                if kind == "progress":
                    progress(value, desc="Segmenting", unit="windows")
                # Yielding lets a visitor who has gone end this; after the result gradio has its own copies.
                yield value if kind == "result" else (gr.skip(),) * 5
        finally:
            stop.set()
            shutil.rmtree(folder, ignore_errors=True)

    def example(
        self,
        video: str,
        proposals: str,
        fps: int,
        classes: list[str],
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """The five outputs for gradio's cache of examples, which copies files after this: they stay with the page."""
        folder = temporary_folder()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self.finish(folder, video, proposals, fps, classes, progress)

    def finish(
        self, folder: Path, video: str, proposals: str, fps: int, classes: list[str], progress: gr.Progress
    ) -> tuple[Any, ...]:
        """The five outputs, with their files in a folder that the caller removes."""
        path = self.check(video, proposals, fps, classes)
        options: dict[str, Any] = {"fps": int(fps), "classes": classes or None, "max_seconds": self.limits.seconds}
        options["progress"] = lambda *counts: progress(counts, desc="Segmenting", unit="windows")
        try:
            with self._turn:
                return self._segment(self.pipe_with(proposals, lambda: None), path, folder, **options)
        except Exception as error:
            raise self._in_words(error, path) from None

    @staticmethod
    def _segment(pipe: Any, path: Path, folder: Path, **options: Any) -> tuple[Any, ...]:
        found = predict_to_folder(
            pipe, path, folder, "combo", masks=True, summary=True, keep=EVERYTHING_AT, **options)  # fmt: skip
        archive = _zip(found.files["masks"], folder / "combo_masks.zip")
        files = [str(found.files["overlay"]), str(archive), str(found.files["json"])]
        timeline = draw_timeline(found.result, found.peaks, max(probe_media(path).duration, found.seconds))
        pictures = [(timeline, "timeline"), *prediction_gallery(found)]
        saved = _save([picture for picture, _ in pictures], folder / "pictures")
        gallery = [(name, caption) for name, (_, caption) in zip(saved, pictures, strict=True)][1:]
        return files[0], _text(found, path), saved[0], gallery, files

    @staticmethod
    def _in_words(error: BaseException, path: Path) -> BaseException:
        if isinstance(error, (Stopped, gr.Error)):
            return error
        if isinstance(error, MediaError):
            return gr.Error(plain(error, path), print_exception=False)
        LOG.error("a video could not be segmented", exc_info=error)  # its message may name folders of this machine
        return gr.Error("Something went wrong here; it has been noted.", print_exception=False)


def build_demo(
    pipe: Any = None,
    proposals: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> gr.Blocks:
    """The page.

    Args:
        pipe: [`AudioVisualSegmentationPipeline`]; default that of `COMBO_MODEL`, or the bundled weights.
        proposals, limits: as for [`Segmenter`]; default those of the environment.
    """
    proposals = proposal_sources(os.environ.get("COMBO_PROPOSALS", "")) if proposals is None else proposals
    limits = Limits.from_environment() if limits is None else limits
    refuse_addresses()
    Storage(limits.keep)  # before any component is made; it lives as long as the process
    pipe = combo_hf.load_pipeline(os.environ.get("COMBO_MODEL")) if pipe is None else pipe
    segment = Segmenter(pipe, proposals, limits, os.environ.get("COMBO_PROPOSAL_CACHE"))
    bundled = Path(str(pipe.model.config.name_or_path)) == combo_hf.DEFAULT_MODEL
    with gr.Blocks(title=TITLE, analytics_enabled=False) as demo:
        gr.Markdown(_introduction(limits, bundled))
        with gr.Row():
            with gr.Column(min_width=300):
                video = gr.Video(label="Video with sound", sources=["upload", "webcam"], elem_id="video")
                generator = gr.Dropdown(
                    [SUPERPIXELS, *proposals], value=SUPERPIXELS, label="Proposal model (Maskige)", elem_id="proposals"
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
        gallery = _gallery(pipe.model.config.use_maskige)
        files = gr.File(label="Video, masks (PNG), summary (JSON)", file_count="multiple", elem_id="files")
        inputs, outputs = [video, generator, fps, classes], [result, summary, sounding, gallery, files]
        work, example = page_functions(segment)
        event = run.click(work, inputs, outputs, api_name="segment", concurrency_limit=1, concurrency_id="model")
        stop.click(None, cancels=[event], api_name=False)
        if bundled:
            gr.Examples(
                [[str(combo_hf.ASSETS / "demo_real.mp4"), SUPERPIXELS, 5, []]], inputs, outputs, fn=example,
                cache_examples=True, cache_mode="lazy", label="Photographs, recordings", api_name=False)  # fmt: skip
    demo.queue(max_size=limits.queue)
    demo.combo_launch = {
        "max_file_size": f"{limits.megabytes}mb",
        "ssr_mode": False,
        "state_session_capacity": KEPT_VISITORS,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": CSS,
    }
    return demo


def _gallery(use_maskige: bool) -> gr.Gallery:
    kinds = ["Frame", *(["Maskige"] if use_maskige else []), "heat map", "mask"]
    return gr.Gallery(
        label=", ".join(kinds),
        columns=len(kinds),
        elem_id="gallery",
        buttons=["fullscreen", "download"],
        height="auto",
        format="png",
    )


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """Start the page with its look and its limits; `options` as for `gr.Blocks.launch`."""
    return demo.launch(**{**demo.combo_launch, **options})


def _introduction(limits: Limits, bundled: bool) -> str:
    text = (
        f"# {TITLE}\nEvery object that sounds is coloured, second by second; silent ones are left alone "
        "([COMBO](https://arxiv.org/abs/2312.06462), CVPR 2024). "
        f"Videos of at most {limits.seconds} seconds and {limits.megabytes} MB, one at a time, up to {limits.queue} "
        f"waiting. Files are deleted after about {_duration(limits.keep)}."
    )
    if bundled:
        text += (
            "\n\n**These weights know seven animals** (bird, cat, cow, dog, hen, lion, sheep) and nothing else, for "
            "research that is not commercial. They find the animal, but tell poorly which animal a sound belongs to: "
            "of two side by side the silent one is often coloured, too. Try the example."
        )
    return text


def _duration(seconds: int) -> str:
    return f"{round(seconds / 60)} minutes" if seconds >= 120 else f"{seconds} seconds"


def _text(found: Any, path: Path) -> str:
    lines = [f"**{found.summary}**"]
    if not found.has_audio:
        lines.append("The video has no sound track: it was treated as silence.")
    if found.warnings:
        lines.append("About the file: " + " ".join(plain(text, path) for text in found.warnings[:3]))
    return "\n\n".join(lines)


def _messages(done: queue.Queue) -> Iterator[tuple[str, Any]]:
    """What is put into a queue up to `"result"`; `"nothing"` every `LOOK_S` seconds meanwhile."""
    kind = ""
    while kind != "result":
        kind, value = "nothing", None
        with suppress(queue.Empty):
            kind, value = done.get(timeout=LOOK_S)
        yield kind, value


def _save(pictures: list[Image.Image], folder: Path) -> list[str]:
    """As files: of pictures, gradio writes its copy anew for every visitor, also while another one downloads it."""
    folder.mkdir()
    names = [str(folder / f"{index:03d}.png") for index in range(len(pictures))]
    for picture, name in zip(pictures, names, strict=True):
        picture.save(name)
    return names


def _zip(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.iterdir()):
            archive.write(path, path.name)
    return target


def main() -> None:
    """Run the page. Visitors see the messages of `gr.Error`, and of no other error."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # files go then, too
    launch(build_demo(), server_name=os.environ.get("GRADIO_SERVER_NAME"))


if __name__ == "__main__":
    sys.exit(run_script(main))
