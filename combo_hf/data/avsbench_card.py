"""The card of a built data set, and the way to the Hub (private only: AVSBench may not be handed on)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from combo_hf.data.own_card import OWN_RECORD, write_own_card
from combo_hf.data.row_format import clips_with_maskiges
from combo_hf.data.subsets import SUBSETS, subset_rule
from combo_hf.files.atomic import write_text


CARD = """---
pretty_name: AVSBench ({names})
license: cc-by-nc-4.0
task_categories: [image-segmentation]
tags: [audio-visual-segmentation, avsbench]
configs:
{configs}---

# AVSBench as parquet ({names})

Made by `combo-hf data build` from the official folders of AVSBench. **Not to be handed on:** AVSBench is under
[CC BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), for research only, and its authors give it out on
request; ask them by the form or e-mail address at <https://github.com/OpenNLPLab/AVSBench>. Keep this repository
private. Weights trained on these data are for non-commercial use.

| config | split | rows | official |
|---|---|---|---|
{counts}
```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", "{first}", split="{split}")
```

One row is one clip of T seconds with one frame a second: 5, and 10 in the v2 part of AVSS.

- `video_id`, `subset`, `split`, `category` (S4: category; AVSS: names of what sounds, with commas between)
- `frames`: T pictures, the bytes of the official files{sizes}
- `masks`: T pictures of mode L; frames without annotation hold 255 everywhere, see `label_frames`
{masks}
- `label_frames`: T flags
- `maskiges`: T pictures, or null where the folders held none ({maskiges})
- `audio`: the bytes of a 16 kHz mono file (`soundfile.read(io.BytesIO(row["audio"]["bytes"]))`): the official wav as
  it is; flac where it had another rate or more channels, or came from the raw video
{skipped}
## Citation

Zhou et al., Audio-Visual Segmentation, ECCV 2022; Zhou et al., Audio-Visual Segmentation with Semantics, 2023.
"""


def write_card(output: Path) -> None:
    """Write README.md for all subsets that were built into a folder.

    Args:
        output (`Path`): folder with build-<subset>.json files and complete shards.
    """
    records = _records(output)
    configs, counts, skipped = "", "", ""
    for number, (subset, record) in enumerate(records.items()):
        configs += f"- config_name: {subset}\n" + ("  default: true\n" if number == 0 else "") + "  data_files:\n"
        for split in record["splits"]:
            rows, left_out = _count(output / "data" / subset, split)
            configs += f"  - split: {split}\n    path: data/{subset}/{split}-*.parquet\n"
            counts += f"| {subset} | {split} | {rows} | {subset_rule(subset).counts[split]} |\n"
            skipped += "".join(f"- {subset} {split}: {name}\n" for name, _ in left_out)
    names = ", ".join(subset.upper() for subset in records)
    first = next(iter(records))
    processed = records.get("avss", {}).get("processed", False)
    text = CARD.format(
        names=names,
        configs=configs,
        counts=counts,
        first=first,
        split=records[first]["splits"][0],
        sizes=""
        if "avss" not in records
        else " (AVSS: processed, 224 x 224)"
        if processed
        else " (AVSS: native size)",
        masks="\n".join(f"  - {subset.upper()}: {subset_rule(subset).mask_text}" for subset in records),
        maskiges=", ".join(f"{s.upper()}: {r['clips_with_maskiges']} clips have them" for s, r in records.items()),
        skipped=f"\nLeft out because a file is missing or damaged:\n\n{skipped}" if skipped else "",
    )
    write_text(output / "README.md", text)


def refresh_card(output: Path) -> None:
    """Bring the counts of a built data set up to date after its Maskiges were made; other folders stay as they are.

    Args:
        output (`Path`): folder with complete tables, of AVSBench or of own data.
    """
    records = _records(output)
    if not all("clips_with_maskiges" in record for record in records.values()):  # somebody else's
        return
    for subset, record in records.items():
        tables = sorted((output / "data" / subset).glob("*-*-of-*.parquet"))
        record["clips_with_maskiges"] = sum(clips_with_maskiges(path) for path in tables)
        write_text(output / f"build-{subset}.json", json.dumps(record, indent=2, sort_keys=True) + "\n")
    if records:
        write_card(output)
    if (output / OWN_RECORD).is_file():
        write_own_card(output)


def push_dataset(folder: str | Path, repo_id: str, private: bool, token: str | None = None) -> str:
    """Upload a built data set to a private repository of the Hub.

    Args:
        folder (`str` or `Path`): what [`build_dataset`] wrote.
        repo_id (`str`): "name/data-set"; made if it is not there.
        private (`bool`): must be `True`.
        token (`str`, *optional*): default the one of `hf auth login`.

    Returns:
        `str`: the address of the commit.

    Raises:
        ValueError: not private, no built folder, or a repository that others can see.
        OSError: the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not private:
        raise ValueError(
            "AVSBench may not be handed on (CC BY-NC 4.0, on request only); push to a private repository."
        )
    if not (folder / "README.md").is_file() or not _records(folder):
        raise ValueError(f"{folder} is no complete build; run `combo-hf data build` first.")
    subsets = list(_records(folder))
    api = HfApi(token=token)
    with _plain_errors(repo_id):
        api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
        if not api.repo_info(repo_id, repo_type="dataset").private:
            raise ValueError(f"{repo_id} exists and is public; make it private or choose another name.")
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=["README.md", "build-*.json", *(f"data/{subset}/*.parquet" for subset in subsets)],
            ignore_patterns=["**/.partial-*", ".partial-*"],
            # shards of an earlier build with another number of files would double the rows
            delete_patterns=[f"data/{subset}/*.parquet" for subset in subsets],
            commit_message=f"AVSBench {', '.join(subsets)}",
        )
    return str(commit.commit_url)


@contextmanager
def _plain_errors(repo_id: str) -> Iterator[None]:
    """One line for whatever the network and the Hub do; by name, since the client's HTTP library has changed."""
    try:
        yield
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if not isinstance(error, OSError) and "TransportError" not in names:
            raise
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OSError(f"{repo_id}: the upload failed ({text}); the build is complete, push it again.") from error


def _records(output: Path) -> dict[str, dict[str, Any]]:
    paths = {subset: output / f"build-{subset}.json" for subset in SUBSETS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def _count(folder: Path, split: str) -> tuple[int, list[Any]]:
    import pyarrow.parquet

    rows, skipped = 0, []
    for path in sorted(folder.glob(f"{split}-*-of-*.parquet")):
        metadata = pyarrow.parquet.read_metadata(path)
        rows += metadata.num_rows
        skipped += json.loads((metadata.metadata or {}).get(b"combo_hf.skipped", b"[]"))
    return rows, skipped
