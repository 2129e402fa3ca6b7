"""Data set rows (bytes of pictures and of a sound) -> the decoded clip that a transform takes.

Nothing is resized here: frames and Maskiges are RGB pictures and masks are class ids at the size they were stored in.
All pictures of a clip show the same field of view, whatever their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from combo_hf.data.row_format import REQUIRED_COLUMNS, to_class_ids
from combo_hf.data.sound import decode_sound
from combo_hf.data.subsets import OWN, SUBSETS
from combo_hf.feature_extraction_combo import ComboFeatureExtractor
from combo_hf.files.pictures import load_image, open_image
from combo_hf.maskige_combo import paint_maskige
from combo_hf.proposals_combo import get_proposal_generator


BINARY_LABELS = 2
MAX_ROW_PIXELS = 500_000_000  # of all pictures of a row: a few kB may unpack to 50 million, and a row has any number


@dataclass
class ClipPictures:
    """One decoded clip. T frames, A of them annotated.

    Attributes:
        video_id: names the clip in messages.
        frames: T RGB images.
        maskiges: T RGB images, or `None`.
        masks: A class maps, uint8 (H, W); 255 = ignored.
        label_frames: bool (T,), which frames the masks belong to.
        input_features: float32 (T, 1, 96, 64), log-mel.
    """

    video_id: str
    frames: list[Image.Image]
    maskiges: list[Image.Image] | None
    masks: list[np.ndarray]
    label_frames: torch.Tensor
    input_features: torch.Tensor


class MaskigeMaker:
    """Frames -> Maskiges by a proposal generator; may be sent to the workers of a loader.

    Args:
        source: name, dict with `"name"`, or callable, see [`get_proposal_generator`]. Generators given by name are not
            sent along (they may hold a network): every worker makes its own.

    Raises:
        ValueError, TypeError, ImportError: no such generator, see [`get_proposal_generator`].
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self._generate: Callable[[list[Image.Image]], Sequence[Any]] | None = get_proposal_generator(source)

    def __call__(self, frames: list[Image.Image]) -> list[Image.Image]:
        """One RGB Maskige per frame, of the frame's size."""
        if self._generate is None:
            self._generate = get_proposal_generator(self.source)
        proposals = self._generate(frames)
        if len(proposals) != len(frames):
            raise ValueError(f"the proposal generator gave masks for {len(proposals)} of {len(frames)} frames.")
        sizes = [(frame.height, frame.width) for frame in frames]
        pictures = (paint_maskige(masks, size) for masks, size in zip(proposals, sizes, strict=True))
        return [Image.fromarray(np.asarray(picture, dtype=np.uint8)) for picture in pictures]

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_generate": None}


def make_pictures(
    video_id: str,
    frames: Sequence[Any],
    maskiges: Sequence[Any] | None,
    waveform: Any,
    sampling_rate: int,
    masks: Sequence[Any],
    label_frames: Sequence[bool],
    num_labels: int,
) -> ClipPictures:
    """Check the parts of one clip, as the processors do at inference.

    Args:
        video_id (`str`)
        frames: T images, of any size.
        maskiges: T RGB images or uint8 (H, W, 3) arrays, or `None`.
        waveform: (N,) or with channels; silence follows if it is shorter than T seconds.
        sampling_rate (`int`): in Hz.
        masks: T label maps (H, W), of which those without annotation are not looked at; or only the A annotated ones.
        label_frames: T flags, A of them true.
        num_labels (`int`): K; other class ids are refused (255 excepted).

    Raises:
        ValueError: numbers that differ, or something that is no image, label map or sound; names the clip.
    """
    from combo_hf.image_processing_combo import to_label_map, to_rgb

    masks, label_frames = _annotated(video_id, frames, maskiges, masks, label_frames)
    try:
        features = ComboFeatureExtractor()(waveform, sampling_rate=sampling_rate, num_frames=len(frames))
        return ClipPictures(
            video_id,
            [to_rgb(frame) for frame in frames],
            None if maskiges is None else [to_rgb(picture) for picture in maskiges],
            [to_label_map(mask, num_labels) for mask in masks],
            torch.tensor(label_frames),
            features["input_features"],
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"clip {video_id}: {error}") from error


