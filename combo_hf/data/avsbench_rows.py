"""Files of one AVSBench clip -> a data set row. Pictures and masks are copied byte for byte.

Two exceptions: a mask in colours (a palette, where reading grey levels would not give the labels) is rewritten as a
grey PNG of the same labels, and sound that is not 16 kHz mono is resampled and written as 16 bit flac.
Everything is decoded once on the way, so that no damaged file gets into a data set.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from combo_hf.configuration_combo import IGNORE_INDEX
from combo_hf.data.avsbench_layout import ClipEntry, find_home, parse_objects, read_entries
from combo_hf.data.row_format import SAMPLING_RATE, UNLABELLED, picture_entry, png_bytes, sound_entry, to_class_ids
from combo_hf.data.sound import read_sound
from combo_hf.data.subsets import SubsetRule, subset_rule
from combo_hf.files.pictures import load_image, open_image, read_bytes


MASKIGE_CHOICES = ("auto", "yes", "no")


@dataclass(frozen=True)
class RowOptions:
    """What goes into a row.

    Attributes:
        maskiges: "auto": those of the clips that have any, "yes": every clip must have them, "no": none.
        processed: AVSS: the 224 x 224 pictures of the official script in place of those of native size.
    """

    maskiges: str = "auto"
    processed: bool = False

    def __post_init__(self) -> None:
        if self.maskiges not in MASKIGE_CHOICES:
            raise ValueError(f"maskiges must be one of {list(MASKIGE_CHOICES)}, got {self.maskiges!r}.")


def read_rows(
    root: str | Path, subset: str, split: str, maskiges: str = "auto", processed: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of a split, read from the official folders one after the other, sorted by video_id.

    Args:
        root (`str` or `Path`): the folder of AVSBench, or of the subset.
        subset (`str`): "s4", "ms3" or "avss".
        split (`str`): "train", "val" or "test".
        maskiges, processed: see [`RowOptions`].

    Yields:
        `dict`: video_id, subset, split, category, frames, masks, label_frames, maskiges, audio; bytes, never paths.

    Raises:
        ValueError: an unknown name, a csv file with errors, or a clip with a missing or damaged file; names it.
    """
    rule, options = subset_rule(subset, processed), RowOptions(maskiges, processed)
    entries, home = read_entries(root, subset, (split,)), find_home(root, subset)
    for entry in entries:
        yield entry_to_row(entry, home, rule, options)


def entry_to_row(entry: ClipEntry, home: Path, rule: SubsetRule, options: RowOptions) -> dict[str, Any]:
    """One clip as a row, see [`read_rows`].

    Raises:
        ValueError: a missing or damaged file; names clip and file.
    """
    try:
        frames, size = _read_frames(entry.paths(home, rule, rule.frame))
        names = parse_objects(entry.category)[0] if rule.semantic else [entry.category]
        return {
            "video_id": entry.name,
            "subset": entry.subset,
            "split": entry.split,
            "category": ",".join(names),
            "frames": [picture_entry(data) for data in frames],
            "masks": [picture_entry(data) for data in _read_masks(entry, home, rule, size)],
            "label_frames": entry.label_frames,
            "maskiges": _read_maskiges(entry, home, rule, size, options.maskiges),
            "audio": _read_audio(entry, home, rule),
        }
    except ValueError as error:
        raise ValueError(f"{entry.subset} {entry.split} clip {entry.name}: {error}") from error


