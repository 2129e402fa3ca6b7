"""A built data set goes to a private repository and comes back the same."""

from __future__ import annotations

from pathlib import Path

import datasets  # noqa: F401  the fixture points it at the local Hub only if it is there
import pytest
from huggingface_hub import HfApi

from combo_hf.cli import main
from combo_hf.data.avsbench import build_dataset, push_dataset
from combo_hf.data.synthetic.official_folders import write_official


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of MS3; not to be changed."""
    root = tmp_path_factory.mktemp("tree")
    write_official(root, "ms3", {"train": 2, "test": 1}, seed=7, size=64)
    return root


def test_push_and_load(hub_client, tree, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["data", "build", "--subset", "ms3", "--root", str(tree), "--output", str(output)]
    command += ["--splits", "train", "test", "--rows-per-shard", "1"]
    assert main([*command, "--push-to-hub", "tester/avs", "--private"]) == 0
    assert "tester/avs" in capsys.readouterr().out.splitlines()[-1]
    assert HfApi().repo_info("tester/avs", repo_type="dataset").private
    names = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    stored = hub_client.files("tester/avs", "datasets")
    stored.pop(".gitattributes", None)
    assert stored == names
    rows = datasets.load_dataset("tester/avs", "ms3", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 2


def test_old_shards_go(hub_client, tree, tmp_path):
    """Fewer, larger files in the second upload: the first ones may not stay, or rows would be doubled."""
    for number, size in enumerate((1, 2)):
        report = build_dataset(
            tree, "ms3", tmp_path / str(number), ["train", "test"], rows_per_shard=size, progress=False
        )
        push_dataset(report.folder, "tester/avs", private=True)
    names = sorted(name for name in hub_client.files("tester/avs", "datasets") if name.endswith(".parquet"))
    assert names == ["data/ms3/test-00000-of-00001.parquet", "data/ms3/train-00000-of-00001.parquet"]


def test_public_repository_is_refused(hub_client, tree, tmp_path):
    HfApi().create_repo("tester/open", repo_type="dataset", private=False)
    report = build_dataset(tree, "ms3", tmp_path / "out", ["test"], progress=False)
    with pytest.raises(ValueError, match="exists and is public"):
        push_dataset(report.folder, "tester/open", private=True)
    assert not [name for name in hub_client.files("tester/open", "datasets") if name.endswith(".parquet")]


def test_without_a_hub(hub_client, tree, tmp_path, capsys):
    """No connection: the build is there, the message is one line."""
    output = tmp_path / "out"
    hub_client.stop()
    command = ["data", "build", "--subset", "ms3", "--root", str(tree), "--output", str(output), "--splits", "test"]
    assert main([*command, "--push-to-hub", "tester/avs", "--private"]) == 2
    captured = capsys.readouterr()
    assert "ms3: test 1 rows" in captured.out
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("combo-hf: error: tester/avs: ")
