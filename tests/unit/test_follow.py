"""Label maps moved along with the pictures: a textured disc over a textured ground, whose true place is known."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from combo_hf.results.follow import MAX_PICTURES, follow_label_maps


RATE, H, W = 24, 180, 320


def texture(seed: int, size: int = 16) -> np.ndarray:
    """`(H, W, 3)`, smooth over a few pixels, as things are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (H // size + 2, 2 * W // size, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((2 * W, H + 2 * size), Image.BICUBIC))[:H]


GROUND, THING, OTHER, ELSEWHERE = texture(1), texture(2), texture(3), texture(9) // 4


def scene(x: float, radius: float = 40, thing: np.ndarray = THING, ground: np.ndarray = GROUND) -> tuple:
    """A picture with the thing at x, and where it is."""
    yy, xx = np.mgrid[:H, :W]
    mask = (yy - H / 2) ** 2 + (xx - x) ** 2 < radius**2
    moved = np.roll(thing, round(x), axis=1)[:, :W]
    return np.where(mask[..., None], moved, ground[:, :W]), mask.astype(np.uint8)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    union = np.logical_or(one, other).sum()
    return 1.0 if not union else float(np.logical_and(one, other).sum() / union)


def run(pictures: list, masks: list, at: list[int], labels: tuple[int, ...] | None = None) -> list[np.ndarray]:
    """Follow the true masks of some pictures; `labels`: class of each key."""
    keys = [(index / RATE, masks[index] * (labels[k] if labels else 1)) for k, index in enumerate(at)]
    return list(follow_label_maps([(k / RATE, picture) for k, picture in enumerate(pictures)], keys))


def test_masks_stay_on_what_moves() -> None:
    """A second's mask painted over the whole second overlaps with a third of a disc that crosses the picture."""
    scenes = [scene(60 + 4 * k) for k in range(2 * RATE)]
    pictures, masks = map(list, zip(*scenes, strict=True))
    at = [22, 45]
    held = [overlap(masks[at[k // RATE]], masks[k]) for k in range(2 * RATE)]
    followed = [overlap(found, mask) for found, mask in zip(run(pictures, masks, at), masks, strict=True)]
    assert np.mean(held) < 0.4 and np.mean(followed) > 0.8 and min(followed) > 0.5


def test_what_one_key_cannot_see_the_other_can() -> None:
    """Behind a pole in one of two keys: the moved mask has the pole's gap only where the pole is."""
    pictures, masks = [], []
    for k in range(RATE):
        picture, mask = scene(80 + 3 * k)
        pole = slice(80, 100)  # hides the middle of the disc in the first key
        picture[:, pole], mask[:, pole] = OTHER[:, pole], 0
        pictures.append(picture)
        masks.append(mask)
    found = run(pictures, masks, [0, 23])
    assert np.mean([overlap(a, b) for a, b in zip(found, masks, strict=True)]) > 0.85


def test_a_second_is_decided_by_its_own_keys() -> None:
    """Class 2 sounds in the first second only, class 1 in the next only: neither is painted in the other's."""
    pictures, masks = map(list, zip(*[scene(60 + 2 * k) for k in range(2 * RATE)], strict=True))
    found = run(pictures, masks, [22, 45], labels=(2, 1))
    assert {label for label_map in found[:RATE] for label in np.unique(label_map)} == {0, 2}
    assert {label for label_map in found[RATE:] for label in np.unique(label_map)} == {0, 1}
    silent = run(pictures, masks, [22, 45], labels=(1, 0))
    assert all(label_map.any() for label_map in silent[:RATE]) and not any(
        label_map.any() for label_map in silent[RATE:]
    )


def test_a_class_of_one_key_beside_a_class_of_both() -> None:
    """Keys of one second: the class that only the later one has is followed from there."""
    pictures, masks = map(list, zip(*[scene(60 + 4 * k) for k in range(RATE)], strict=True))
    box = np.zeros((H, W), np.uint8)
    box[5:40, 200:280] = 1
    keys = [(0.0, masks[0]), (20 / RATE, np.where(box > 0, 2, masks[20]).astype(np.uint8))]
    found = list(follow_label_maps([(k / RATE, picture) for k, picture in enumerate(pictures)], keys))
    assert overlap(found[10] == 2, box) > 0.9 and overlap(found[10] == 1, masks[10]) > 0.85


def test_across_a_cut_only_the_key_of_the_same_scene_counts() -> None:
    first = [scene(60 + 3 * k) for k in range(12)]
    second = [scene(250 - 3 * k, thing=OTHER, ground=ELSEWHERE) for k in range(12)]
    pictures, masks = map(list, zip(*first, *second, strict=True))
    found = run(pictures, masks, [3, 20])
    assert min(overlap(a, b) for a, b in zip(found, masks, strict=True)) > 0.8


def test_behind_a_cut_without_a_key_the_nearest_is_shown_as_it_is() -> None:
    pictures, masks = map(list, zip(*[scene(60 + 3 * k) for k in range(12)], strict=True))
    pictures += [ELSEWHERE[:, :W]] * 6
    found = run(pictures, [*masks, *masks[:6]], [5])
    assert all(np.array_equal(label_map, masks[5]) for label_map in found[12:])


def test_what_leaves_the_picture() -> None:
    pictures, masks = map(list, zip(*[scene(220 + 4 * k) for k in range(RATE)], strict=True))
    found = run(pictures, masks, [0, 23])
    assert np.mean([overlap(a, b) for a, b in zip(found, masks, strict=True)]) > 0.85


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize("size", [(1, 1), (7, 500), (40, 30), (361, 641)])
def test_sizes_and_types(dtype: type, size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    label = 300 if dtype != np.uint8 else 3
    found = list(follow_label_maps([(k, picture) for k in range(4)], [(1, np.full(size, label, dtype))]))
    assert [entry.dtype for entry in found] == [dtype] * 4 and all((entry == label).all() for entry in found)


@pytest.mark.parametrize(
    "keys, expected",
    [
        ([], [0, 0, 0, 0]),
        ([(-5.0, 1)], [1, 1, 1, 1]),  # before the first picture
        ([(9.0, 1)], [1, 1, 1, 1]),  # after the last
        ([(1.0, 1), (1.5, 2), (2.9, 3)], [2, 2, 3, 3]),  # the later of two keys of one picture
        ([(0.0, 1), (0.0, 2)], [2, 2, 2, 2]),
    ],
)
def test_where_keys_belong(keys: list, expected: list[int]) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    maps = [(time, np.full((20, 30), label, np.uint8)) for time, label in keys]
    found = list(follow_label_maps([(float(k), picture) for k in range(4)], maps))
    assert [int(label_map.max()) for label_map in found] == expected


def test_reads_no_further_than_it_must() -> None:
    """Keys may come from a network that runs while the pictures are read."""
    log: list[str] = []

    def pictures() -> Iterator[tuple[float, np.ndarray]]:
        for k in range(3 * RATE):
            log.append(f"picture {k}")
            yield k / RATE, GROUND[:, :W]

    def keys() -> Iterator[tuple[float, np.ndarray]]:
        for k in range(3):
            log.append(f"key {k}")
            yield k + 0.5, np.ones((H, W), np.uint8)

    maps = follow_label_maps(pictures(), keys())
    next(maps)
    assert log[-1] == "key 1" and f"picture {RATE // 2 + 1}" in log and f"picture {RATE // 2 + 3}" not in log


def test_memory_is_bounded_where_keys_are_far_apart() -> None:
    """Of thousands of pictures between two keys only the last ones wait for the later one."""
    picture, taken = np.zeros((32, 32, 3), np.uint8), 0

    def pictures() -> Iterator[tuple[float, np.ndarray]]:
        nonlocal taken
        for taken in range(1, 1001):  # noqa: B007
            yield taken / 10, picture

    for given, _ in enumerate(follow_label_maps(pictures(), [(500.0, np.ones((32, 32), np.uint8))])):
        assert taken - given <= MAX_PICTURES + 1


GOOD = (0.0, np.zeros((8, 8, 3), np.uint8))
MAP = (0.0, np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    "pictures, keys, message",
    [
        ([(0.0, np.zeros((8, 8), np.uint8))], [MAP], r"pictures\[0\]: wanted an RGB picture \(H, W, 3\) of uint8"),
        ([(0.0, np.zeros((8, 8, 3)))], [MAP], "got float64"),
        (
            [GOOD, (1.0, np.zeros((9, 8, 3), np.uint8))],
            [MAP],
            r"pictures\[1\]: wanted the size \(8, 8\) of the first",
        ),
        ([GOOD, (-1.0, GOOD[1])], [MAP], r"pictures\[1\]: wanted a time in seconds, not before 0.0, got -1.0"),
        ([(float("nan"), GOOD[1])], [MAP], r"pictures\[0\]: wanted a time"),
        ([GOOD], [(0.0, np.zeros((4, 8), np.uint8))], r"keys\[0\]: wanted a label map of integers of shape \(8, 8\)"),
        ([GOOD], [(0.0, np.zeros((8, 8)))], "got float64"),
        ([GOOD], [(0.0, np.full((8, 8), -1))], "wanted labels from 0 to 65535, got -1 to -1"),
        ([GOOD], [(0.0, np.full((8, 8), 70000))], "got 70000 to 70000"),
        ([GOOD, (2.0, GOOD[1])], [(1.0, MAP[1]), (0.5, MAP[1])], r"keys\[1\]: wanted a time"),
    ],
)
def test_what_does_not_fit(pictures: list, keys: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(follow_label_maps(pictures, keys))