def grey_mask(data: bytes, rule: SubsetRule, name: str) -> tuple[bytes, np.ndarray, tuple[int, int]]:
    """A mask file as it goes into a row.

    Returns:
        The bytes (those of the file wherever both grey levels and indices read as the labels), the class indices
        (H, W), and (width, height).

    Raises:
        ValueError: damaged, in colours, or with a class that does not exist.
    """
    image = open_image(data, name)
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] in (3, 4) and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]  # grey, saved as colours
    if array.ndim != 2 or array.dtype not in (np.dtype(np.uint8), np.dtype(bool)):
        raise ValueError(f"{name} has mode {image.mode}; wanted 8 bit grey levels or indices, not colours.")
    if rule.semantic:
        ids, levels = array.astype(np.uint8), np.asarray(image.convert("L"))
        unknown = np.unique(ids[(ids >= len(rule.classes)) & (ids != IGNORE_INDEX)])[:8].tolist()
        if unknown:
            raise ValueError(
                f"{name} holds the classes {unknown}; there are 0 to {len(rule.classes) - 1}, 255 = ignored."
            )
        return (data if (levels == ids).all() else png_bytes(ids)), ids, image.size
    if image.mode == "P":  # indices may be 0 and 1, 0 and 255, or any other pair
        ids = (array > 0).astype(np.uint8)
        same = (to_class_ids(image.convert("L"), rule.name) == ids).all() and (
            to_class_ids(array, rule.name) == ids
        ).all()
    else:
        ids = to_class_ids(array, rule.name)
        same = True
    if ids.max(initial=0) > 1:
        raise ValueError(f"{name} holds the levels {np.unique(array)[:8].tolist()}; wanted 0 and 255.")
    return (data if same else png_bytes(ids * 255)), ids, image.size


@functools.lru_cache(maxsize=8)
def unlabelled_mask(size: tuple[int, int]) -> bytes:
    """PNG of (width, height) filled with 255."""
    return png_bytes(np.full(size[::-1], UNLABELLED, np.uint8))


def _read_frames(paths: Sequence[Path]) -> tuple[list[bytes], list[tuple[int, int]]]:
    frames, sizes = [], []
    for path in paths:
        data = read_bytes(path)
        image = open_image(data, path.name, decode=False)
        sizes.append(image.size)
        if image.format == "JPEG":  # decoding at an eighth of the size finds damage as well
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        load_image(image, path.name)
        frames.append(data)
    return frames, sizes


def _read_masks(entry: ClipEntry, home: Path, rule: SubsetRule, sizes: list[tuple[int, int]]) -> list[bytes]:
    masks = []
    for path, known, size in zip(entry.paths(home, rule, rule.mask), entry.label_frames, sizes, strict=True):
        if not known:
            masks.append(unlabelled_mask(size))
            continue
        data, _, got = grey_mask(read_bytes(path), rule, path.name)
        if got != size:
            raise ValueError(f"{path.name} is {got[0]} x {got[1]}, its frame {size[0]} x {size[1]}.")
        masks.append(data)
    return masks


def _read_maskiges(
    entry: ClipEntry, home: Path, rule: SubsetRule, sizes: list[tuple[int, int]], wanted: str
) -> list[dict[str, Any]] | None:
    if wanted == "no":
        return None
    place = entry.maskige_place(home, rule)
    if place is None:
        if wanted == "yes":
            raise ValueError("it has no Maskiges; generate them, or build without.")
        return None
    maskiges = []
    for path, size in zip(entry.paths(home, rule, place), sizes, strict=True):
        data = read_bytes(path)
        image = open_image(data, path.name)
        if image.size != size:
            raise ValueError(f"{path.name} is {image.width} x {image.height}, its frame {size[0]} x {size[1]}.")
        maskiges.append(picture_entry(data))
    return maskiges


def _read_audio(entry: ClipEntry, home: Path, rule: SubsetRule) -> dict[str, Any]:
    """The wav as it is if it is 16 kHz mono, else resampled; where it is missing, the sound of the raw video.

    Raises:
        ValueError: missing, damaged, without samples, or with NaN.
    """
    path = entry.path(home, rule, rule.wav)
    video = None if path.exists() else entry.video(home, rule)
    if video is not None:
        from combo_hf.media_combo import load_audio

        waveform, _ = load_audio(video)
        return sound_entry(waveform[: entry.num_frames * SAMPLING_RATE], entry.name)
    data = read_bytes(path)
    samples, rate, bad = read_sound(data, path.name)
    if bad:
        raise ValueError(f"{path.name} has {bad} samples that are NaN or infinite.")
    if rate == SAMPLING_RATE and samples.shape[1] == 1:
        return {"bytes": data, "path": f"{entry.name}.wav"}
    import torch

    from combo_hf.feature_extraction_combo import resample

    mono = torch.from_numpy(samples.mean(axis=1)).double()
    return sound_entry(resample(mono, rate).numpy(), entry.name)
