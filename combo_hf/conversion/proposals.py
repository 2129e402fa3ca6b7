"""A converted proposal model as a folder that `from_pretrained` takes: all or nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from combo_hf.conversion.saving import check_output
from combo_hf.files.atomic import replacing_folder


CARD = """---
library_name: transformers
tags: [mask-generation, converted]
---
# {name}, converted from the official file

{consumed} entries were taken over, {dropped} dropped; each one is in `conversion_report.json`.

{terms}
"""
TERMS = "The terms of the original weights apply."


def save_converted_proposal_model(
    model: Any, report: Any, output_dir: str | Path, image_processor: Any = None, terms: str = TERMS
) -> Path:
    """Write model, image processor, card and report to a temporary folder, then give it its name.

    Args:
        model, report: what a converter returned.
        output_dir: a folder that does not exist or is empty.
        image_processor: saved beside the model; default: SAM's, for models with SAM's prompt encoder.
        terms: what the card says about the licence of the weights.

    Raises:
        ValueError: `output_dir` is a file or a folder with something in it.
    """
    target = Path(output_dir)
    check_output(target)
    if image_processor is None and hasattr(model.config, "prompt_encoder_config"):
        from combo_hf.proposals.sam import image_processor_of

        image_processor = image_processor_of(model)
    with replacing_folder(target) as temporary:
        model.save_pretrained(temporary)
        if image_processor is not None:
            image_processor.save_pretrained(temporary)
        numbers = {"consumed": len(report.consumed), "dropped": len(report.dropped)}
        card = CARD.format(name=report.preset, terms=terms, **numbers)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        facts = json.dumps(dataclasses.asdict(report), indent=1)
        (temporary / "conversion_report.json").write_text(facts, encoding="utf-8")
    return target
