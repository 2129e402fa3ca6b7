"""What a data set row is: its columns, and how its masks are read.

One row is one clip of T frames with their sound:

    video_id, subset, split, category   strings; `category`: names of what sounds, with commas between
    frames                              T pictures
    masks                               T pictures of mode L; those of frames without annotation hold 255 everywhere
    label_frames                        T flags: which frames are annotated
    maskiges                            T pictures, or null
    audio                               bytes of a 16 kHz mono file that soundfile reads
    classes                             only where a data set brings its own classes: those that sound, as `ClassLabel`
                                        with all names, background first

Files go into rows as bytes, never as paths.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from combo_hf.data.subsets import holds_indices
from combo_hf.files.parquet import open_parquet


SAMPLING_RATE = 16000
UNLABELLED = 255  # fills the masks of frames without annotation
REQUIRED_COLUMNS = ("video_id", "frames", "masks", "label_frames", "audio")
READ_COLUMNS = (*REQUIRED_COLUMNS, "subset", "maskiges")
COLUMN_TYPES = {"frames": "a list of images", "masks": "a list of images", "label_frames": "a list of booleans"}
HINT = (
    "`combo-hf data build` writes such rows from AVSBench or from your own files, `combo-hf data synthesize` from "
    "synthetic clips."
)


def row_features(class_names: Sequence[str] | None = None) -> Any:
    """The `datasets.Features` of the rows.

    Args:
        class_names (*optional*): background first; adds the column `classes`, which carries these names wherever the
            data set goes (see [`class_names_of`]).

    Raises:
        ImportError: `datasets` is missing.
    """
    try:
        from datasets import Audio, ClassLabel, Features, Image, List, Value
    except ImportError as error:
        raise ImportError("data set rows need `datasets`: pip install 'combo-hf[train]'") from error
    strings = {name: Value("string") for name in ("video_id", "subset", "split", "category")}
    images = {"frames": List(Image()), "masks": List(Image(mode="L")), "label_frames": List(Value("bool"))}
    # decode=False: decoding (and encoding through `datasets`) would need torchcodec and a system FFmpeg
    others = {"maskiges": List(Image()), "audio": Audio(sampling_rate=SAMPLING_RATE, decode=False)}
    classes = {} if class_names is None else {"classes": List(ClassLabel(names=list(class_names)))}
    return Features(strings | images | others | classes)


def class_names_of(features: Mapping[str, Any] | None) -> list[str] | None:
    """Names of the classes of a data set, background first, where it brings its own; class k is `names[k]`.

    Args:
        features: `dataset.features`.
    """
    inner = getattr((features or {}).get("classes"), "feature", None)
    names = getattr(inner, "names", None)
    return None if names is None else list(names)


def check_columns(features: Mapping[str, Any] | None, name: str = "the data set") -> None:
    """Refuse rows that are no clips.

    Args:
        features: `datasets.Features`, or `None`, which says nothing and passes.
        name (`str`): of the data set, for the message.

    Raises:
        ValueError: says which columns are missing or of another type.
    """
    if features is None:
        return
    missing = [column for column in REQUIRED_COLUMNS if column not in features]
    if missing:
        raise ValueError(f"{name}: columns {missing} are missing, there are {list(features)}. {HINT}")
    for column, wanted in COLUMN_TYPES.items():
        if not hasattr(features[column], "feature") and not isinstance(features[column], list):
            raise ValueError(f"{name}: column {column!r} must hold {wanted}, got {features[column]}. {HINT}")


def to_class_ids(mask: Any, subset: str) -> np.ndarray:
    """An annotated mask of a row -> class indices.

    S4 and MS3 come as 0 and 255: 255 is the object there, and not "ignored". Grey levels between are cut at one half.
    Masks that hold class indices already (0 and 1, or those of the synthetic sets) stay as they are, and so do AVSS
    and own data.

    Args:
        mask: PIL image (a palette gives its indices) or integers (H, W).
        subset (`str`): "s4", "ms3", "avss" or "own".

    Returns:
        `np.ndarray` (H, W) uint8.

    Raises:
        ValueError: an unknown subset, or another number of axes.
    """
    semantic = holds_indices(subset)
    if isinstance(mask, Image.Image) and mask.mode not in ("1", "L", "P"):
        mask = mask.convert("L")
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"wanted a mask of shape (H, W), got {array.shape}; colours are not class indices.")
    array = array.astype(np.uint8)
    if semantic or array.max(initial=0) < 71:
        return array
    values = np.flatnonzero(np.bincount(array.ravel(), minlength=256))
    soft = ((values > 70) & (values < 255)).any()
    return array if ((values > 0) & (values < 71)).any() and not soft else (array > 127).astype(np.uint8)


def clips_with_maskiges(path: Path) -> int:
    """Rows of a parquet file that have Maskiges; their pictures are not read."""
    with open_parquet(path) as file:
        column = file.read(columns=["maskiges.list.element.path"])["maskiges"]
    return sum(bool(value) for value in column.to_pylist())


def count_rows(path: Path) -> tuple[int, int]:
    """Rows of a parquet file, and how many of their frames are annotated."""
    with open_parquet(path) as file:
        flags = file.read(columns=["label_frames"])["label_frames"].to_pylist()
    return len(flags), sum(map(sum, flags))


def picture_entry(data: bytes) -> dict[str, Any]:
    """A picture as it stands in a row."""
    return {"bytes": data, "path": None}


def sound_entry(waveform: np.ndarray, name: str) -> dict[str, Any]:
    """A mono waveform (N,) of 16 kHz as it stands in a row: 16 bit flac."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return {"bytes": buffer.getvalue(), "path": f"{name}.flac"}


def png_bytes(picture: Image.Image | np.ndarray, compress_level: int = 6) -> bytes:
    """A picture, or an array that Pillow takes, as a PNG file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()
