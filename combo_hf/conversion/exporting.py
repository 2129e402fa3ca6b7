"""The network as a graph: `torch.export` programs and ONNX files.

What is exported is one clip of T frames, of a fixed number or any, without labels: frames, Maskiges and log-mel in,
class and mask logits out. Reading videos, Maskiges, log-mel and the label maps out of the logits stay in Python
([`ComboProcessor`]).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from combo_hf.configuration_combo import ComboConfig
from combo_hf.files.atomic import replacing
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


INPUTS = ("pixel_values", "maskige_values", "input_features")
OUTPUTS = ("class_queries_logits", "masks_queries_logits")
SUFFIXES = (".onnx", ".pt2")
MOST_FRAMES = 1000
OPSET = 18  # bilinear Resize, GridSample and LayerNormalization as one operator each
TOLERANCE = 1e-4  # of the largest magnitude of an output


class ClipNetwork(nn.Module):
    """One clip through the network: `(pixel_values, [maskige_values,] input_features)` -> two tensors."""

    def __init__(self, model: ComboForAudioVisualSegmentation) -> None:
        super().__init__()
        self.model = model
        self.use_maskige = model.config.use_maskige

    def forward(self, pixel_values: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Args: pixel_values, and maskige_values if used, (T, 3, H, W); input_features (T, 1, 96, 64)."""
        maskige_values, input_features = rest if self.use_maskige else (None, rest[0])
        out = self.model(pixel_values, maskige_values, input_features)
        return out.class_queries_logits, out.masks_queries_logits


def example_inputs(config: ComboConfig, num_frames: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs of the right shapes, by name: `(T, 3, H, W)` twice (once without Maskige), `(T, 1, 96, 64)`."""
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}.")
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    values = {name: torch.randn(num_frames, 3, size, size, generator=generator) for name in INPUTS[:2]}
    values["input_features"] = torch.randn(num_frames, 1, 96, 64, generator=generator) - 3
    return values if config.use_maskige else {key: value for key, value in values.items() if key != INPUTS[1]}


def export_program(
    model: ComboForAudioVisualSegmentation, num_frames: int | None = None, any_frames: bool = False
) -> torch.export.ExportedProgram:
    """`torch.export` of the network for clips of `num_frames` frames.

    Args:
        model: [`ComboForAudioVisualSegmentation`], float32.
        num_frames: T; default the model's `config.num_frames`.
        any_frames: the graph takes clips of 1 to 1000 frames; `num_frames` is only what it is traced with.

    Raises:
        ValueError: fewer than one frame.
    """
    model = model.eval().cpu()
    frames = num_frames or model.config.num_frames
    inputs = tuple(example_inputs(model.config, max(2, frames) if any_frames else frames).values())
    shapes: Any = None
    if any_frames:
        shape = {0: torch.export.Dim("frames", min=1, max=MOST_FRAMES)}
        shapes = (shape, (shape,) * (len(inputs) - 1))  # the second: *rest
    with torch.no_grad(), quiet():
        return torch.export.export(ClipNetwork(model), inputs, dynamic_shapes=shapes)


def save_program(
    model: ComboForAudioVisualSegmentation, path: str | Path, num_frames: int | None = None, any_frames: bool = False
) -> dict[str, float]:
    """Write a `torch.export` program (`torch.export.load` reads it), compared as [`export_onnx`] does it.

    Returns:
        Largest difference of each output, relative to its largest magnitude.

    Raises:
        RuntimeError: the program does not compute what the network computes; nothing is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = num_frames or model.config.num_frames
    program = export_program(model, frames, any_frames)
    with replacing(path) as file:
        with quiet():
            # Not to the file itself: where the disk is full, torch's own writer ends the process (torch 2.14).
            torch.export.save(program, content := io.BytesIO())
            file.write_bytes(content.getbuffer())
            loaded = torch.export.load(file).module()
        differences = _largest(partial(_compare_program, model, loaded), frames, any_frames)
        _check_differences(differences)
    return differences


def _compare_program(model: ComboForAudioVisualSegmentation, loaded: Any, num_frames: int) -> dict[str, float]:
    inputs = example_inputs(model.config, num_frames, seed=1)
    with torch.no_grad():
        return _differences(loaded(*inputs.values()), ClipNetwork(model)(*inputs.values()))


def _largest(compare: Callable[[int], dict[str, float]], num_frames: int, any_frames: bool) -> dict[str, float]:
    """Differences with clips of `num_frames`, and where any number will do, also of one frame and of one more."""
    found = [compare(number) for number in ((1, num_frames, num_frames + 1) if any_frames else (num_frames,))]
    return {name: max(differences[name] for differences in found) for name in OUTPUTS}


def export_onnx(
    model: ComboForAudioVisualSegmentation, path: str | Path, num_frames: int | None = None, any_frames: bool = False
) -> dict[str, float]:
    """Write an ONNX file, and compare it with PyTorch on random inputs before it gets its name.

    Args:
        model: [`ComboForAudioVisualSegmentation`], float32.
        path: file to write; weights are inside it.
        num_frames, any_frames: as in [`export_program`]. A file for any number is compared at two numbers.

    Returns:
        Largest difference of each output, relative to its largest magnitude.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        RuntimeError: the file does not compute what PyTorch computes (difference above 1e-4); nothing is left.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = num_frames or model.config.num_frames
    program = export_program(model, frames, any_frames)
    names = list(example_inputs(model.config, frames))
    with replacing(path) as file:
        with quiet():
            exported: Any = torch.onnx.export(
                program, input_names=names, output_names=list(OUTPUTS), opset_version=OPSET, dynamo=True, verbose=False
            )
            assert exported is not None  # it is only where a file is named
            exported.save(file, external_data=False)
        differences = _largest(partial(compare_onnx, model, file), frames, any_frames)
        _check_differences(differences)
    return differences


def compare_onnx(
    model: ComboForAudioVisualSegmentation, path: str | Path, num_frames: int, seed: int = 1
) -> dict[str, float]:
    """Run file and network on the same random inputs; difference of each output relative to its largest magnitude."""
    inputs = example_inputs(model.config, num_frames, seed)
    with torch.no_grad():
        wanted = ClipNetwork(model.eval().cpu())(*inputs.values())
    got = onnx_session(path).run(list(OUTPUTS), {name: values.numpy() for name, values in inputs.items()})
    return _differences([torch.from_numpy(values) for values in got], wanted)


def onnx_session(path: str | Path, threads: int = 0) -> Any:
    """An onnxruntime session on the processor; threads: 0 as many as there are cores."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _differences(got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> dict[str, float]:
    return {
        name: float((mine - theirs).abs().max() / theirs.abs().max())
        for name, mine, theirs in zip(OUTPUTS, got, wanted, strict=True)
    }


def _check_differences(differences: dict[str, float]) -> None:
    if not all(difference <= TOLERANCE for difference in differences.values()):  # also refuses NaN
        raise RuntimeError(
            f"the file differs from PyTorch by more than {TOLERANCE:.0e}: {differences}; nothing written."
        )


def require(package: str) -> Any:
    """A package of the extra "export"; `ImportError` says how it is installed."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"ONNX export needs {package}: pip install 'combo-hf[export]'") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter prints its steps and logs what it could not simplify."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
