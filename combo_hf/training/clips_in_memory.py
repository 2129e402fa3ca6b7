"""Clips in memory for training and evaluation: the data set [`ClipTensors`] and its makers.

Everything that costs time (decoding, proposals, Maskiges, log-mel) is done once and kept as uint8; a training step
only normalises. 1000 clips of 5 frames at 96 x 96 take 0.4 GB.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from combo_hf.data.collate import SILENCE, Augmentation, ClipExample, example_generator, plain_example
from combo_hf.data.rows import make_pictures
from combo_hf.data.synthetic.dataset import GENERATION, ID2LABEL, plan_clip, synthesize_clip
from combo_hf.files.atomic import replacing
from combo_hf.files.npz import read_npz
from combo_hf.files.pool import run_tasks
from combo_hf.files.progress import Progress


CACHE_VERSION = 1  # raise when what is written into a cache file changes
LABELS = ("binary", "semantic")
CLIPS_OF_A_PROCESS = 10  # at least: to start one takes as long as to make these
SOURCE_SIZE = 224  # films are not made at the input size either: frames are reduced and proposals found at full size


class ClipTensors(torch.utils.data.Dataset):
    """Clips as tensors, with optional augmentation.

    Args:
        examples (list of [`ClipExample`]): at least one.
        augmentation ([`Augmentation`], *optional*): `None`: clips as they are.
        seed (`int`): of the augmentation.
        silence_audio (`bool`): every log-mel is that of silence, to measure what the sound contributes.
        blank_maskige (`bool`): every Maskige is black, to measure what the Maskiges contribute.

    Raises:
        ValueError: no clip.
    """

    def __init__(
        self,
        examples: Sequence[ClipExample],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        silence_audio: bool = False,
        blank_maskige: bool = False,
    ) -> None:
        if not examples:
            raise ValueError("a data set needs at least one clip.")
        self.examples = list(examples)
        self.augmentation = augmentation
        self.seed, self.epoch = seed, 0
        self.silence_audio, self.blank_maskige = silence_audio, blank_maskige

    def set_epoch(self, epoch: int) -> None:
        """Other augmentation from here on; Accelerate's loader calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> ClipExample:
        example = self.examples[index]
        if self.silence_audio:
            silence = torch.full_like(example.input_features, SILENCE)
            example = dataclasses.replace(example, input_features=silence)
        if self.blank_maskige and example.maskiges is not None:
            example = dataclasses.replace(example, maskiges=torch.zeros_like(example.maskiges))
        if self.augmentation is None:
            return example
        return self.augmentation(example, example_generator(self.seed, self.epoch, index))

    def variant(self, **changes: Any) -> ClipTensors:
        """The same clips (shared, not copied) with other `augmentation`, `seed`, `silence_audio`, `blank_maskige`."""
        kept = {name: getattr(self, name) for name in ("augmentation", "seed", "silence_audio", "blank_maskige")}
        return ClipTensors(self.examples, **{**kept, **changes})


def synthetic_labels(labels: str) -> dict[int, str]:
    """Class names that belong to `labels`, "binary" or "semantic"; for `ComboConfig(id2label=...)`.

    Raises:
        ValueError: another value.
    """
    if labels not in LABELS:
        raise ValueError(f"labels: wanted one of {list(LABELS)}, got {labels!r}.")
    return dict(ID2LABEL) if labels == "semantic" else {0: "background", 1: "sounding object"}


def prepare_synthetic(
    kind: str,
    seed: int,
    num_clips: int,
    split: str = "train",
    image_size: int = 96,
    labels: str = "binary",
    num_processes: int = 1,
    cache: str | Path | None = None,
    num_frames: int | None = None,
    progress: bool = True,
) -> ClipTensors:
    """Synthetic clips with superpixel Maskiges, ready to train on. About 0.6 s per clip and process.

    Args:
        kind (`str`): "s4", "ms3" or "avss", see `combo_hf.data.synthetic`.
        seed (`int`): of the data set.
        num_clips (`int`): at least 1.
        split (`str`): "train", "val" or "test".
        image_size (`int`): side in pixels.
        labels (`str`): "binary": sounding or not; "semantic": class ids of `ID2LABEL`.
        num_processes (`int`): at most; above 1, the calling script needs the `if __name__ == "__main__"` guard.
        cache (`str` or `Path`, *optional*): .npz file to read, if it was made with the same arguments, or to write.
        num_frames (`int`, *optional*): seconds per clip; default: what the kind has.
        progress (`bool`): show a bar on a terminal.

    Returns:
        [`ClipTensors`] without augmentation, see `variant`.

    Raises:
        ValueError: unknown names or numbers out of range.
    """
    if num_clips < 1 or num_processes < 1 or image_size < 32:
        raise ValueError(
            "wanted num_clips >= 1, num_processes >= 1 and image_size >= 32, got "
            f"{num_clips}, {num_processes} and {image_size}."
        )
    plan_clip(kind, seed, 0, split, num_frames)  # refuses bad names before any work is done
    synthetic_labels(labels)
    settings = {
        "version": [CACHE_VERSION, GENERATION],
        "clips": [kind, seed, num_clips, split, num_frames],
        "size": [SOURCE_SIZE, image_size],
        "labels": labels,
    }
    path = None if cache is None else Path(cache)
    if path is not None and path.is_file():
        examples = load_examples(path, settings)
        if examples is not None:
            return ClipTensors(examples)
    make = partial(_synthetic_example, kind, seed, split, image_size, labels, num_frames)
    examples = _run(make, num_clips, num_processes, f"{kind} {split} clips", progress)
    if path is not None:
        save_examples(examples, path, settings)
    return ClipTensors(examples)


