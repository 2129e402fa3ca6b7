"""The page of this folder as a Space on the Hub: what the metric measures, and a try with two small masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from evaluate import load


FOLDER = Path(__file__).resolve().parent


def score(prediction: Any, reference: Any) -> dict[str, float]:
    """M_J and M_F of one frame: two pictures, bright where something sounds."""
    if prediction is None or reference is None:
        raise gr.Error("Two pictures are needed.")
    predicted, wanted = (np.asarray(picture, dtype=np.float64) / 255 for picture in (prediction, reference))
    if predicted.shape != wanted.shape:
        raise gr.Error(f"The pictures differ in size: {predicted.shape} and {wanted.shape}.")
    metric, sounding = load(str(FOLDER), "s4"), (wanted > 0.5).astype(np.int64)
    metric.add_batch(predictions=[predicted[None]], references=[sounding[None]], video_ids=["picture"])
    return {name: float(value) for name, value in metric.compute().items()}


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="avs_segmentation") as page:
        with gr.Row():
            pictures = [gr.Image(label=label, image_mode="L") for label in ("Prediction", "Reference")]
        gr.Button("Score").click(score, pictures, gr.JSON(label="Scores"), api_name="score")
        gr.Markdown((FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2])
    return page


if __name__ == "__main__":
    build().launch()
