"""`push_to_hub` of a recipe: the best checkpoint goes up at the end, and nothing else of the run."""

import shutil
from pathlib import Path

import pytest
from fixtures_training import clips, recipe

import combo_hf
from combo_hf import remote_code_combo
from combo_hf.training import push_checkpoint, run_recipe
from combo_hf.training import run as building


REPOSITORY = "tester/trained"
CODE = {path.name for path in remote_code_combo.code_files()}


@pytest.fixture
def few_clips(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "build_data", lambda recipe, config: (clips(2), clips(2)))


def test_run_publishes_its_best_checkpoint(hub_client, few_clips, tmp_path: Path):
    run_recipe(recipe(max_steps=1, push_to_hub=REPOSITORY), tmp_path / "run", cpu=True)
    files = hub_client.files(REPOSITORY)
    usual = {"README.md", "config.json", "processor_config.json", "model.safetensors", "preview.png"}
    usual |= {"handler.py", "requirements.txt"}
    assert set(files) == usual | CODE | {".gitattributes"}
    assert files["model.safetensors"] == (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert hub_client.store.repos["models", REPOSITORY].private
    assert type(combo_hf.ComboForAudioVisualSegmentation.from_pretrained(REPOSITORY)).__module__.startswith("combo_hf")


def test_nothing_else_of_the_folder_goes(hub_client, tiny_folder: str, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "best"))
    for name in ("optimizer.bin", "random_states_0.pkl", "metrics.jsonl", ".env"):
        (folder / name).write_bytes(b"x")
    assert push_checkpoint(folder, REPOSITORY, private=False) == f"{hub_client.endpoint}/{REPOSITORY}"
    assert not {"optimizer.bin", "random_states_0.pkl", "metrics.jsonl", ".env"} & set(hub_client.files(REPOSITORY))
    assert not hub_client.store.repos["models", REPOSITORY].private


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("no token", PermissionError, "no access token"),
        ("token of nobody", PermissionError, "does not accept the access token"),
        ("public", ValueError, "exists and is public"),
        ("ill", ConnectionError, "busy or ill"),
    ],
)
def test_what_would_stop_it_is_found_before_training(
    hub_client, few_clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, error: type, message: str
):
    if case == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif case == "token of nobody":
        monkeypatch.setenv("HF_TOKEN", "nobody")
    elif case == "public":
        hub_client.store.create("models", REPOSITORY, private=False)
    else:
        hub_client.fail("status", r"/api/whoami", status=500, times=99)
    with pytest.raises(error, match=message):
        run_recipe(recipe(max_steps=1, push_to_hub=REPOSITORY), tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()


def test_a_failed_push_keeps_the_checkpoint(hub_client, tiny_folder: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        push_checkpoint(tmp_path, REPOSITORY)
    hub_client.store.create("models", REPOSITORY, private=False)
    with pytest.raises(OSError, match=rf"public.*The checkpoint is kept; to go on: combo-hf push \S+ {REPOSITORY} --"):
        push_checkpoint(tiny_folder, REPOSITORY)
    assert set(hub_client.files(REPOSITORY)) <= {".gitattributes"} and (Path(tiny_folder) / "config.json").is_file()
