"""`load_avsbench` by repository name: streamed and stored rows equal those of the folder; what goes wrong is told."""

import datasets
import huggingface_hub
import numpy as np
import pytest
from hub_server import READER

from combo_hf.data.clips import ComboTransform
from combo_hf.data.loading import load_avsbench
from combo_hf.data.synthetic.dataset import write_dataset
from combo_hf.data.transforms import build_transform


REPO = "tester/clips"
PLAIN = ("video_id", "subset", "split", "category", "label_frames", "audio")


@pytest.fixture
def folder(tmp_path, hub_client):
    """Three clips on the Hub, as `combo-hf data synthesize` wrote them, and the folder."""

    output = write_dataset("s4", tmp_path / "clips", {"train": 3}, size=48, formats=("rows",), progress=False)
    huggingface_hub.create_repo(REPO, repo_type="dataset")
    huggingface_hub.upload_folder(repo_id=REPO, folder_path=output, repo_type="dataset")
    return output


def test_streamed_from_the_hub_equals_stored_and_equals_the_folder(tmp_path, folder, hub_client):
    here = load_avsbench(folder, "train", cache_dir=tmp_path / "a")
    stored = load_avsbench(REPO, "train", subset="s4", cache_dir=tmp_path / "b")
    streamed = load_avsbench(REPO, "train", subset="s4", streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    assert stored.features == streamed.features == here.features and len(stored) == 3
    for one, two, three in zip(here, stored, streamed, strict=True):
        assert all(one[name] == two[name] == three[name] for name in PLAIN)
        for name in ("frames", "masks"):
            for a, b, c in zip(one[name], two[name], three[name], strict=True):
                assert np.array_equal(a, b) and np.array_equal(a, c)
    transform = ComboTransform(build_transform("s4", True, 32), seed=1, use_maskige=False)
    lazy = here.with_transform(transform)
    mapped = streamed.map(transform, batched=True, batch_size=2, remove_columns=streamed.column_names)
    for index, row in enumerate(mapped):
        assert np.array_equal(row["frames"], lazy[index]["frames"])
        assert np.array_equal(row["masks"], lazy[index]["masks"])


def test_private_missing_and_unreachable(tmp_path, folder, hub_client, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits longer and longer between its attempts
    with pytest.raises(FileNotFoundError, match="tester/none: no such folder here, and no such data set on the Hub"):
        load_avsbench("tester/none", "train", cache_dir=tmp_path / "c")
    with pytest.raises(ValueError, match=r"split: wanted one of \['train'\], got 'test'"):
        load_avsbench(REPO, "test", streaming=True)
    hub_client.store.create("datasets", "tester/secret", private=True)
    with pytest.raises(FileNotFoundError, match="it is private: `hf auth login`"):
        load_avsbench("tester/secret", "train", token=READER, cache_dir=tmp_path / "d")
    hub_client.fail("refuse", ".", times=1000)
    with pytest.raises(ConnectionError, match="tester/third: no such folder here, and the Hub cannot be reached"):
        load_avsbench("tester/third", "train", cache_dir=tmp_path / "f")
    hub_client.stop()
    huggingface_hub.close_session()  # else the client goes on with the connection that it has
    with pytest.raises(ConnectionError, match="tester/other: no such folder here, and the Hub cannot be reached"):
        load_avsbench("tester/other", "train", cache_dir=tmp_path / "e")
