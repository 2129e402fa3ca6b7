"""A converted model as a folder: safetensors, processor, model card and report, all or nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .official import ConversionReport


CARD = """---
library_name: transformers
license: other
license_name: official-release-and-avsbench
tags: [audio-visual-segmentation, combo, converted]
---
# COMBO {preset}, converted from the official release

The weights of an official checkpoint (https://github.com/yannqi/COMBO-AVS) under the names of `combo_hf`.
Bound to the terms of the release and, because they were trained on AVSBench (CC BY-NC 4.0), to non-commercial use.

| entries | number |
|---|---|
| taken over | {consumed} |
| dropped | {dropped} |
| not in the file | {missing} |

Each one, with its reason, is in `conversion_report.json`.

## Differences from the official code
`audio_query_layout` is "official": a query hears the frame that it hears in the release with a batch of one clip.
The release mixes clips of a batch, this model does not. `consistency_window` is 5, as released.
Bilateral fusion: {fusion}.
"""


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
        from ..image_processing_combo import ComboImageProcessor
        from ..processing_combo import ComboProcessor

        side = model.config.image_size
        images = ComboImageProcessor(size={"height": side, "width": side})
        processor = ComboProcessor(images, num_frames=model.config.num_frames)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        numbers = {name: len(getattr(report, name)) for name in ("consumed", "dropped", "missing")}
        fusion = "on" if model.config.fusion else "off"
        card = CARD.format(preset=report.preset, fusion=fusion, **numbers)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        (temporary / "conversion_report.json").write_text(
            json.dumps(dataclasses.asdict(report), indent=1), encoding="utf-8"
        )
        temporary.chmod(0o755)  # mkdtemp gives 0o700, which others on the machine could not read
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def check_output(target: Path) -> None:
    """Raise `ValueError` unless `target` is free or an empty folder; to be asked before minutes of work."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; choose another output folder.")
