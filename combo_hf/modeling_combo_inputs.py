"""Checks of what goes into the network, tensors and weights: what does not fit is told in one clear sentence."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .configuration_combo import ComboConfig
from .modeling_combo_kernels import on_cpu


SHOWN_WEIGHTS = 3  # of each kind, in an error
MAX_HEAD = 1 << 23  # bytes of a safetensors file that tell of its tensors, some 150 for each
MAX_PARTS = 30_000  # of a network, counted again when it is filled; two PVTv2-B5 and the rest have 8,000


def frames_per_clip(num_frames: torch.Tensor | list[int] | None, total: int) -> list[int]:
    """Frames of each clip as a list; `None` means one clip of `total` frames."""
    if num_frames is None:
        return [total]
    counts = num_frames.tolist() if torch.is_tensor(num_frames) else num_frames
    if not isinstance(counts, (list, tuple)) or any(type(count) is bool or count != int(count) for count in counts):
        raise ValueError(f"num_frames: wanted whole numbers of frames (B,), one for each clip, got {num_frames!r}.")
    return [int(count) for count in counts]


def check_inputs(
    config: ComboConfig,
    pixel_values: torch.Tensor,
    maskige_values: torch.Tensor | None,
    input_features: torch.Tensor | None,
    num_frames: torch.Tensor | list[int] | None,
) -> list[int]:
    """Raise `ValueError` where the inputs of the network do not fit; returns the frames of each clip."""
    for name, values in (("pixel_values", pixel_values), ("maskige_values", maskige_values),
                         ("input_features", input_features)):  # fmt: skip
        _check_floats(name, values)
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != 3 or not shape[0] or shape[2] % 32 or shape[3] % 32 or not shape[2] * shape[3]:
        raise ValueError(
            f"pixel_values must be (F, 3, H, W), H and W multiples of 32, at least one frame; got {shape}."
        )
    if config.use_maskige:
        if maskige_values is None:
            raise ValueError(
                "maskige_values is missing; this model was built with use_maskige=True. "
                "Pass what the processor returns, or build the model with use_maskige=False."
            )
        if maskige_values.shape != pixel_values.shape:
            raise ValueError(f"maskige_values {tuple(maskige_values.shape)} must have pixel_values' shape {shape}.")
    elif maskige_values is not None:
        raise ValueError("maskige_values given, but this model was built with use_maskige=False; pass None.")
    if input_features is None:
        raise ValueError("input_features is missing: one log-mel example (1, 96, 64) per frame; silence is log(0.01).")
    embedded = (shape[0], config.audio_config["embedding_size"])
    if tuple(input_features.shape) not in ((shape[0], 1, 96, 64), embedded):
        raise ValueError(f"input_features must be ({shape[0]}, 1, 96, 64), got {tuple(input_features.shape)}.")
    clips = frames_per_clip(num_frames, shape[0])
    if sum(clips) != shape[0] or min(clips) < 1:
        raise ValueError(f"num_frames {clips} must be positive and sum to the {shape[0]} frames of pixel_values.")
    return clips


def _check_floats(name: str, values: object) -> None:
    if values is None and name != "pixel_values":  # what may be missing is for the caller to say
        return
    if not torch.is_tensor(values) or not values.is_floating_point():
        raise ValueError(f"{name}: wanted a tensor of floats, got {getattr(values, 'dtype', type(values))}.")


def check_labels(
    config: ComboConfig,
    pixel_values: torch.Tensor,
    mask_labels: list[torch.Tensor],
    class_labels: list[torch.Tensor] | None,
    label_frames: torch.Tensor | None,
    num_frames: torch.Tensor | list[int] | None,
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.Tensor | list[int] | None]:
    """Raise `ValueError` where labels do not fit the frames; returns masks, classes, `label_frames` (F,) bool, and
    `num_frames`. All but the masks are on the CPU from here on, so that a GPU is waited for once."""
    frames = len(pixel_values)
    if not all(isinstance(labels, (list, tuple)) and all(map(torch.is_tensor, labels))
               for labels in (mask_labels, [] if class_labels is None else class_labels)):  # fmt: skip
        raise ValueError("mask_labels and class_labels: wanted lists of tensors, one per annotated frame.")
    if label_frames is None:
        label_frames = torch.ones(frames, dtype=torch.bool)
    if not torch.is_tensor(label_frames) or tuple(label_frames.shape) != (frames,) or label_frames.dtype != torch.bool:
        raise ValueError(
            f"label_frames must be bool ({frames},), got {getattr(label_frames, 'dtype', type(label_frames))} "
            f"{tuple(getattr(label_frames, 'shape', ()))}."
        )
    whole = [] if class_labels is None else [ids for ids in class_labels if _is_whole(ids)]
    counts = [num_frames] if isinstance(num_frames, torch.Tensor) and _is_whole(num_frames) else []
    label_frames, *whole = on_cpu([label_frames, *whole, *counts])
    num_frames = whole.pop() if counts else num_frames
    count = int(label_frames.sum())
    if not count:
        raise ValueError("label_frames: no frame is annotated, so that there is no loss; leave the labels out.")
    if class_labels is None or not len(mask_labels) == len(class_labels) == count:
        got = (len(mask_labels), None if class_labels is None else len(class_labels))
        raise ValueError(f"mask_labels and class_labels need one entry per annotated frame: {count}; got {got}.")
    _check_targets(mask_labels, class_labels, config.num_labels, whole)
    return mask_labels, whole, label_frames, num_frames


def _is_whole(values: torch.Tensor) -> bool:
    return values.ndim == 1 and not values.is_floating_point() and not values.is_complex()


def _check_targets(
    mask_labels: list[torch.Tensor], class_labels: list[torch.Tensor], num_labels: int, ids: list[torch.Tensor]
) -> None:
    for index, (masks, classes) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if not _is_whole(classes) or masks.is_complex():
            raise ValueError(
                f"annotated frame {index}: wanted class ids (C,) and masks, got {classes.dtype}, {masks.dtype}."
            )
        if masks.ndim != 3 or len(masks) != len(classes) or not masks.shape[1] * masks.shape[2]:
            raise ValueError(f"annotated frame {index}: masks {tuple(masks.shape)} and {len(classes)} classes differ.")
        if masks.shape[1:] != mask_labels[0].shape[1:]:
            raise ValueError(f"annotated frame {index}: masks {tuple(masks.shape)}, of another size than the first.")
    joined = torch.cat(ids)
    lowest, highest = torch.stack(joined.aminmax()).tolist() if len(joined) else (0, 0)
    if lowest < 0 or highest >= num_labels:
        raise ValueError(f"class_labels: classes must be in 0..{num_labels - 1}, got {lowest} to {highest}.")


class FittingWeights:
    """To be inherited before `PreTrainedModel`: `from_pretrained` refuses weights that do not fit, and in time.

    transformers draws what a checkpoint lacks, or has in another shape, before it says so: from a small file with
    large numbers in config.json gigabytes, and then results of random numbers.
    """

    surplus_weights = False  # whether weights without a place in the network are fine
    only_safetensors: bool | None = True  # `None`: pickles, too, where there are no others

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in the base class, but weights that do not fit are refused: drawn at random, they would give results.

        Args:
            pretrained_model_name_or_path, *args, **kwargs: as in `PreTrainedModel.from_pretrained`.
            ignore_mismatched_sizes (`bool`, *optional*, defaults to `False`): make anew what is missing or of another
                shape, a class head say, and leave out what has no place; transformers logs what that is, and
                `output_loading_info=True` returns it.

        Raises:
            ValueError: weights are missing, have no place, or are of another shape; names how many and the first few.
                Or the file is damaged, or the configuration is of a network that no machine has room for.
        """
        base: Any = super()
        kwargs.setdefault("use_safetensors", cls.only_safetensors)
        if cls.only_safetensors:
            check_parts(pretrained_model_name_or_path)
        try:
            with bounded_parts():
                return base.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except torch.OutOfMemoryError:  # of a device, which may be another one
            raise
        except Exception as error:
            of_file = type(error).__module__.startswith("safetensors")
            if not of_file and not isinstance(error, (RuntimeError, KeyError)):
                raise
            what = "the weight file is damaged" if of_file else "no such network can be made"
            reason = (str(error).splitlines() or [""])[0][:200]
            raise ValueError(f"{pretrained_model_name_or_path}: {what} ({reason}).") from error

    @classmethod
    def _finalize_model_loading(cls, model: Any, load_config: Any, loading_info: Any) -> Any:
        """The step of transformers between the weights that it has read and those that it draws: those are still on
        the "meta" device, whatever their size."""
        model._adjust_missing_and_unexpected_keys(loading_info)
        kinds: dict[str, Collection[Any]] = {
            "missing": loading_info.missing_keys - model.all_tied_weights_keys.keys(),
            "without a place": () if cls.surplus_weights else loading_info.unexpected_keys,
            "of another shape": [
                f"{name} {tuple(found)} in place of {tuple(wanted)}"
                for name, found, wanted in loading_info.mismatched_keys
            ],
            "unreadable": [*loading_info.error_msgs, *loading_info.conversion_errors],
        }
        wrong = [
            f"{len(names)} {kind} ({', '.join(sorted(names)[:SHOWN_WEIGHTS])}{', ...' * (len(names) > SHOWN_WEIGHTS)})"
            for kind, names in kinds.items()
            if names
        ]
        if wrong and not load_config.ignore_mismatched_sizes:
            raise ValueError(
                f"{load_config.pretrained_model_name_or_path}: the weights do not fit the configuration: "
                f"{'; '.join(wrong)}. To have such weights made anew, for a new class head say, pass "
                "ignore_mismatched_sizes=True."
            )
        base: Any = super()
        return base._finalize_model_loading(model, load_config, loading_info)

    def load_adapter(self, peft_model_id: Any = None, *args: Any, load_config: Any = None, **kwargs: Any) -> Any:
        """As in the base class, but none that a checkpoint brings along: its weights are checked by nobody."""
        if load_config is not None and peft_model_id == load_config.pretrained_model_name_or_path:
            raise ValueError(
                f"{peft_model_id}: an adapter lies beside the weights (adapter_config.json). Move it, and load it by "
                "peft.PeftModel.from_pretrained(model, its folder) if you want it."
            )
        base: Any = super()
        return base.load_adapter(peft_model_id, *args, load_config=load_config, **kwargs)


