"""What a case is, and the inputs that several cases share."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from combo_hf.benchmarking.machine import Machine
from combo_hf.benchmarking.report import Result
from combo_hf.benchmarking.timing import Variant
from combo_hf.configuration_combo import ComboConfig
from combo_hf.label_maps_combo import class_scores
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation


@dataclass
class Settings:
    """How large the work is.

    Attributes:
        quick: small networks, videos and clips: shows that everything runs, the times mean nothing.
        compile: also `torch.compile`, which takes minutes.
        seed: of weights and inputs.
        device: of the network; the parts around it stay on the processor.
    """

    quick: bool = False
    compile: bool = False
    seed: int = 0
    device: str = "cpu"


@dataclass
class Case:
    """A piece of work and the ways to do it; the first variant is the baseline.

    Attributes:
        name: `group/...`, what `--only` looks for.
        build: makes the variants; called when the case is reached, what it holds is let go afterwards.
        counted: torch does the work, so that its operations can be counted.
        agree: tells from two outputs how close they are; the baseline's comes first.
        rounds: fewer for long work.
        measure: in place of `build`, where variants do not fit: (settings, machine, name) -> lines of the table.
        gpu: has something to say about a GPU; where one is used, only such cases run.
    """

    name: str
    build: Callable[[Settings], Sequence[Variant]] = lambda settings: ()
    counted: bool = True
    agree: Callable[[Any, Any], str] | None = None
    rounds: int | None = None
    measure: Callable[[Settings, Machine, str], list[Result]] | None = None
    gpu: bool = False


@dataclass
class ClipInputs:
    """Packed network inputs of some clips, with labels: keyword arguments of the model."""

    network: dict[str, Any]
    labels: dict[str, Any] = field(default_factory=dict)


class TemporaryFolder:
    """A folder for as long as somebody holds this object: variants keep it in what they run."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="combo-benchmark-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def make_config(backbone: str, settings: Settings, **overrides: Any) -> ComboConfig:
    """The released AVSS network of a backbone, or the tiny one with `quick`."""
    name = "tiny" if settings.quick else f"{backbone}-avss"
    return ComboConfig.from_preset(name, **overrides)


def make_model(backbone: str, settings: Settings, **overrides: Any) -> ComboForAudioVisualSegmentation:
    """A network of random weights in evaluation mode."""
    torch.manual_seed(settings.seed)
    return ComboForAudioVisualSegmentation(make_config(backbone, settings, **overrides)).eval().to(settings.device)


def make_inputs(config: ComboConfig, clips: Sequence[int], seed: int = 0, device: str = "cpu") -> ClipInputs:
    """Smooth random pictures, noise as sound, and labels of three classes in each frame.

    Args:
        config: of the network.
        clips: frames of each clip.
        seed: of the numbers.
        device: of the tensors; the numbers are the same on all.
    """
    rng = torch.Generator().manual_seed(seed)
    frames, side = sum(clips), config.image_size

    def pictures() -> torch.Tensor:
        coarse = torch.randn(frames, 3, side // 16, side // 16, generator=rng)
        return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") * 1.5

    network = {
        "pixel_values": pictures(),
        "maskige_values": pictures(),
        "input_features": torch.randn(frames, 1, 96, 64, generator=rng),
        "num_frames": torch.tensor(list(clips)),
    }
    classes = sorted({0, 1, (config.num_labels or 1) - 1})
    regions = torch.randint(len(classes), (frames, side // 32, side // 32), generator=rng)
    regions = regions.repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels = {
        "mask_labels": [torch.stack([(frame == i).float() for i in range(len(classes))]) for frame in regions],
        "class_labels": [torch.tensor(classes)] * frames,
    }
    network = {name: value.to(device) for name, value in network.items()}
    labels = {name: [value.to(device) for value in values] for name, values in labels.items()}
    return ClipInputs(network, labels)


def label_maps(classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Class of every pixel (F, h, w) of class logits (F, Q, K + 1) and mask logits (F, Q, h, w)."""
    frames = zip(classes, masks, strict=True)
    return torch.stack([class_scores(frame, maps, maps.shape[-2:]).argmax(0) for frame, maps in frames])


def largest_difference(wanted: Any, got: Any) -> str:
    """Largest absolute difference of two arrays or numbers, relative to the largest value."""
    wanted, got = (np.asarray(torch.as_tensor(value).float().cpu()) for value in (wanted, got))
    if wanted.shape != got.shape:
        return f"shapes {wanted.shape}, {got.shape}"
    return f"rel {np.abs(wanted - got).max() / max(np.abs(wanted).max(), 1e-12):.0e}"
