"""A tiny model with random weights, as a folder and as a pipeline: for tests of the pipeline and the command line."""

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a tiny checkpoint (model and processor, 128 x 128) with random weights."""
    import combo_hf

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = combo_hf.ComboForAudioVisualSegmentation(combo_hf.ComboConfig.from_preset("tiny"))
    processor = combo_hf.ComboProcessor(combo_hf.ComboImageProcessor(size={"height": 128, "width": 128}))
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_pipe(tiny_folder):
    """Pipeline of `tiny_folder` on the CPU."""
    import combo_hf

    return combo_hf.load_pipeline(tiny_folder, device="cpu")