def save_examples(examples: Sequence[ClipExample], path: str | Path, settings: dict[str, Any]) -> None:
    """Write clips, packed along F, and the settings that made them into one .npz file (plain arrays, no pickle)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "settings": np.array(json.dumps(settings)),
        "video_ids": np.array([example.video_id for example in examples]),
        "num_frames": np.array([len(example.frames) for example in examples]),
    }
    for name in ("frames", "maskiges", "input_features", "masks", "label_frames"):
        if getattr(examples[0], name) is not None:
            arrays[name] = torch.cat([getattr(example, name) for example in examples]).numpy()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_examples(path: str | Path, settings: dict[str, Any] | None = None) -> list[ClipExample] | None:
    """Read what [`save_examples`] wrote; `None` if it was made with other settings than those given.

    Raises:
        ValueError: the file is no such cache, or damaged.
    """
    try:
        if settings is not None:  # first: an outdated file may have gigabytes
            found = read_npz(path, names=["settings"])["settings"]
            if json.loads(str(found)) != json.loads(json.dumps(settings)):
                return None
        arrays = read_npz(path)
        counts = arrays["num_frames"].tolist()
        tensors = {
            name: torch.from_numpy(arrays[name]) if name in arrays else None
            for name in ("frames", "maskiges", "input_features", "masks", "label_frames")
        }
        labelled = [int(flags.sum()) for flags in torch.from_numpy(arrays["label_frames"]).split(counts)]
        pieces: dict[str, Any] = {
            name: [None] * len(counts) if values is None else values.split(labelled if name == "masks" else counts)
            for name, values in tensors.items()
        }
        ids = arrays["video_ids"].tolist()
        return [
            ClipExample(ids[index], **{name: values[index] for name, values in pieces.items()})
            for index in range(len(counts))
        ]
    except (KeyError, ValueError, RuntimeError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no cache of prepared clips, or damaged ({error}); remove it.") from error


def _synthetic_example(
    kind: str, seed: int, split: str, image_size: int, labels: str, num_frames: int | None, index: int
) -> ClipExample:
    from combo_hf.maskige_combo import paint_maskige
    from combo_hf.proposals_combo import SuperpixelProposals

    clip = synthesize_clip(kind, seed, index, split, SOURCE_SIZE, num_frames)
    proposals = SuperpixelProposals()(clip.frames)
    pictures = make_pictures(
        clip.video_id,
        clip.frames,
        [paint_maskige(masks, (image_size, image_size)) for masks in proposals],
        clip.waveform,
        clip.sampling_rate,
        [mask if labels == "semantic" else np.minimum(mask, 1) for mask in clip.masks],
        clip.label_frames,
        len(synthetic_labels(labels)),
    )
    return plain_example(pictures, image_size)


def _run(
    make: Callable[[int], ClipExample], count: int, num_processes: int, name: str, progress: bool
) -> list[ClipExample]:
    """[make(0), make(1), ...], in several processes if wanted and worth it."""
    num_processes = max(1, min(num_processes, count // CLIPS_OF_A_PROCESS))
    examples: dict[int, ClipExample] = {}
    with Progress(name, "clip", count, shown=progress) as bar:
        for index, video_id, arrays in run_tasks(partial(_as_arrays, make), range(count), num_processes):
            examples[index] = ClipExample(video_id, *(torch.from_numpy(array) for array in arrays))
            bar.advance()
    return [examples[index] for index in range(count)]


def _as_arrays(make: Callable[[int], ClipExample], index: int) -> tuple[int, str, list[np.ndarray]]:
    """Tensors would travel between processes as shared memory, of which containers have little."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)
    example = make(index)
    names = [field.name for field in dataclasses.fields(example)[1:]]
    return index, example.video_id, [getattr(example, name).numpy() for name in names]
