"""A converted model as a folder that `from_pretrained` takes: weights, processor, card and report, all or nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from combo_hf.conversion.fill import ConversionReport
from combo_hf.files.atomic import replacing_folder
from combo_hf.publishing.card import build_card, find_origin


PROPOSAL_CARD = """---
library_name: transformers
pipeline_tag: mask-generation
tags: [mask-generation, converted]
---
# {name}, converted from the official file

{consumed} entries were taken over, {dropped} dropped; each one is in `conversion_report.json`.

{terms}
"""
TERMS = "The terms of the original weights apply."


def save_converted(model: Any, report: ConversionReport, output_dir: str | Path, processor: Any = None) -> Path:
    """Write what [`convert_official_checkpoint`] returned.

    Args:
        model ([`ComboForAudioVisualSegmentation`]), report: what was converted.
        output_dir: a folder that does not exist or is empty.
        processor: default: `ComboProcessor` with the model's image size and clip length.

    Raises:
        ValueError: `output_dir` is a file or a folder with something in it.
    """
    check_output(output_dir)
    if processor is None:
        from combo_hf.image_processing_combo import ComboImageProcessor
        from combo_hf.processing_combo import ComboProcessor

        side = model.config.image_size
        images = ComboImageProcessor(size={"height": side, "width": side}, num_labels=model.config.num_labels)
        processor = ComboProcessor(images, num_frames=model.config.num_frames)
    return _save(model, report, output_dir, processor, None)


def save_converted_proposal_model(
    model: Any, report: ConversionReport, output_dir: str | Path, image_processor: Any = None, terms: str = TERMS
) -> Path:
    """Write what [`convert_sam`], [`convert_mobile_sam`] or [`convert_semantic_sam`] returned.

    Args:
        model, report: what was converted.
        output_dir: a folder that does not exist or is empty.
        image_processor: saved beside the model; default: SAM's, for models with SAM's prompt encoder.
        terms: what the card says about the licence of the weights.

    Raises:
        ValueError: `output_dir` is a file or a folder with something in it.
    """
    check_output(output_dir)
    if image_processor is None and hasattr(model.config, "prompt_encoder_config"):
        from combo_hf.proposals.sam import image_processor_of

        image_processor = image_processor_of(model)
    numbers = {"consumed": len(report.consumed), "dropped": len(report.dropped)}
    card = PROPOSAL_CARD.format(name=report.preset, terms=terms, **numbers)
    return _save(model, report, output_dir, image_processor, card)


def check_output(output_dir: str | Path) -> None:
    """Raise `ValueError` unless a folder is free or empty; to be asked before minutes of work."""
    target = Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; choose another output folder.")


def _save(model: Any, report: ConversionReport, output_dir: str | Path, processor: Any, card: str | None) -> Path:
    """Write everything or nothing; without a card, the one of a checkpoint."""
    target = Path(output_dir)
    with replacing_folder(target) as folder:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        facts = json.dumps(dataclasses.asdict(report), indent=1)
        (folder / "conversion_report.json").write_text(facts, encoding="utf-8")
        if card is None:
            card = build_card(model.config, target.name, find_origin(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")
    return target
