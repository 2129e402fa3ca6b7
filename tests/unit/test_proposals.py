import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from combo_hf import ComboFeatureExtractor, ComboImageProcessor, ComboProcessor, paint_maskige
from combo_hf.proposals_combo import SuperpixelProposals, get_proposal_generator


def scene(width: int = 64, height: int = 48) -> Image.Image:
    """Three flat areas."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, width // 2 :] = (250, 30, 30)
    picture[height // 2 :, : width // 4] = (20, 30, 240)
    return Image.fromarray(picture)


def photograph(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_flat_areas_are_found():
    masks = SuperpixelProposals(sigma=0.0)([scene()])[0]
    assert masks.shape == (3, 48, 64) and masks.dtype == np.bool_
    assert [int(mask.sum()) for mask in masks] == sorted((int(mask.sum()) for mask in masks), reverse=True)
    assert masks[0, 5, 60] and masks[2, 40, 2]


@pytest.mark.parametrize("size", [(640, 360), (224, 224), (31, 200), (1, 1), (4000, 3), (2, 9)])
def test_segments_cover_the_frame_once(size):
    masks = SuperpixelProposals()([photograph(*size)])[0]
    assert masks.shape[1:] == (size[1], size[0])
    assert (masks.sum(axis=0) == 1).all()
    assert len(masks) <= 200 and masks.any(axis=(1, 2)).all()


@pytest.mark.parametrize("size", [(640, 360), (224, 224), (31, 200), (1, 1), (4000, 3), (300, 517)])
@pytest.mark.parametrize("options", [{}, {"min_fraction": 0.06}, {"scale": 1e-3, "sigma": 0, "min_fraction": 0}])
def test_maskiges_without_masks_are_the_same(size, options):
    frame, generator = photograph(*size), SuperpixelProposals(**options)
    for wanted in ((224, 224), (32, 96)):
        painted = paint_maskige(generator([frame])[0], wanted)
        assert np.array_equal(generator.maskige(frame, wanted), painted)


class Inverted(SuperpixelProposals):
    def __call__(self, frames):
        return [~masks for masks in super().__call__(frames)]


def test_masks_of_a_class_of_its_own_are_painted():
    frame, processor = photograph(64, 48), ComboProcessor(ComboImageProcessor(size=32), ComboFeatureExtractor())
    for generator in (SuperpixelProposals(), Inverted()):
        picture = processor._propose(generator, frame, (32, 32))
        assert np.array_equal(picture, paint_maskige(generator([frame])[0], (32, 32)))


def test_small_segments_are_merged():
    few, many = (len(SuperpixelProposals(min_fraction=part)([photograph(160, 120)])[0]) for part in (0.05, 0.001))
    assert few <= 20 < many


def test_every_parameter_matters():
    picture = photograph(300, 200)
    default = SuperpixelProposals()([picture])[0]
    for change in ({"working_size": 80}, {"scale": 900.0}, {"sigma": 3.0}, {"min_fraction": 0.03}):
        other = SuperpixelProposals(**change)([picture])[0]
        assert other.shape != default.shape or (other != default).any()


def test_same_frame_same_segments_whatever_stands_beside_it():
    generator = SuperpixelProposals()
    alone, beside = generator([photograph(90, 60)])[0], generator([scene(), photograph(90, 60)])[1]
    np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize(
    "change", [{"working_size": 2}, {"scale": 0.0}, {"sigma": -1.0}, {"min_fraction": 1.0}, {"min_fraction": -0.1}]
)
def test_bad_parameters_are_refused(change):
    with pytest.raises(ValueError, match="superpixels"):
        SuperpixelProposals(**change)


def test_missing_scikit_image_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match="pip install 'scikit-image"):
        SuperpixelProposals()([scene()])


def test_saved_parameters_rebuild_the_generator():
    saved = json.loads(json.dumps(SuperpixelProposals(scale=77.0, working_size=100).to_dict()))
    assert get_proposal_generator(saved).to_dict() == saved


def test_names_and_callables():
    def own(frames):
        return [np.zeros((0, frame.height, frame.width), bool) for frame in frames]

    assert get_proposal_generator(own) is own
    assert get_proposal_generator("superpixels").to_dict() == SuperpixelProposals().to_dict()


def test_names_of_the_installed_package(monkeypatch):
    package = SimpleNamespace(PROPOSAL_GENERATORS={"fancy": lambda strength=1: f"built with {strength}"})
    monkeypatch.setitem(sys.modules, "combo_hf.proposals", package)
    assert get_proposal_generator({"name": "fancy", "strength": 3}) == "built with 3"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nonsense", ValueError, "'nonsense' is not known.*superpixels"),
        (3, TypeError, "wanted a name"),
        ({"scale": 3.0}, TypeError, "'name'"),
        (None, TypeError, "wanted a name"),
    ],
)
def test_unknown_generators_are_refused(monkeypatch, source, error, message):
    monkeypatch.setitem(sys.modules, "combo_hf.proposals", None)
    with pytest.raises(error, match=message):
        get_proposal_generator(source)