def decode_row(
    row: Mapping[str, Any],
    num_labels: int,
    use_maskige: bool = True,
    maskige_maker: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
) -> ClipPictures:
    """Decode a data set row; what is not used is not decoded.

    Args:
        row: video_id, frames, masks, label_frames, audio and, if there are any, maskiges and subset; pictures decoded
            or as `{"bytes": ...}`, sound as `{"bytes": ...}` of a file that soundfile reads.
        num_labels (`int`): K. Masks of S4 and MS3, which hold 0 and 255, become 0 and 1; so do those of an unknown
            subset if there are two classes.
        use_maskige (`bool`): off: the clip has no Maskiges, whatever the row holds.
        maskige_maker ([`MaskigeMaker`], *optional*): makes the Maskiges of rows without.

    Raises:
        ValueError: a part is missing or cannot be read; names the clip.
        ImportError: soundfile is not installed.
    """
    missing = sorted(set(REQUIRED_COLUMNS) - set(row))
    if missing:
        raise ValueError(f"row {row.get('video_id', '?')}: {missing} missing, got {sorted(row)}.")
    name = row["video_id"]
    waveform, rate = _sound(row["audio"], name)
    pictures = (row.get("maskiges") if use_maskige else None) or None
    masks, flags = _annotated(name, row["frames"], pictures, row["masks"], row["label_frames"])
    left = [MAX_ROW_PIXELS]
    frames = [_picture(image, name, left) for image in row["frames"]]
    maskiges = None if pictures is None else [_picture(image, name, left) for image in pictures]
    subset = row.get("subset")
    if subset not in (*SUBSETS, OWN):
        subset = "s4" if num_labels == BINARY_LABELS else "avss"
    labels = [_class_ids(_picture(mask, name, left), subset, name) for mask in masks]
    clip = make_pictures(name, frames, maskiges, waveform, rate, labels, flags, num_labels)
    if use_maskige and maskiges is None and maskige_maker is not None:
        clip.maskiges = maskige_maker(clip.frames)
    return clip


def require_maskiges(clip: ClipPictures) -> None:
    """Refuse a clip without Maskiges.

    Raises:
        ValueError: says what can be done.
    """
    if clip.maskiges is None:
        raise ValueError(
            f"clip {clip.video_id}: the row has no Maskiges. Build the data set with them, pass "
            "proposal_generator='superpixels' to make them while loading, or use_maskige=False for a model without."
        )


def _annotated(
    name: str, frames: Sequence[Any], maskiges: Sequence[Any] | None, masks: Sequence[Any], label_frames: Sequence[Any]
) -> tuple[list[Any], list[bool]]:
    """The masks of the annotated frames, and the flags; checks all numbers."""
    flags = [bool(flag) for flag in label_frames]
    lengths = {"frames": len(frames), "masks": len(masks), "label_frames": len(flags)}
    if maskiges is not None:
        lengths["maskiges"] = len(maskiges)
    if len(masks) == sum(flags):  # only those of the annotated frames
        lengths.pop("masks")
    if len(set(lengths.values())) != 1 or not lengths["frames"]:
        raise ValueError(f"clip {name}: frames, masks, label_frames and maskiges differ in number: {lengths}.")
    if "masks" not in lengths:
        return list(masks), flags
    return [mask for mask, known in zip(masks, flags, strict=True) if known], flags


def _sound(audio: Any, name: str) -> tuple[np.ndarray, int]:
    content = (audio or {}).get("bytes")
    if not content:
        raise ValueError(f"clip {name}: audio has no bytes; put the file itself into the row, not its path.")
    try:
        samples, rate = decode_sound(content)
        return (samples[:, 0] if samples.shape[1] == 1 else samples), rate
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"clip {name}: the sound cannot be read ({error}).") from error


def _picture(image: Any, name: str, left: list[int]) -> Any:
    """One picture of a row, of which `left[0]` more pixels are read."""
    if not isinstance(image, dict):
        return image
    if not image.get("bytes"):
        raise ValueError(f"clip {name}: a picture has no bytes; put the file itself into the row, not its path.")
    try:
        picture = open_image(image["bytes"], "a picture", decode=False)
        left[0] -= picture.width * picture.height
        if left[0] < 0:
            raise ValueError(f"the row has more than {MAX_ROW_PIXELS} pixels")
        return load_image(picture, "a picture")
    except ValueError as error:
        raise ValueError(f"clip {name}: a picture cannot be read ({error})") from error


def _class_ids(mask: Any, subset: str, name: str) -> np.ndarray:
    """Class map of one mask: 255 of S4 and MS3 is the object."""
    from combo_hf.image_processing_combo import to_label_map  # torch and torchvision: seconds, where nobody needs them

    try:
        return to_class_ids(to_label_map(mask), subset)
    except ValueError as error:
        raise ValueError(f"clip {name}: {error}") from error
