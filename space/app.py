"""The web page: a video in, what sounds where and when out.

`python space/app.py` in a clone runs it; README.md lists the settings. Beside it lie its look, limits and ZeroGPU.
"""

from __future__ import annotations

import copy
import html
import logging
import os
import queue
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
# Gradio would put a table of all earlier requests together after every one (pandas, for a page nobody opens).
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
os.environ.setdefault("GRADIO_RUN_HISTORY", "False")

from zero_gpu import page_functions


try:
    import combo_hf
except ModuleNotFoundError:  # a bare clone
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import combo_hf

import gradio as gr
import layout
from housekeeping import (
    Storage,
    give_back_memory,
    keep_one_component_each,
    save_pictures,
    temporary_folder,
    zip_folder,
)
from limits import Gate, Limits, plain, proposal_sources, refusal, refuse_addresses
from starlette.middleware import Middleware

from combo_hf.cli import run_script
from combo_hf.media_combo import MediaError, probe_media
from combo_hf.media_combo_shown import AUTO
from combo_hf.results.figures import prediction_gallery
from combo_hf.results.folder import predict_to_folder
from combo_hf.results.pictures import draw_timeline


EVERYTHING_AT = 12  # frames of the gallery, evenly spread
KEEP_MASKS = 1000  # frames whose masks stay in the cache: at most about 300 MB
KEPT_VISITORS = 64  # of whom gradio remembers the state of the page, about 0.2 MB each; its default is 10000
LOOK_S = 1.0  # how often it is looked whether the visitor is still there
LOG = logging.getLogger("combo_space")
WORKER = "combo-segment"
OUTPUTS = 5
STOPPED = (None, "Stopped. Nothing was kept.", None, None, None)
EXAMPLE = [str(combo_hf.ASSETS / "demo_real.mp4"), layout.SUPERPIXELS, AUTO, [], 0.0, True]


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
        self._welcome: tuple[Any, ...] = (gr.skip(),) * OUTPUTS
        self._turn = threading.Lock()

    @property
    def classes(self) -> list[str]:
        """Labels without the background."""
        labels = self.pipe.model.config.id2label
        return [labels[index] for index in sorted(labels) if int(index) > 0]

    def check(self, video: Any, proposals: str, fps: Any, classes: Any, threshold: Any = 0.0) -> Path:
        """The file, if everything asked for can be done.

        Raises:
            gr.Error: in words for visitors.
        """
        if not video:
            raise refusal("Choose or record a video first.")
        if proposals != layout.SUPERPIXELS and proposals not in self.proposals:
            raise refusal(f"There is no proposal model {proposals!r} here.")
        self._check_options(fps, classes, threshold)
        path = Path(video)
        if not path.is_file():
            raise refusal("The video is not here any more; choose it again.")
        with suppress(OSError):  # somebody else's, an example say
            os.utime(path)  # it must not go by its age while it is worked on
        if path.stat().st_size > self.limits.megabytes * 1e6:
            raise refusal(f"The file is larger than {self.limits.megabytes} MB.")
        try:
            facts = probe_media(path)
        except MediaError as error:
            raise refusal(plain(error, path)) from None
        if facts.seconds > self.limits.seconds:
            wanted = f"The video has {facts.seconds} seconds; at most {self.limits.seconds} are taken here."
            raise refusal(f"{wanted} The command line has no such limit.")
        if facts.width * facts.height > self.limits.pixels:
            raise refusal(f"The picture is {facts.width} x {facts.height}; make it smaller.")
        return path

    def _check_options(self, fps: Any, classes: Any, threshold: Any) -> None:
        if isinstance(fps, bool) or fps not in layout.RATES:
            raise refusal(f"Frames per second: one of {', '.join(map(str, layout.RATES))}.")
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise refusal("Threshold: 0 to 1.")
        unknown = set(classes or ()) - set(self.classes)
        if unknown:
            raise refusal(f"These weights do not know {', '.join(sorted(map(str, unknown)))}.")

    def _options(
        self, fps: str | float, classes: list[str], threshold: float, follow: bool, progress: Callable[..., None]
    ) -> dict[str, Any]:
        """Of [`predict_to_folder`]; the video is cut at the limit, whatever its header says."""
        chosen = {"fps": fps, "classes": classes or None, "threshold": float(threshold), "follow": bool(follow)}
        return {**chosen, "max_seconds": self.limits.seconds, "progress": progress}

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

        if name == layout.SUPERPIXELS:
            own = self.pipe.processor.proposal_generator
            return own if getattr(own, "name", None) == name else get_proposal_generator(name)
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
                raise refusal(text) from None
        return self._generators[name]

    def run(
        self,
        video: str,
        proposals: str,
        fps: str | float,
        classes: list[str],
        threshold: float = 0.0,
        follow: bool = True,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, ...]]:
        """Segment one video; yields the five outputs, the last time with everything, or with what went wrong."""
        try:
            yield from self._run(video, proposals, fps, classes, threshold, follow, progress)
        except gr.Error as error:  # its badge says "Error" only, and goes
            yield None, f"**Not segmented.** {html.escape(str(error.message))}", None, None, None
            raise

    def _run(
        self,
        video: str,
        proposals: str,
        fps: str | float,
        classes: list[str],
        threshold: float,
        follow: bool,
        progress: gr.Progress,
    ) -> Iterator[tuple[Any, ...]]:
        path = self.check(video, proposals, fps, classes, threshold)
        show = partial(progress, 0, desc="Reading the video")
        show()
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
                    options = self._options(fps, classes, threshold, follow, check)
                    done.put(("result", self._segment(pipe, path, folder, **options)))
            except BaseException as error:  # carried over to the visitor's thread
                # Who has gone took the folder away under it: nothing to report.
                done.put(("error", error if stop.is_set() else self._in_words(error, path)))
            if stop.is_set():
                shutil.rmtree(folder, ignore_errors=True)

        threading.Thread(target=work, name=WORKER, daemon=True).start()
        try:
            for kind, value in _messages(done):
                if kind == "result":
                    yield value  # gradio has its own copies after this
                    return
                if kind == "progress":
                    show = partial(layout.show_stage, progress, *value)
                yield (gr.skip(),) * OUTPUTS  # lets a visitor who has gone end this
                show()  # only now: a browser hides the bar at whatever is yielded
        finally:
            stop.set()
            shutil.rmtree(folder, ignore_errors=True)
            give_back_memory()

    def example(
        self,
        video: str,
        proposals: str,
        fps: str | float,
        classes: list[str],
        threshold: float = 0.0,
        follow: bool = True,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        """The five outputs for gradio's cache of examples, which copies files after this: they stay with the page."""
        folder = temporary_folder()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self.finish(folder, video, proposals, fps, classes, threshold, follow, progress)

    def finish(
        self,
        folder: Path,
        video: str,
        proposals: str,
        fps: str | float,
        classes: list[str],
        threshold: float,
        follow: bool,
        progress: gr.Progress,
    ) -> tuple[Any, ...]:
        """The five outputs, with their files in a folder that the caller removes."""
        path = self.check(video, proposals, fps, classes, threshold)
        options = self._options(fps, classes, threshold, follow, partial(layout.show_stage, progress))
        try:
            with self._turn:
                return self._segment(self.pipe_with(proposals, lambda: None), path, folder, **options)
        except Exception as error:
            raise self._in_words(error, path) from None

    def prepare(self) -> None:
        """Make the example's result before anybody asks; where that cannot be done the page does without."""
        try:
            self._welcome = self.example(*EXAMPLE)
        except Exception:
            LOG.info("no example", exc_info=True)

    def welcome(self) -> tuple[Any, ...]:
        """What a visitor sees at first: the example's result, once it has been made."""
        return self._welcome

    @staticmethod
    def _segment(pipe: Any, path: Path, folder: Path, **options: Any) -> tuple[Any, ...]:
        name = layout.result_name(path)
        found = predict_to_folder(
            pipe, path, folder, name, masks=True, summary=True, keep=EVERYTHING_AT, **options)  # fmt: skip
        archive = zip_folder(found.files["masks"], folder / f"{name}_masks.zip")
        files = [str(found.files["overlay"]), str(archive), str(found.files["json"])]
        timeline = draw_timeline(found.result, found.peaks, max(probe_media(path).duration, found.seconds))
        pictures = [(timeline, "timeline"), *prediction_gallery(found)]
        saved = save_pictures([picture for picture, _ in pictures], folder / "pictures")
        gallery = [(name, caption) for name, (_, caption) in zip(saved, pictures, strict=True)][1:]
        return files[0], layout.summary_text(found, path), saved[0], gallery, files

    @staticmethod
    def _in_words(error: BaseException, path: Path) -> BaseException:
        if isinstance(error, (Stopped, gr.Error)):
            return error
        if isinstance(error, MediaError):
            return refusal(plain(error, path))
        LOG.error("a video could not be segmented", exc_info=error)  # its message may name folders of this machine
        return refusal("Something went wrong here; it has been noted.")


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
    keep_one_component_each()
    storage = Storage(limits.keep)  # before any component is made; it lives as long as the process
    pipe = combo_hf.load_pipeline(os.environ.get("COMBO_MODEL")) if pipe is None else pipe
    segment = Segmenter(pipe, proposals, limits, os.environ.get("COMBO_PROPOSAL_CACHE"))
    bundled = Path(str(pipe.model.config.name_or_path)) == combo_hf.DEFAULT_MODEL
    with gr.Blocks(title=layout.TITLE, analytics_enabled=False) as demo:
        gr.Markdown(layout.introduction(limits, bundled), elem_id="about")
        inputs, run, stop, outputs, examples = layout.components(segment, pipe.model.config.use_maskige)
        work, example = page_functions(segment)
        with examples:
            if bundled:
                gr.Examples(
                    [EXAMPLE], inputs, outputs, fn=example, cache_examples=True, cache_mode="lazy",
                    label="Try it", example_labels=["A dog barks, a cow moos, ..."], api_name=False)  # fmt: skip
        gr.Markdown(layout.small_print(limits))
        result = outputs[0]
        event = run.click(
            work, inputs, outputs, api_name="segment", concurrency_limit=1, concurrency_id="model",
            show_progress_on=[result])  # fmt: skip
        # All outputs: what stands there is of an earlier video, and gradio calls a stopped function an error.
        stop.click(lambda: STOPPED, None, outputs, cancels=[event], api_name=False, show_progress="hidden")
        result.change(None, None, None, js=layout.SHOW, api_name=False)
        if bundled:
            demo.load(segment.welcome, None, outputs, show_progress="hidden", api_name=False)
    demo.combo_prepare = segment.prepare if bundled and example == segment.example else None  # not on ZeroGPU
    demo.queue(max_size=limits.queue)
    demo.combo_launch = {
        "max_file_size": f"{limits.megabytes}mb",
        "app_kwargs": {"middleware": [Middleware(Gate, limits.megabytes, storage.folder)]},
        "ssr_mode": False,
        "state_session_capacity": KEPT_VISITORS,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": layout.CSS,
    }
    return demo


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """Start the page with its look and its limits; `options` as for `gr.Blocks.launch`."""
    if demo.combo_prepare is not None:
        threading.Thread(target=demo.combo_prepare, name="combo-example", daemon=True).start()
    return demo.launch(**{**demo.combo_launch, **options})


def _messages(done: queue.Queue) -> Iterator[tuple[str, Any]]:
    """What is put into a queue up to `"result"`, `"nothing"` every `LOOK_S` seconds; an `"error"` is raised."""
    kind = ""
    while kind != "result":
        kind, value = "nothing", None
        with suppress(queue.Empty):
            kind, value = done.get(timeout=LOOK_S)
        if kind == "error":
            raise value from None
        yield kind, value


def main() -> None:
    """Run the page. Visitors see the messages of `gr.Error`, and of no other error."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # files go then, too
    launch(build_demo(), server_name=os.environ.get("GRADIO_SERVER_NAME"))


if __name__ == "__main__":
    sys.exit(run_script(main))
