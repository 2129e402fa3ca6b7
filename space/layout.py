"""What the page looks like and says.

Belongs to app.py, beside which it must lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from limits import Limits, plain

from combo_hf.media_combo_shown import AUTO
from combo_hf.results.pictures import timeline


SUPERPIXELS = "superpixels"
RATES = (AUTO, 0.2, 0.5, 1, 2, 3, 4, 5)  # network pictures a second
TITLE = "Which pixels make this sound?"
SAMPLE = {"path": "my.mp4", "url": "my.mp4", "meta": {"_type": "gradio.FileData"}}  # of the description for programs
LONG = 6  # more stretches of sound than this are a table
CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important; width: 100% !important}
#about h1 {margin: 0} #about p {margin: 4px 0}
#video video, #result video {max-height: 320px; object-fit: contain}
#video .wrap {min-height: 120px}
#summary {font-size: 1.05em; max-height: 170px; overflow-y: auto} #summary th, #summary td {padding: 2px 12px}
.dark {color-scheme: dark}
#timeline, #timeline * {max-height: none !important; min-width: 0; max-width: 100%}
#timeline img {width: 100%; height: auto; object-fit: contain}
#gallery img {object-fit: contain !important}
#gallery .grid-wrap {max-height: none; overflow: visible !important; padding-top: 32px}
#gallery .grid-container {grid-auto-rows: auto !important}
#gallery .grid-container button {aspect-ratio: auto; height: auto} #gallery .grid-container img {max-height: 260px}
#files button[aria-label*="emove"] {display: none}
@media (max-width: 500px) {
  .gradio-container {padding: 8px !important}
  #about h1 {font-size: 1.3em} #about p {font-size: .85em}
  #video video {max-height: 150px} #result video {max-height: 240px}
  #video .wrap {min-height: 90px}
  #gallery .grid-container {grid-template-columns: repeat(2, minmax(0, 1fr)) !important; gap: 4px}
  #gallery.columns-3 .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)) !important}
  #gallery .caption-label {position: static; max-width: 100%; padding: 0 2px; border: 0; font-size: .7em}
}
"""
# A new result plays, without its sound where the visitor has touched nothing yet (browsers allow no more), and is
# scrolled to otherwise; pictures have words for those who cannot see them.
SHOW = """
() => {
  const touched = navigator.userActivation ? navigator.userActivation.hasBeenActive : true;
  let tries = 0;
  const look = () => {
    const video = document.querySelector("#result video");
    if (!video || video.readyState < 2) { if (++tries < 50) setTimeout(look, 200); return; }
    if (!touched) video.muted = true;
    video.play().catch(() => { video.muted = true; video.play().catch(() => {}); });
    if (touched) document.querySelector("#result").scrollIntoView({behavior: "smooth", block: "nearest"});
    document.querySelectorAll("#timeline img").forEach(img => img.alt = "what sounds when, as bars under the sound");
  };
  setTimeout(look, 200);
}
"""


def introduction(limits: Limits, bundled: bool) -> str:
    """The head of the page."""
    text = (
        f"# {TITLE}\nGive it a video: what sounds is coloured, second by second; what is silent is left alone "
        "([COMBO](https://arxiv.org/abs/2312.06462), CVPR 2024). "
    )
    if bundled:
        text += (
            "**These weights know seven animals** (bird, cat, cow, dog, hen, lion, sheep) and nothing else, for "
            "research that is not commercial. They miss what they do not hear, and real videos have not been measured."
        )
    return text


def small_print(limits: Limits) -> str:
    """The foot of the page."""
    return (
        f"Videos of at most {limits.seconds} seconds and {limits.megabytes} MB, one at a time, up to {limits.queue} "
        f"waiting. Files are deleted after about {_duration(limits.keep)}. "
        "The command `combo-hf predict` has no such limits."
    )


def _duration(seconds: int) -> str:
    return f"{round(seconds / 60)} minutes" if seconds >= 120 else f"{seconds} seconds"


