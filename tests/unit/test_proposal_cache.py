import json

import numpy as np
import pytest
from fixtures_proposals import picture
from PIL import Image

from combo_hf.proposals import load_proposal_generator
from combo_hf.proposals.cache import CachedProposals, read_masks, write_masks
from combo_hf.proposals_combo import SuperpixelProposals


class Counting:
    """A generator that counts what it is asked."""

    def __init__(self, share: float = 0.5) -> None:
        self.share, self.frames = share, 0

    def __call__(self, frames):
        self.frames += len(frames)
        return [np.asarray(frame.convert("L"))[None] > 255 * self.share for frame in frames]

    def to_dict(self):
        return {"name": "counting", "share": self.share}


def test_the_same_frame_is_segmented_once(tmp_path):
    inner = Counting()
    cached = CachedProposals(inner, tmp_path / "masks")
    first = cached([picture(), picture(seed=1)])
    again = CachedProposals(Counting(), tmp_path / "masks")([picture(), picture(seed=1)])
    assert inner.frames == 2 and (cached.hits, cached.misses) == (0, 2)
    for wanted, found in zip(first, again, strict=True):
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, wanted)


def test_other_pixels_settings_or_shapes_are_other_entries(tmp_path):
    cached = CachedProposals(Counting(), tmp_path)
    paths = {
        cached.path(picture()),
        cached.path(picture(seed=1)),
        CachedProposals(Counting(0.7), tmp_path).path(picture()),
        cached.path(Image.new("RGB", (4, 6))),
        cached.path(Image.new("RGB", (6, 4))),
    }
    assert len(paths) == 5


def test_no_masks_are_an_entry_too(tmp_path):
    write_masks(tmp_path / "a.npz", np.zeros((0, 3, 5), bool))
    assert read_masks(tmp_path / "a.npz").shape == (0, 3, 5)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 100])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    cached = CachedProposals(Counting(), tmp_path)
    wanted = cached([picture()])[0]
    path = cached.path(picture())
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(cached([picture()])[0], wanted)
    assert cached.misses == 2
    np.testing.assert_array_equal(read_masks(path), wanted)


def test_nothing_partial_remains(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", broken)
    with pytest.raises(KeyboardInterrupt):
        CachedProposals(Counting(), tmp_path)([picture()])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_longest_unused_entries_go(tmp_path):
    cached = CachedProposals(Counting(), tmp_path, max_entries=2)
    frames = [picture(seed=seed) for seed in range(3)]
    cached(frames[:2])
    cached(frames[:1])
    cached(frames[2:])
    assert [cached.path(frame).is_file() for frame in frames] == [True, False, True]


def test_by_name_and_back(tmp_path):
    options = {"generator": {"name": "superpixels", "scale": 77.0}, "folder": str(tmp_path)}
    cached = load_proposal_generator("cached", **options)
    saved = json.loads(json.dumps(cached.to_dict()))
    assert saved["generator"]["scale"] == 77.0
    again = load_proposal_generator(**saved)
    assert again.path(picture()) == cached.path(picture())
    np.testing.assert_array_equal(again([picture()])[0], SuperpixelProposals(scale=77.0)([picture()])[0])


def test_a_processor_uses_and_saves_it(tmp_path):
    from combo_hf import ComboProcessor

    description = {"name": "cached", "generator": "superpixels", "folder": str(tmp_path / "masks")}
    processor = ComboProcessor(proposal_generator=description)
    clip = {"frames": [picture(), picture()], "audio": np.zeros(32000, np.float32), "sampling_rate": 16000}
    first = processor(**clip)["maskige_values"]
    assert (processor.proposal_generator.hits, processor.proposal_generator.misses) == (1, 1)
    processor.save_pretrained(tmp_path / "saved")
    again = ComboProcessor.from_pretrained(tmp_path / "saved", proposal_generator=description)
    assert (again(**clip)["maskige_values"] == first).all()
    assert (again.proposal_generator.hits, again.proposal_generator.misses) == (2, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"generator": lambda frames: []}, TypeError, "no to_dict"),
        ({"generator": "nonsense"}, ValueError, "not known"),
        ({"generator": "superpixels", "max_entries": 0}, ValueError, "max_entries"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        CachedProposals(folder=tmp_path, **arguments)
