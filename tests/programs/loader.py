"""Clips per second of the training loader, beside reading the official folders through PIL directly.

    python tests/programs/loader.py --clips 48 --workers 2 --rounds 5

Synthetic clips are written in the official layout of S4 (224 x 224 PNG, Maskiges, wav) and built into parquet; then
every loader runs whole epochs, one after the other in each round, so that a machine that is busy for a while is so for
all of them. Workers live on and the first round, in which they start and files get into memory, is not counted.

    folders, PIL      what a plain data set does: open every picture and the wav of a clip, log-mel, no augmentation
    rows, plain       `AvsbenchClips` over the built parquet, no augmentation
    rows, training    the same with the official augmentation, colours drawn once per clip (the default)
    rows, official    the same with colours drawn for every picture, as released
    lazy, training    `dataset.with_transform(ComboTransform(...))`, the default augmentation

All of them are collated by `ComboCollator` in the workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from combo_hf.benchmarking.parts import OfficialFolders
from combo_hf.data.avsbench import build_dataset
from combo_hf.data.clips import AvsbenchClips, ComboTransform
from combo_hf.data.collate import ClipExample, ComboCollator
from combo_hf.data.loading import load_avsbench
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.data.transforms import build_transform
from combo_hf.feature_extraction_combo import ComboFeatureExtractor


BASELINE = "folders, PIL"


class Folders(OfficialFolders):
    """The S4 training folders, read as they are; the log-mel is the package's, or no two data sets would be equal."""

    def features(self, waveform: np.ndarray, rate: int) -> torch.Tensor:
        return ComboFeatureExtractor()(waveform, sampling_rate=rate, num_frames=5)["input_features"]


def data_sets(root: Path) -> dict[str, torch.utils.data.Dataset]:
    """What is compared, by name."""
    rows = load_avsbench(root / "built", "train", subset="s4", cache_dir=root / "cache")
    training = build_transform("s4", True)
    official = build_transform("s4", True, official_jitter=True, official_maskige_resize=True)
    return {
        BASELINE: Folders(root),
        "rows, plain": AvsbenchClips(rows),
        "rows, training": AvsbenchClips(rows, training),
        "rows, official": AvsbenchClips(rows, official),
        "lazy, training": rows.with_transform(ComboTransform(training)),
    }


def check_same(one: ClipExample, other: ClipExample) -> None:
    """The two ways to read must give the same clip, or the comparison is none."""
    for name in ("video_id", "frames", "maskiges", "masks", "input_features", "label_frames"):
        ours, theirs = getattr(one, name), getattr(other, name)
        if not (torch.equal(ours, theirs) if torch.is_tensor(ours) else ours == theirs):
            raise SystemExit(f"{name} of the two data sets differ")


def seconds_per_epoch(loader: torch.utils.data.DataLoader) -> float:
    begin = time.perf_counter()
    clips = sum(len(batch["video_ids"]) for batch in loader)
    if clips != len(loader.dataset):
        raise SystemExit(f"{clips} clips came out of {len(loader.dataset)}")
    return time.perf_counter() - begin


def measure(root: Path, workers: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Clips per second of every loader in every counted round."""
    sets = data_sets(root)
    check_same(sets[BASELINE][0], sets["rows, plain"][0])
    generator = torch.Generator().manual_seed(0)
    loaders = {
        name: torch.utils.data.DataLoader(
            clips,
            batch,
            shuffle=True,
            num_workers=workers,
            collate_fn=ComboCollator(),
            persistent_workers=workers > 0,
            generator=generator,
        )
        for name, clips in sets.items()
    }
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name, loader in loaders.items():
            speed = len(loader.dataset) / seconds_per_epoch(loader)
            if number:
                speeds[name].append(speed)
    return speeds


def report(speeds: dict[str, list[float]]) -> None:
    """A table; ratios are medians of the ratios within a round."""
    print(f"{'loader':16} {'clips/s':>8} {'lowest':>8} {'highest':>8} {'ratio':>7}")
    for name, values in speeds.items():
        ratio = statistics.median(value / base for value, base in zip(values, speeds[BASELINE], strict=True))
        print(f"{name:16} {statistics.median(values):8.1f} {min(values):8.1f} {max(values):8.1f} {ratio:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keeps the clips for another run (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        if not (root / "AVSBench_object").exists():
            write_official(root, "s4", {"train": arguments.clips}, maskiges="superpixels")
        build_dataset(root, "s4", root / "built", splits=("train",))
        print(
            f"{arguments.clips} clips of 5 frames 224 x 224, {arguments.workers} workers, batches of "
            f"{arguments.batch}, {arguments.rounds} rounds; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
        report(measure(root, arguments.workers, arguments.batch, arguments.rounds))


if __name__ == "__main__":
    main()
