"""Class-agnostic masks from models: `PROPOSAL_GENERATORS` maps names to builders, each loaded at first use.

generator = load_proposal_generator("mobile_sam", model="my-mobile-sam")
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any


_CLASSES = {
    "sam": ("sam", "SamProposals"),
    "mobile_sam": ("sam", "MobileSamProposals"),
    "mobile_sam_fast": ("sam", "FastMobileSamProposals"),
    "semantic_sam": ("semantic_sam", "SemanticSamProposals"),
    "sam2": ("sam", "Sam2Proposals"),
    "edgetam": ("sam", "EdgeTamProposals"),
    "cached": ("cache", "CachedProposals"),
}


def _build(name: str, **options: Any) -> Any:
    module, cls = _CLASSES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls).from_pretrained(**options)


PROPOSAL_GENERATORS: dict[str, Any] = {name: partial(_build, name) for name in _CLASSES}


def load_proposal_generator(name: str, model: Any = None, **options: Any) -> Any:
    """A generator by name.

    Args:
        name: `"superpixels"` (no weights), `"sam"`, `"mobile_sam"`, `"mobile_sam_fast"`,
            `"semantic_sam"`, `"sam2"`, `"edgetam"`.
        model: folder or Hub id of the weights.
        **options: device, dtype, grid and thresholds; see the classes.

    Raises:
        ValueError: unknown name, no weights named, or weights of another kind.
    """
    from combo_hf.proposals_combo import get_proposal_generator

    return get_proposal_generator({"name": name, **({} if model is None else {"model": model}), **options})
