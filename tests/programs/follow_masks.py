"""How well overlays stay on what moves: M_J over all pictures of synthetic clips, whose truth is known at any time.

    python tests/programs/follow_masks.py --clips 20

The masks of one picture a second (true ones, and those of the bundled network for drawn scenes) are painted over their
whole second, as the nearest one in time, and moved along by `follow_label_maps`; those of 2, of 4 and of "auto"
pictures a second are moved along, too. Prints how many pictures the network sees, and CPU ms per picture painted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import combo_hf
from combo_hf.data.synthetic.clip import CATEGORIES, SyntheticClip, synthesize_clip
from combo_hf.metrics import jaccard
from combo_hf.pipeline_combo import AudioVisualSegmentationPipeline
from combo_hf.results.video import write_video


RATE = 25
RATES = (1, "auto", 2, 4)
DRAWN = combo_hf.ASSETS / "demo"


def truth(clip: SyntheticClip, rate: int = RATE) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Time, picture (H, W, 3) and label map (H, W) of what sounds, `rate` times a second."""
    for index in range(len(clip.frames) * rate):
        now = index / rate
        sounding = clip.sounding[int(now)]
        picture, owner = clip.scene.render(now)
        classes = [
            CATEGORIES.index(item.category) + 1 if item.category in sounding else 0 for item in clip.scene.items
        ]
        yield now, np.asarray(picture), np.array([0, *classes], np.uint8)[owner]


def held(times: list[float], keys: list[tuple[float, np.ndarray]], nearest: bool) -> list[np.ndarray]:
    """The key of a picture's second, or the nearest key."""
    if nearest:
        return [min(keys, key=lambda key: abs(key[0] - now))[1] for now in times]
    return [keys[min(int(now), len(keys) - 1)][1] for now in times]


def score(maps: list[np.ndarray], truths: list[np.ndarray]) -> float:
    """M_J of what is marked, whatever its class."""
    return 100 * jaccard((np.stack(maps) > 0).astype(np.float32), (np.stack(truths) > 0).astype(np.uint8))


class Scores:
    """M_J of every way of painting, for true masks and those of the network; and what it costs."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[float]]] = {"true masks": {}, "bundled network": {}}
        self.seen: dict[str, list[float]] = {}  # pictures per second that the network sees
        self.spent, self.pictures = 0.0, 0

    def add(self, clip: SyntheticClip, pipe: AudioVisualSegmentationPipeline, folder: Path) -> None:
        """Score one clip."""
        times, shown, truths = map(list, zip(*truth(clip), strict=True))
        video = write_video(folder / "clip.mp4", shown, RATE, clip.waveform, clip.sampling_rate)
        for rate in RATES:
            result = pipe(str(video), fps=rate)
            frames = sorted([*result["frames"], *result.get("frames_between", ())], key=lambda one: one["timestamp"])
            moments = [frame["timestamp"] for frame in frames]
            self.seen.setdefault(str(rate), []).append(len(frames) / len(clip.frames))
            found = [np.asarray(frame["label_map"], np.uint8) for frame in frames]
            true = [truths[int(moment * RATE + 1e-6)] for moment in moments]
            for name, maps in (("true masks", true), ("bundled network", found)):
                keys = list(zip(moments, maps, strict=True))
                start = time.process_time()
                followed = list(combo_hf.follow_label_maps(zip(times, shown, strict=True), keys))
                self.spent, self.pictures = self.spent + time.process_time() - start, self.pictures + len(times)
                ways = {f"followed, {rate}": followed}
                if rate == 1:
                    ways = {"its second": held(times, keys, False), "nearest": held(times, keys, True), **ways}
                for way, painted in ways.items():
                    self.rows[name].setdefault(way, []).append(score(painted, truths))


def main() -> None:
    """Print a row for each kind of masks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=77)
    arguments = parser.parse_args()
    pipe, scores = combo_hf.load_pipeline(DRAWN), Scores()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(arguments.clips):
            scores.add(synthesize_clip("ms3", arguments.seed, index, "test"), pipe, Path(folder))
    print(f"{arguments.clips} clips of kind ms3, seed {arguments.seed}, {RATE} pictures a second, M_J")
    ways = list(scores.rows["true masks"])
    print(f"{'':24} " + " ".join(f"{way:>14}" for way in ways))
    for name, values in scores.rows.items():
        print(f"{name:24} " + " ".join(f"{np.mean(values[way]):14.1f}" for way in ways))
    seen = [np.mean(scores.seen[way.partition(", ")[2] or "1"]) for way in ways]
    print(f"{'network pictures a second':24} " + " ".join(f"{value:14.2f}" for value in seen))
    print(f"following: {1000 * scores.spent / scores.pictures:.1f} CPU ms a picture of 224 x 224")


if __name__ == "__main__":
    main()
