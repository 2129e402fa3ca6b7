"""What the pipeline returns: a dict, and as other forms of it plain data, COCO, detections, a sheet in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from combo_hf.results.pictures import contact_sheet, summarize
from combo_hf.results.records import result_record, segment_record


if TYPE_CHECKING:
    from supervision import Detections


SHEET_COLUMNS = 10
SHEET_TILE = 160  # pixels


class SegmentationResult(dict[str, Any]):
    """The result of one input: the keys that [`AudioVisualSegmentationPipeline`] documents, and other forms of them.

    Args:
        facts: the keys.
        pictures: a small picture of every frame, for the sheet.
        peaks: lowest and highest sample of every stretch of the sound, alternating, for the sheet.
    """

    def __init__(
        self, facts: Mapping[str, Any], pictures: Sequence[Image.Image] = (), peaks: np.ndarray | None = None
    ) -> None:
        super().__init__(facts)
        self._pictures, self._peaks = list(pictures), peaks

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts for `json.dumps`, as in the JSON file of `combo-hf predict` (docs/results.md)."""
        return result_record({**self, "frames": [self._frame_record(frame) for frame in self["frames"]]})

    def to_coco(self, file_name: str = "{index:06d}_{timestamp:.3f}s.png") -> dict[str, Any]:
        """A COCO data set: an image for every frame, an annotation with RLE and score for every segment.

        Args:
            file_name: of the images; `{index}` and `{timestamp}` are filled in. The default is what
                `combo-hf predict --masks` calls its pictures.
        """
        width, height = self["size"]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, frame in enumerate(self["frames"]):
            name = file_name.format(index=index, timestamp=frame["timestamp"])
            images.append({"id": index + 1, "width": width, "height": height, "file_name": name})
            for segment in self._frame_record(frame)["segments"]:
                place = {"id": len(annotations) + 1, "image_id": index + 1, "iscrowd": 0}
                annotations.append({**place, **{key: segment[key] for key in segment if key != "label"}})
        categories = [{"id": index, "name": label} for index, label in self["labels"].items() if index]
        return {"images": images, "annotations": annotations, "categories": categories}

    def to_supervision(self) -> list[Detections]:
        """`supervision.Detections` of every frame: masks, boxes, scores, class ids, and `data["class_name"]`.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ImportError("to_supervision needs the library supervision: pip install supervision") from error
        width, height = self["size"]
        found = []
        for frame in self["frames"]:
            records = self._frame_record(frame)["segments"]
            boxes = np.array([record["bbox"] for record in records], dtype=np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]  # left, top, right, bottom
            masks = [np.asarray(segment["mask"]) > 0 for segment in frame["segments"]]
            found.append(
                Detections(
                    xyxy=boxes,
                    mask=np.array(masks, dtype=bool).reshape(-1, height, width),
                    confidence=np.array([record["score"] for record in records], dtype=np.float32),
                    class_id=np.array([record["category_id"] for record in records], dtype=int),
                    data={"class_name": np.array([record["label"] for record in records], dtype=str)},
                )
            )
        return found

    def sheet(self) -> Image.Image:
        """Contact sheet of at most ten frames, evenly spread, over the sound."""
        frames = list(self["frames"])
        for number, picture in enumerate(self._pictures[: len(frames)]):
            frames[number] = _small(frames[number], picture)
        columns = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), SHEET_COLUMNS)).round().astype(int))
        kept = {**self, "frames": [frames[column] for column in columns]}
        waveform = self.get("waveform", self._peaks)
        return contact_sheet(kept, waveform, SHEET_TILE, summarize(self))

    def _repr_html_(self) -> str:
        """The sheet, as notebooks show it: one picture inside the text, nothing is fetched."""
        summary = html.escape(summarize(self))
        stored = io.BytesIO()
        self.sheet().save(stored, "PNG")
        data = base64.b64encode(stored.getvalue()).decode("ascii")
        picture = f'<img src="data:image/png;base64,{data}" alt="{summary}">'
        return f"<figure>{picture}<figcaption>{summary}</figcaption></figure>"

    def _frame_record(self, frame: Mapping[str, Any]) -> dict[str, Any]:
        ids = {label: index for index, label in self["labels"].items()}
        segments = [segment_record(segment, ids[segment["label"]]) for segment in frame["segments"]]
        return {"timestamp": frame["timestamp"], "segments": segments}


def _small(frame: Mapping[str, Any], picture: Image.Image) -> dict[str, Any]:
    """A frame with its small picture, and its maps at that size."""
    maps: dict[str, Any] = {"image": picture, "maskige": frame.get("maskige")}
    label_map = Image.fromarray(np.asarray(frame["label_map"]).astype(np.int32))
    maps["label_map"] = np.asarray(label_map.resize(picture.size, Image.Resampling.NEAREST))
    if frame.get("heat_map") is not None:
        heat = Image.fromarray(np.asarray(frame["heat_map"], dtype=np.float32))
        maps["heat_map"] = np.asarray(heat.resize(picture.size, Image.Resampling.BILINEAR))
    return {**frame, **maps}
