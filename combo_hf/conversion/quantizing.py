"""An ONNX file of the network with 8-bit convolutions and linear layers, for processors.

Static quantisation by onnxruntime: weights per output channel, activations by the range that they have on clips.
Everything else (attention, norms, the reads of deformable attention) stays in float32.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from combo_hf.conversion.exporting import INPUTS, OUTPUTS, export_onnx, onnx_session, quiet, require
from combo_hf.files.atomic import replacing
from combo_hf.label_maps_combo import input_size, segment
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.pipeline_combo_inputs import WindowInputs
from combo_hf.processing_combo import ComboProcessor


QUANTIZED = ("Conv", "MatMul", "Gemm")
CALIBRATION_WINDOWS = 8
ROUNDS = 5

Inputs = dict[str, np.ndarray]


@dataclass
class Quantized:
    """What [`export_int8`] measured on the clips that it did not calibrate with, or on all, if there are too few.

    Attributes:
        equal_labels: share of pixels with the same class.
        masks: largest difference of the mask logits, relative to their largest magnitude.
        seconds, float_seconds: CPU time of a clip on one thread, 8-bit and float32, in alternation; medians.
        bytes, float_bytes: of the files.
        windows: that were compared.
    """

    equal_labels: float
    masks: float
    seconds: float
    float_seconds: float
    bytes: int
    float_bytes: int
    windows: int


def export_int8(
    model: ComboForAudioVisualSegmentation,
    processor: ComboProcessor,
    path: str | Path,
    videos: Sequence[str | Path],
    num_frames: int | None = None,
) -> Quantized:
    """Write an ONNX file with 8-bit products.

    Args:
        model: [`ComboForAudioVisualSegmentation`], float32.
        processor: of the same checkpoint.
        path: file to write, `.onnx`.
        videos: their windows say how large activations become. Every second window is for that, the others for the
            comparison; 8 of each at most.
        num_frames: T; default the model's `config.num_frames`.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: no window of `num_frames` frames in the videos; `MediaError`: one that cannot be read.
    """
    require("onnxruntime")
    frames = num_frames or model.config.num_frames
    windows = list(_windows(model, processor, videos, frames))
    if not windows:
        raise ValueError(f"int8: the videos have no stretch of {frames} s to calibrate with; pass longer ones.")
    known, others = windows[::2], windows[1::2] or windows
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="combo-int8-") as folder:
        whole = Path(folder) / "float.onnx"
        export_onnx(model, whole, frames)
        with replacing(path) as file:
            _quantize(whole, file, known)
            return _compare(whole, file, others)


def _windows(
    model: ComboForAudioVisualSegmentation, processor: ComboProcessor, videos: Sequence[str | Path], frames: int
) -> Iterator[Inputs]:
    """Network inputs of at most 16 windows of `frames` s, from all videos in turn."""
    prepare = WindowInputs(processor, frames, model.config.use_maskige)
    open_ones = [iter(prepare(video)) for video in videos]
    count = 0
    while open_ones and count < 2 * CALIBRATION_WINDOWS:
        for source in list(open_ones):
            item = next(source, None)
            if item is None or len(item["window"].frames) != frames:  # the rest of a video is shorter
                open_ones.remove(source)
                continue
            count += 1
            yield {name: values.numpy() for name, values in item["inputs"].items() if name in INPUTS}


def _quantize(source: Path, target: Path, windows: Sequence[Inputs]) -> None:
    quantization: Any = require("onnxruntime.quantization")
    prepare: Any = require("onnxruntime.quantization.shape_inference")
    folded = source.with_name("folded.onnx")  # batch norms inside the weights, or these would stay in float32
    remaining = iter(windows)
    reader = type("Windows", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(remaining, None)})
    with quiet():
        prepare.quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded), str(target), reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(QUANTIZED), extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip


def _labels(classes: torch.Tensor, masks: torch.Tensor) -> list[torch.Tensor]:
    return [segment(*frame, size=input_size(masks)).labels for frame in zip(classes, masks, strict=True)]


def _compare(whole: Path, small: Path, windows: Sequence[Inputs]) -> Quantized:
    sessions = [onnx_session(path, threads=1) for path in (whole, small)]
    seconds: list[list[float]] = [[], []]
    equal, masks = [], []
    for number, inputs in enumerate(islice(cycle(windows), max(len(windows), ROUNDS))):
        outputs = []
        for session, spent in zip(sessions, seconds, strict=True):
            start = time.process_time()
            outputs.append([torch.from_numpy(values) for values in session.run(list(OUTPUTS), inputs)])
            spent.append(time.process_time() - start)
        if number < len(windows):
            wanted, got = (_labels(*pair) for pair in outputs)
            equal += [(one == other).float().mean().item() for one, other in zip(wanted, got, strict=True)]
            masks.append(float((outputs[0][1] - outputs[1][1]).abs().max() / outputs[0][1].abs().max()))
    return Quantized(
        statistics.mean(equal), max(masks), statistics.median(seconds[1]), statistics.median(seconds[0]),
        small.stat().st_size, whole.stat().st_size, len(windows),
    )  # fmt: skip
