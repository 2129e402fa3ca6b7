"""A converted model as a folder: safetensors, processor, model card and report, all or nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from combo_hf.conversion.official import ConversionReport
from combo_hf.files.atomic import replacing_folder
from combo_hf.publishing.card import build_card, find_origin


def save_converted(model: Any, report: ConversionReport, output_dir: str | Path, processor: Any = None) -> Path:
    """Write model, processor, card and report to a temporary folder, then give it its name.

    Args:
        model, report: what `convert_official_checkpoint` returned.
        output_dir: a folder that does not exist or is empty.
        processor: default: `ComboProcessor` with the model's image size and clip length.

    Raises:
        ValueError: `output_dir` is a file or a folder with something in it.
    """
    target = Path(output_dir)
    check_output(target)
    if processor is None:
        from combo_hf.image_processing_combo import ComboImageProcessor
        from combo_hf.processing_combo import ComboProcessor

        side = model.config.image_size
        images = ComboImageProcessor(size={"height": side, "width": side}, num_labels=model.config.num_labels)
        processor = ComboProcessor(images, num_frames=model.config.num_frames)
    with replacing_folder(target) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        (temporary / "conversion_report.json").write_text(
            json.dumps(dataclasses.asdict(report), indent=1), encoding="utf-8"
        )
        card = build_card(model.config, target.name, find_origin(temporary))
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return target


def check_output(target: Path) -> None:
    """Raise `ValueError` unless `target` is free or an empty folder; to be asked before minutes of work."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; choose another output folder.")
