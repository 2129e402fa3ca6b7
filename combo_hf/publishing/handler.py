"""Hugging Face Inference Endpoints: a video in, what sounds in it out. Published beside the weights.

A request is the video itself (its bytes, with the header `Content-Type: video/mp4`) or JSON,
`{"inputs": "<the video in base64>", "parameters": {"fps": 2}}`; parameters are those of the pipeline. An address is
not fetched: whoever asks could name one inside the machine's own network. The answer is JSON, masks are PNG pictures
in base64.

    {"frames": [{"timestamp": 0.5, "segments": [{"label": "dog", "score": 0.93, "mask": "<PNG>"}]}, ...]}
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from transformers import pipeline


class EndpointHandler:
    """What an endpoint loads once and calls for every request.

    Args:
        path: folder of the repository, whose own code is run.
    """

    def __init__(self, path: str = "") -> None:
        task: Any = "audio-visual-segmentation"  # not among those whose types transformers lists
        self.pipe: Any = pipeline(task, model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answer a request.

        Args:
            data: `inputs`, a video as bytes or in base64; `parameters` of the pipeline, if any.

        Returns:
            JSON-able: `frames`, each with `timestamp` and `segments`; or `error`, in words.
        """
        try:
            result = self.pipe(_video(data.get("inputs")), **(data.get("parameters") or {}))
        except (ValueError, TypeError, OSError) as error:
            return {"error": str(error)}
        frames = []
        for frame in result["frames"]:
            segments = [{**segment, "mask": _png(segment["mask"])} for segment in frame["segments"]]
            frames.append({"timestamp": frame["timestamp"], "segments": segments})
        return {"frames": frames}


def _video(inputs: Any) -> bytes:
    if isinstance(inputs, (bytes, bytearray)):
        return bytes(inputs)
    if not isinstance(inputs, str):
        raise TypeError(f"inputs: wanted a video as bytes or in base64, got {type(inputs).__name__}.")
    try:
        return base64.b64decode(inputs.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("inputs: wanted a video in base64; addresses and paths are not read.") from error


def _png(mask: Any) -> str:
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
