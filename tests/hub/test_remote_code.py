"""A saved checkpoint loads with its own code where the package is not installed, and without it where it is."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import combo_hf
from combo_hf import remote_code_combo


PROGRAM = Path(__file__).with_name("remote_code_program.py")
FILM = combo_hf.ASSETS / "demo_clip.mp4"
CODE = {path.name for path in remote_code_combo.code_files()}


def run_without_the_package(folder, film, output, environment):
    output.mkdir()
    command = [sys.executable, "-I", str(PROGRAM), str(folder), str(film), str(output)]
    done = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / "facts.json").read_text()), dict(np.load(output / "outputs.npz"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights for synthetic scenes, saved as a user saves."""
    folder = tmp_path_factory.mktemp("trained")
    combo_hf.load_pipeline(combo_hf.BUNDLED_MODEL, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def without(trained, tmp_path_factory):
    """What a process without the package gets out of `trained` and the demo clip."""
    output = tmp_path_factory.mktemp("without") / "output"
    environment = {**os.environ, "HF_HOME": str(output.parent / "home"), "HF_HUB_OFFLINE": "1"}
    return (*run_without_the_package(trained, FILM, output, environment), output)


def test_all_classes_come_from_the_checkpoint(without):
    facts, _, _ = without
    expected = {name: reference.partition(".")[2] for name, reference in remote_code_combo.AUTO_MAP.items()}
    assert facts["classes"] == {name: ["transformers_modules", cls] for name, cls in expected.items()}
    assert facts["pipelines"] == ["AudioVisualSegmentationPipeline"] * 2
    assert facts["files of the package"] == []


def test_results_are_those_of_the_package(without, trained):
    _, outputs, _ = without
    processor = combo_hf.ComboProcessor.from_pretrained(trained)
    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(trained).eval()
    random = np.random.default_rng(0)
    frames = list(random.integers(0, 256, (3, 40, 60, 3), dtype=np.uint8))
    batch = processor(frames=[frames], audio=[random.standard_normal(48000).astype(np.float32)], sampling_rate=16000)
    for name, value in batch.items():
        np.testing.assert_array_equal(value, outputs[name])
    with torch.no_grad():
        here = model(**batch)
    # Another process may use another number of threads: not always the same to the last bit.
    np.testing.assert_allclose(here.class_queries_logits, outputs["classes"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(here.masks_queries_logits, outputs["masks"], rtol=0, atol=1e-4)
    result = combo_hf.load_pipeline(trained, device="cpu")(FILM)
    maps = np.stack([frame["label_map"] for frame in result["frames"]])
    assert (maps != outputs["maps"]).mean() < 1e-3 and maps.any()
    scores = [segment["score"] for frame in result["frames"] for segment in frame["segments"]]
    np.testing.assert_allclose(scores, outputs["scores"], atol=1e-4)


def test_what_was_loaded_as_remote_code_is_saved_with_all_of_it(without, trained):
    again = without[2] / "again"
    assert {path.name for path in again.iterdir()} == {path.name for path in trained.iterdir()}
    for path in again.iterdir():
        assert path.read_bytes() == (trained / path.name).read_bytes(), path.name


@pytest.mark.parametrize("trust", [None, False, True])
def test_with_the_package_its_code_is_used_and_no_other(tiny_folder, trust):
    """Also where trust is offered: what is installed is what runs."""
    before = {name for name in sys.modules if name.startswith("transformers_modules.")}
    kwargs = {} if trust is None else {"trust_remote_code": trust}
    loaded = [
        getattr(transformers, name).from_pretrained(tiny_folder, **kwargs) for name in remote_code_combo.AUTO_MAP
    ]
    pipe = transformers.pipeline("audio-visual-segmentation", model=tiny_folder, device="cpu", **kwargs)
    loaded += [pipe, pipe.model, pipe.processor, pipe.model.config]
    assert {type(entry).__module__.split(".")[0] for entry in loaded} == {"combo_hf"}
    assert {name for name in sys.modules if name.startswith("transformers_modules.")} == before


@pytest.mark.parametrize("what", ["model", "processor", "pipeline"])
@pytest.mark.parametrize("carry", [True, False])
def test_what_is_saved(tiny_folder, tmp_path, what, carry):
    pipe = combo_hf.load_pipeline(tiny_folder, device="cpu")
    saved = {"model": pipe.model, "processor": pipe.processor, "pipeline": pipe}[what]
    for _ in range(2):  # the second time over the first
        saved.save_pretrained(tmp_path / "ä b", carry_code=carry)
    names = {path.name for path in (tmp_path / "ä b").iterdir()}
    weights, parts = {"config.json", "model.safetensors"}, {"processor_config.json"}
    expected = {"model": weights, "processor": parts, "pipeline": weights | parts}[what]
    assert names == expected | (CODE if carry else set())
    for name in expected - {"model.safetensors"}:
        text = (tmp_path / "ä b" / name).read_text()
        assert ("auto_map" in text) == carry and ("custom_pipelines" in text) == (carry and name == "config.json")
    for path in (tmp_path / "ä b").glob("*.py"):
        source = Path(remote_code_combo.__file__).with_name(path.name)
        assert path.read_bytes() == source.read_bytes()


def test_saving_leaves_the_objects_as_they_were(tiny_folder, tmp_path):
    pipe = combo_hf.load_pipeline(tiny_folder, device="cpu")
    before = pipe.model.config.to_dict(), set(vars(pipe.processor)), set(vars(pipe.processor.image_processor))
    pipe.save_pretrained(tmp_path / "x")
    after = pipe.model.config.to_dict(), set(vars(pipe.processor)), set(vars(pipe.processor.image_processor))
    assert before == after and "auto_map" not in before[0]


def test_a_rank_that_is_not_the_first_writes_no_code(tiny_folder, tmp_path):
    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(tiny_folder)
    model.save_pretrained(tmp_path / "x", is_main_process=False)
    assert list((tmp_path / "x").glob("*.py")) == []


def test_files_that_cannot_be_written_leave_nothing_half(tmp_path, monkeypatch):
    def fail(source, target):
        assert Path(source).read_bytes()
        raise OSError(28, "No space left on device")

    module = importlib.import_module("combo_hf.remote_code_combo")
    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        module.write_code(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_code_is_not_written_through_a_link(tmp_path):
    module, folder, victim = importlib.import_module("combo_hf.remote_code_combo"), tmp_path / "x", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    for source in module.code_files():  # in a folder of a stranger, who may have made one for every process
        (folder / f".{source.name}.{os.getpid()}.part").symlink_to(victim)
        (folder / source.name).symlink_to(victim)
    module.write_code(folder)
    assert victim.read_text() == "mine"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in module.code_files()
    }


@pytest.mark.parametrize("what", ["model", "processor", "pipeline"])
@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_push_to_hub_takes_the_code_along(hub_client, tiny_folder, tmp_path, what, way):
    pipe = combo_hf.load_pipeline(tiny_folder, device="cpu")
    pushed = {"model": pipe.model, "processor": pipe.processor, "pipeline": pipe}[what]
    if way == "push_to_hub":
        pushed.push_to_hub("tester/pushed", private=True)
    else:
        pushed.save_pretrained(tmp_path / "pushed", push_to_hub=True, repo_id="tester/pushed", private=True)
    files = hub_client.files("tester/pushed")
    assert CODE <= set(files) and hub_client.store.repos["models", "tester/pushed"].private
    commits = hub_client.store.repos["models", "tester/pushed"].commits
    assert len(commits) == 2  # the one that made the repository, and one with everything
    if what == "pipeline":
        loaded = transformers.pipeline("audio-visual-segmentation", model="tester/pushed", device="cpu")
        for name, value in loaded.model.state_dict().items():
            torch.testing.assert_close(value, pipe.model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.slow
def test_from_the_hub_without_the_package(hub_client, trained, without, tmp_path):
    combo_hf.publishing.publish(combo_hf.publishing.plan_publication(trained, "tester/trained", preview=False))
    environment = hub_client.environment(tmp_path / "home", token=None)
    facts, outputs = run_without_the_package("tester/trained", FILM, tmp_path / "output", environment)
    assert facts["files of the package"] == [] and facts["classes"] == without[0]["classes"]
    for name, value in without[1].items():
        np.testing.assert_array_equal(value, outputs[name])
    assert {entry.token for entry in hub_client.requests("/resolve/") if entry.method == "GET"} == {None}
