"""Files of one AVSBench clip -> a data set row. Pictures and masks are copied byte for byte.

Two exceptions: a mask in colours (a palette, where reading grey levels would not give the labels) is rewritten as a
grey PNG of the same labels, and sound that is not 16 kHz mono is resampled and written as 16 bit flac.
Everything is decoded once on the way, so that no damaged file gets into a data set.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.data.avsbench_audio import read_audio, read_bytes, read_log_mel
from combo_hf.data.avsbench_layout import ClipEntry, SubsetRule, find_home, parse_objects, read_entries, subset_rule


UNLABELLED = 255  # fills the masks of frames without annotation
IGNORE_INDEX = 255
MAX_PIXELS = 50_000_000
MASKIGE_CHOICES = ("auto", "yes", "no")


@dataclass(frozen=True)
class RowOptions:
    """What goes into a row.

    Attributes:
        maskiges: "auto": those of the clips that have any, "yes": every clip must have them, "no": none.
        log_mel: also the official pickled log-mel examples, in a column of their own.
        processed: AVSS: the 224 x 224 pictures of the official script in place of those of native size.
    """

    maskiges: str = "auto"
    log_mel: bool = False
    processed: bool = False

    def __post_init__(self) -> None:
        if self.maskiges not in MASKIGE_CHOICES:
            raise ValueError(f"maskiges must be one of {list(MASKIGE_CHOICES)}, got {self.maskiges!r}.")


def built_features(log_mel: bool = False) -> Any:
    """The `datasets.Features` of the rows: those of `combo_hf.data.synthetic`, and `log_mel` (n * 96 * 64 numbers)."""
    from combo_hf.data.synthetic.dataset import row_features

    features = row_features()
    if log_mel:
        from datasets import List, Value

        features["log_mel"] = List(Value("float32"))
    return features


def read_rows(
    root: str | Path, subset: str, split: str, maskiges: str = "auto", log_mel: bool = False, processed: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows of a split, read from the official folders one after the other, sorted by video_id.

    Args:
        root (`str` or `Path`): the folder of AVSBench, or of the subset.
        subset (`str`): "s4", "ms3" or "avss".
        split (`str`): "train", "val" or "test".
        maskiges, log_mel, processed: see [`RowOptions`].

    Yields:
        `dict`: video_id, subset, split, category, frames, masks, label_frames, maskiges, audio; bytes, never paths.

    Raises:
        ValueError: an unknown name, a csv file with errors, or a clip with a missing or damaged file; names it.
    """
    rule, options = subset_rule(subset, processed), RowOptions(maskiges, log_mel, processed)
    entries, home = read_entries(root, subset, (split,)), find_home(root, subset)
    for entry in entries:
        yield read_row(entry, home, rule, options)


def read_row(entry: ClipEntry, home: Path, rule: SubsetRule, options: RowOptions) -> dict[str, Any]:
    """One clip as a row, see [`read_rows`].

    Raises:
        ValueError: a missing or damaged file; names clip and file.
    """
    try:
        frames, size = _read_frames(entry.paths(home, rule, rule.frame))
        names = parse_objects(entry.category)[0] if rule.semantic else [entry.category]
        row = {
            "video_id": entry.name,
            "subset": entry.subset,
            "split": entry.split,
            "category": ",".join(names),
            "frames": [_stored(data) for data in frames],
            "masks": [_stored(data) for data in _read_masks(entry, home, rule, size)],
            "label_frames": entry.label_frames,
            "maskiges": _read_maskiges(entry, home, rule, size, options.maskiges),
            "audio": read_audio(entry, home, rule),
        }
        if options.log_mel:
            path = entry.path(home, rule, rule.log_mel)
            row["log_mel"] = read_log_mel(path, entry.num_frames, padded=rule.semantic).reshape(-1)
    except ValueError as error:
        raise ValueError(f"{entry.subset} {entry.split} clip {entry.name}: {error}") from error
    return row


def open_image(data: bytes, name: str, decode: bool = True) -> Image.Image:
    """Open a picture, and decode it in full unless told not to.

    Raises:
        ValueError: damaged, no picture, or of more than 50 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read.")
        if decode:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        what = "is empty" if not data else f"is damaged or no picture ({str(error).splitlines()[0][:80]})"
        raise ValueError(f"{name} {what}.") from error
    return image


def to_class_ids(mask: Any, subset: str) -> np.ndarray:
    """An annotated mask of a row -> class indices.

    S4 and MS3 come as 0 and 255: 255 is the object there, and not "ignored". Grey levels between are cut at one half.
    Masks that hold class indices already (0 and 1, or those of the synthetic sets) stay as they are, and so does AVSS.

    Args:
        mask: PIL image (a palette gives its indices) or integers (H, W).
        subset (`str`): "s4", "ms3" or "avss".

    Returns:
        `np.ndarray` (H, W) uint8.

    Raises:
        ValueError: an unknown subset, or another number of axes.
    """
    rule = subset_rule(subset)
    if isinstance(mask, Image.Image) and mask.mode not in ("1", "L", "P"):
        mask = mask.convert("L")
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"wanted a mask of shape (H, W), got {array.shape}; colours are not class indices.")
    array = array.astype(np.uint8)
    if rule.semantic or array.max(initial=0) < 71:
        return array
    values = np.flatnonzero(np.bincount(array.ravel(), minlength=256))
    return array if ((values > 0) & (values < 71)).any() and not _is_soft(values) else (array > 127).astype(np.uint8)


def _is_soft(values: np.ndarray) -> bool:
    return bool(((values > 70) & (values < 255)).any())


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
        return (data if (levels == ids).all() else _png(ids)), ids, image.size
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
    return (data if same else _png(ids * 255)), ids, image.size


@functools.lru_cache(maxsize=8)
def unlabelled_mask(size: tuple[int, int]) -> bytes:
    """PNG of (width, height) filled with 255."""
    return _png(np.full(size[::-1], UNLABELLED, np.uint8))


def _read_frames(paths: Sequence[Path]) -> tuple[list[bytes], list[tuple[int, int]]]:
    frames, sizes = [], []
    for path in paths:
        data = read_bytes(path)
        image = open_image(data, path.name, decode=False)
        sizes.append(image.size)
        if image.format == "JPEG":  # decoding at an eighth of the size finds damage as well
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        try:
            image.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path.name} is damaged ({str(error).splitlines()[0][:80]}).") from error
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
    found = []
    for path, size in zip(entry.paths(home, rule, place), sizes, strict=True):
        data = read_bytes(path)
        image = open_image(data, path.name)
        if image.size != size:
            raise ValueError(f"{path.name} is {image.width} x {image.height}, its frame {size[0]} x {size[1]}.")
        found.append(_stored(data))
    return found


def _stored(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()