def summary_text(found: Any, path: Path) -> str:
    """What sounds when, a sentence or a table, and what is to be said of the file."""
    stretches = timeline(found.result["frames"], found.result.get("fps", 1))
    lines = [f"**{found.summary}**"]
    if len(stretches) > LONG:
        labels = list(dict.fromkeys(label for label, _, _ in stretches))
        lines = [f"**{', '.join(labels)}: {len(stretches)} stretches of sound**", _table(stretches)]
    if not found.has_audio:
        lines.append("The video has no sound track: it was treated as silence.")
    if found.warnings:
        lines.append("About the file: " + " ".join(plain(text, path) for text in found.warnings[:3]))
    return "\n\n".join(lines)


def _table(stretches: Sequence[tuple[str, float, float]]) -> str:
    rows = [f"| {label} | {start:g} s | {end:g} s |" for label, start, end in stretches]
    return "\n".join(["| what | from | to |", "|---|---|---|", *rows])


def result_name(path: Path) -> str:
    """What the files of a result begin with: the visitor's name of the video, as any disk takes it."""
    return re.sub(r"[^\w .()-]", "_", path.stem)[:60].strip(" .") or "video"


def components(segment: Any, use_maskige: bool) -> tuple[list[Any], Any, Any, list[Any], Any]:
    """Inputs, the two buttons, outputs, and the place for examples: what is put in on the left, what comes out on the
    right (on a telephone below it)."""
    kinds = ["Frame", *(["Maskige"] if use_maskige else []), "heat map", "mask"]
    choice = [SUPERPIXELS, *segment.proposals]
    with gr.Row():
        with gr.Column(min_width=300):
            examples = gr.Group()
            video = gr.Video(label="Video", sources=["upload", "webcam"], elem_id="video")
            video.example_payload = lambda: SAMPLE  # gradio's own is an address, which is refused here
            with gr.Row():
                run = gr.Button("Segment", variant="primary", elem_id="run", min_width=100)
                stop = gr.Button("Stop", elem_id="stop", min_width=100)
            with gr.Accordion("Options", open=False):
                fps = gr.Dropdown(
                    [*RATES], value=AUTO, label="Frames per second", elem_id="fps",
                    info="how often the network looks; auto: once, and more often where something moves")  # fmt: skip
                classes = gr.Dropdown(
                    segment.classes, multiselect=True, label="Classes", info="only these; empty: all it knows"
                )
                threshold = gr.Slider(
                    0, 1, value=0, step=0.05, label="Threshold", info="higher: only what the network is sure of"
                )
                follow = gr.Checkbox(
                    True, label="Follow", info="masks move along with the picture between the frames looked at"
                )
                generator = gr.Dropdown(
                    choice, value=SUPERPIXELS, label="Proposals", elem_id="proposals",
                    visible=use_maskige and len(choice) > 1,
                    info="which model cuts frames into regions before the network sees them")  # fmt: skip
        with gr.Column(min_width=300):
            summary = gr.Markdown(label="Summary", elem_id="summary")
            result = gr.Video(
                label="Overlay", show_label=False, elem_id="result", interactive=False, autoplay=True)  # fmt: skip
            sounding = gr.Image(
                label="Timeline", show_label=False, elem_id="timeline", interactive=False, format="png", buttons=[],
                container=False)  # fmt: skip
    files = gr.File(label="Files", file_count="multiple", elem_id="files", interactive=False)
    gallery = gr.Gallery(
        label=", ".join(kinds), columns=len(kinds), elem_id="gallery", buttons=["fullscreen", "download"],
        height="auto", object_fit="contain", format="png", elem_classes=[f"columns-{len(kinds)}"])  # fmt: skip
    outputs = [result, summary, sounding, gallery, files]
    return [video, generator, fps, classes, threshold, follow], run, stop, outputs, examples


def show_stage(progress: gr.Progress, done: int, total: int | None) -> None:
    """One bar for the whole way; it is full when there is something to see, and not before."""
    if total and done >= total:
        progress(0.97, desc="Writing the files")
    elif total:
        progress(0.05 + 0.9 * done / total, desc=f"Segmenting window {done + 1} of {total}")
    else:
        progress(0.5, desc=f"Segmenting window {done + 1}")
