"""How well overlays stay on what moves: M_J over all pictures of synthetic clips, whose truth is known at any time.

    python tests/programs/follow_masks.py --clips 20

The masks of one picture a second (true ones, and those of the bundled network for drawn scenes) are painted over their
whole second, as the nearest one in time, and moved along by `follow_label_maps`. Prints CPU ms per picture, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

import combo_hf
from combo_hf.data.synthetic.clip import CATEGORIES, SyntheticClip, synthesize_clip
from combo_hf.metrics import jaccard


RATE = 25
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


def main() -> None:
    """Print a row for each kind of masks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=77)
    arguments = parser.parse_args()
    pipe = combo_hf.load_pipeline(DRAWN)
    rows: dict[str, list[list[float]]] = {"true masks": [], "bundled network": []}
    spent = pictures = 0.0
    for index in range(arguments.clips):
        clip = synthesize_clip("ms3", arguments.seed, index, "test")
        times, shown, truths = map(list, zip(*truth(clip), strict=True))
        seen = [second + 15 / 16 for second in range(len(clip.frames))]
        result = pipe({"frames": clip.frames, "audio": clip.waveform, "sampling_rate": clip.sampling_rate})
        found = [np.asarray(frame["label_map"], np.uint8) for frame in result["frames"]]
        for name, maps in (("true masks", clip.masks), ("bundled network", found)):
            keys = list(zip(seen, maps, strict=True))
            start = time.process_time()
            followed = list(combo_hf.follow_label_maps(zip(times, shown, strict=True), keys))
            spent, pictures = spent + time.process_time() - start, pictures + len(times)
            ways = (held(times, keys, False), held(times, keys, True), followed)
            rows[name].append([score(way, truths) for way in ways])
    print(f"{arguments.clips} clips of kind ms3, seed {arguments.seed}, {RATE} pictures and one mask a second, M_J")
    print(f"{'':16} {'its second':>12} {'nearest':>12} {'followed':>12}")
    for name, values in rows.items():
        print(f"{name:16} " + " ".join(f"{value:12.1f}" for value in np.mean(values, axis=0)))
    print(f"following: {1000 * spent / pictures:.1f} CPU ms a picture of 224 x 224")


if __name__ == "__main__":
    main()
