"""Pictures that may be damaged, or made by somebody else: the one place where this package opens a file of one."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

from PIL import Image


MAX_PIXELS = 50_000_000
# Pillow knows some thirty more. Of those, EPS starts a program on what it is given, and others are hardly ever tried.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


def open_image(data: bytes, name: str, decode: bool = True) -> Image.Image:
    """Open a picture, and decode it in full unless told not to.

    Raises:
        ValueError: damaged, no picture, of a format that is not read, or of more than 50 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the check below is stricter than that of Pillow's bombs
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read")
            if decode:
                image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged data raise whatever they like
        raise ValueError(f"{name} {_blame(data, error)}.") from error
    return image


def load_image(image: Image.Image, name: str) -> Image.Image:
    """Decode a picture that [`open_image`] has only opened.

    Raises:
        ValueError: damaged.
    """
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name} {_blame(b'?', error)}.") from error
    return image


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A whole file.

    Raises:
        ValueError: missing, unreadable, or larger than `limit` bytes.
    """
    try:
        if limit is not None and os.path.getsize(path) > limit:
            raise ValueError(f"{path.name} has {os.path.getsize(path)} bytes; at most {limit} are read.")
        return path.read_bytes()
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ValueError(f"{'/'.join(path.parts[-3:])} {what}.") from error


def _blame(data: bytes, error: Exception) -> str:
    if not data:
        return "is empty"
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:80]
    if type(error) is ValueError and detail.startswith("it has "):
        return f"is too large: {detail}"
    if "cannot identify image file" in detail:
        return f"is damaged or no picture that is read; use one of {', '.join(FORMATS)}"
    return f"is damaged or no picture ({detail})"
