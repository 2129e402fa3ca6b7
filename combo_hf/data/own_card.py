"""The card of a data set of own videos: written after a build, and again when its Maskiges were made."""

from __future__ import annotations

import json
from pathlib import Path

from combo_hf.data.row_format import clips_with_maskiges, count_rows
from combo_hf.data.subsets import OWN, SPLITS
from combo_hf.files.atomic import write_text


OWN_RECORD = "build-own.json"
CARD = """---
pretty_name: Own audio-visual segmentation data
task_categories: [image-segmentation]
tags: [audio-visual-segmentation]
configs:
- config_name: own
  default: true
  data_files:
{files}---

# Own audio-visual segmentation data

Made by `combo-hf data build --from`: clips of up to {clip_seconds} s with one frame a second.

| split | videos | clips | annotated frames | clips with Maskiges |
|---|---|---|---|---|
{counts}
```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", "own", split="{first}")
names = rows.features["classes"].feature.names  # {classes}
```

- `masks`: class indices; 0 is background, 255 is ignored, and fills the frames without annotation (see `label_frames`)
- an annotated frame without a class: nothing sounds in that second
- `classes`, `category`: what sounds in the clip
- `audio`: 16 kHz mono flac
{skipped}"""


def write_own_card(output: Path) -> None:
    """Write README.md from the tables themselves.

    Args:
        output (`Path`): folder with build-own.json and complete files.
    """
    import pyarrow.parquet

    record = json.loads((output / OWN_RECORD).read_text(encoding="utf-8"))
    files = counts = skipped = ""
    splits = [split for split in SPLITS if split in record["videos"]]
    for split in splits:
        clips = frames = with_maskiges = 0
        for path in sorted((output / "data" / OWN).glob(f"{split}-*-of-*.parquet")):
            metadata = pyarrow.parquet.read_metadata(path).metadata or {}
            left_out = json.loads(metadata.get(b"combo_hf.skipped", b"[]"))
            more, annotated = count_rows(path)
            clips, frames, with_maskiges = clips + more, frames + annotated, with_maskiges + clips_with_maskiges(path)
            skipped += "".join(f"- {split}: {name}: {reason}\n" for name, reason in left_out)
        files += f"  - split: {split}\n    path: data/{OWN}/{split}-*.parquet\n"
        counts += f"| {split} | {record['videos'][split]} | {clips} | {frames} | {with_maskiges} |\n"
    text = CARD.format(
        files=files,
        clip_seconds=record["clip_seconds"],
        counts=counts,
        first=splits[0],
        classes=", ".join(record["classes"]),
        skipped=f"\nLeft out because something is missing or damaged:\n\n{skipped}" if skipped else "",
    )
    write_text(output / "README.md", text)
