"""Masks kept on disk: a generator wrapped so that no frame is segmented twice with the same settings and weights.

generator = {"name": "mobile_sam", "model": "my-mobile-sam"}
pipe = combo_hf.load_pipeline(proposal_generator={"name": "cached", "folder": "mask-cache", "generator": generator})
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from combo_hf.files.atomic import remove_leftovers, replacing
from combo_hf.files.npz import read_npz
from combo_hf.proposals_combo import get_proposal_generator


MAX_ENTRY_BYTES = 1 << 30  # 255 masks of 4K take 265 MB


class CachedProposals:
    """A `ProposalGenerator` that looks into a folder first.

    An entry is found by the frame's pixels and by everything the masks depend on (options and weights, not the name
    of the file or of the folder of weights). Several processes may share a folder; a damaged entry is made again.

    Args:
        generator: name, dict or generator with `to_dict()`.
        folder (`str` or `Path`): made at the first entry. About 50 to 300 kB per frame.
        max_entries (`int`, *optional*): of more than so many the oldest go; default: no limit.

    Raises:
        TypeError: a generator that cannot say what its masks depend on.
        ValueError: `max_entries` below 1.
    """

    name: ClassVar[str] = "cached"

    def __init__(self, generator: Any, folder: str | Path, max_entries: int | None = None) -> None:
        if max_entries is not None and max_entries < 1:
            raise ValueError(f"max_entries: wanted at least 1, got {max_entries}.")
        self.generator: Any = get_proposal_generator(generator)  # with a to_dict(), which is looked for below
        self.folder, self.max_entries = Path(folder), max_entries
        self.identity = identity_of(self.generator)
        self.hits = self.misses = 0
        remove_leftovers(self.folder, deep=True)

    @classmethod
    def from_pretrained(cls, generator: Any, folder: str | Path, max_entries: int | None = None) -> CachedProposals:
        """As the class; under this name the dict of generators looks for it."""
        return cls(generator, folder, max_entries)

    def to_dict(self) -> dict[str, Any]:
        """Folder, limit, and the generator's own dict."""
        return {
            "name": self.name,
            "generator": self.generator.to_dict(),
            "folder": str(self.folder),
            "max_entries": self.max_entries,
        }

    def __call__(self, frames: list[Image.Image]) -> list[np.ndarray]:
        """Masks of frames, bool (K, H, W) each."""
        return [self._masks(frame) for frame in frames]

    def _masks(self, frame: Image.Image) -> np.ndarray:
        path = self.path(frame)
        masks = read_masks(path)
        if masks is not None and masks.shape[1:] == (frame.height, frame.width):
            self.hits += 1
            with suppress(OSError):
                os.utime(path)  # the oldest entry is the one longest unused
            return masks
        self.misses += 1
        masks = self.generator([frame])[0]
        write_masks(path, masks)
        if self.max_entries is not None:
            self._prune(self.max_entries)
        return masks

    def path(self, frame: Image.Image) -> Path:
        """File of a frame's entry, whether it is there or not."""
        frame = frame.convert("RGB")
        digest = hashlib.sha256(json.dumps([self.identity, frame.size], sort_keys=True).encode())
        digest.update(frame.tobytes())
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key}.npz"

    def _prune(self, count: int) -> None:
        """Remove the oldest entries above so many."""
        entries = []
        for path in self.folder.glob("??/*.npz"):
            with suppress(OSError):  # another process may have removed it
                entries.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(entries)[:-count]:
            path.unlink(missing_ok=True)


def identity_of(generator: Any) -> dict[str, Any]:
    """Everything that the masks of a generator depend on, as JSON.

    Raises:
        TypeError: it does not say.
    """
    describe = getattr(generator, "identity", None) or getattr(generator, "to_dict", None)
    if isinstance(generator, CachedProposals):
        return generator.identity
    if describe is None:
        raise TypeError(
            f"{type(generator).__name__} has no to_dict() that says what its masks depend on; a cache needs that."
        )
    return describe()


def read_masks(path: Path) -> np.ndarray | None:
    """Masks of an entry, bool (K, H, W); `None` if it is missing or damaged."""
    try:
        entry = read_npz(path, MAX_ENTRY_BYTES)
        packed, shape = entry["packed"], tuple(entry["shape"].tolist())
        count = math.prod(shape)
        if len(shape) != 3 or min(shape) < 0 or packed.shape != (-(-count // 8),):
            return None
        return np.unpackbits(packed, count=count).reshape(shape).astype(bool)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_masks(path: Path, masks: np.ndarray) -> None:
    """Write masks, bool (K, H, W), under a temporary name, then give the file its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, packed=np.packbits(masks), shape=np.array(masks.shape))
