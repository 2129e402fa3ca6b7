"""Rows of this package pushed as a data set and read back, streaming and whole."""

import io

import numpy as np
import pytest
import soundfile


datasets = pytest.importorskip("datasets")

import huggingface_hub  # noqa: E402

from combo_hf.data.synthetic.dataset import write_dataset  # noqa: E402


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_dataset("ms3", tmp_path_factory.mktemp("rows"), {"train": 3, "test": 2}, size=64, formats=("rows",))


@pytest.fixture
def repo(hub_client, rows):
    api = huggingface_hub.HfApi()
    api.create_repo("tester/rows", repo_type="dataset", private=True)
    api.upload_folder(repo_id="tester/rows", repo_type="dataset", folder_path=rows)
    return "tester/rows"


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_come_back(hub_client, repo, rows, streaming):
    train = list(datasets.load_dataset(repo, split="train", streaming=streaming))
    here = list(datasets.load_dataset(str(rows), split="train", streaming=True))
    assert [row["video_id"] for row in train] == [row["video_id"] for row in here] and len(train) == 3
    for there, row in zip(train, here, strict=True):
        for name in ("frames", "masks"):
            for left, right in zip(there[name], row[name], strict=True):
                np.testing.assert_array_equal(left, right)
        sound, rate = soundfile.read(io.BytesIO(there["audio"]["bytes"]))
        assert rate == 16000 and len(sound) == 5 * rate
    if streaming:
        parts = hub_client.requests(r"\.parquet", "GET")
        assert parts and all(entry.range for entry in parts)


def test_a_cut_while_streaming_is_read_again(hub_client, repo, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fault = hub_client.fail("cut", "/cdn/", after=500)
    assert len(list(datasets.load_dataset(repo, split="train", streaming=True))) == 3
    assert fault.times == 0


@pytest.mark.parametrize("name, revision", [("tester/none", None), ("tester/rows", "none")])
def test_what_is_not_there(hub_client, repo, name, revision):
    with pytest.raises((datasets.exceptions.DatasetNotFoundError, FileNotFoundError), match="none"):
        datasets.load_dataset(name, split="train", streaming=True, revision=revision)