def check_parts(folder: str | os.PathLike | None) -> None:
    """Raise `ValueError` where weights in several files name one elsewhere, or one of another kind: a pickle, say; or
    where a file tells of more tensors than any network has, which takes minutes."""
    if folder is None or not os.path.isdir(folder):
        return
    for path in Path(folder).glob("*.safetensors"):
        with open(path, "rb") as file:
            if int.from_bytes(file.read(8), "little") > MAX_HEAD:
                raise ValueError(f"{path}: the weight file is damaged (its head has more than {MAX_HEAD} bytes).")
    for index in sorted(Path(folder).glob("*.index.json")):
        try:
            names = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            wrong = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index}: damaged ({type(error).__name__}).") from error
        if wrong:
            raise ValueError(f"{index}: wanted names of safetensors files beside it, got {ascii(wrong[0])[:80]}.")


@contextmanager
def bounded_parts() -> Iterator[None]:
    """While a network is built, as a configuration of a stranger wants it: not for minutes, of a million parts.

    Raises:
        ValueError: more than `MAX_PARTS` parameters and modules.
    """
    thread, count = threading.get_ident(), itertools.count(1)

    def check(module: torch.nn.Module, name: str, part: Any) -> None:
        if threading.get_ident() == thread and next(count) > MAX_PARTS:
            raise ValueError(f"the configuration is of a network of more than {MAX_PARTS} parts, which is not built.")

    registrations = torch.nn.modules.module
    hooks = (
        registrations.register_module_module_registration_hook(check),
        registrations.register_module_parameter_registration_hook(check),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
