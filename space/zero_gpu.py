"""ZeroGPU Spaces: the GPU is there only inside of a function that `spaces.GPU` has wrapped, in a process of its own.

The package `spaces` is on every Space and needed nowhere: outside of ZeroGPU it gives the function back as it is.

Belongs to app.py, beside which it must lie, and which imports it before torch, as `spaces` wants.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


try:
    import spaces
except ImportError:
    spaces = None

import gradio as gr


def page_functions(segment: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What the button and the example call.

    Args:
        segment ([`Segmenter`])

    Returns:
        `segment.run` and `segment.example`; on ZeroGPU one function for both. It gives everything at once: a generator
        there runs on before gradio has copied the files that it yields. So they lie in gradio's folder, where they go
        by their age.
    """

    def at_once(
        video: str,
        proposals: str,
        fps: int,
        classes: list[str],
        threshold: float = 0.0,
        follow: bool = True,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        return segment.finish(folder, video, proposals, fps, classes, threshold, follow, progress)

    wrapped = at_once if spaces is None else spaces.GPU(at_once)
    return (segment.run, segment.example) if wrapped is at_once else (wrapped, wrapped)
