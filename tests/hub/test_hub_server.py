"""The small Hub of these tests, as the real client sees it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import READER, WRITER, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


FILES = {"README.md": b"---\nlicense: mit\n---\n# x\n", "a.json": b"{}", "deep/b.bin": os.urandom(300_000)}


@pytest.fixture
def api(hub_client):
    return HfApi()


@pytest.fixture
def repo(api):
    api.create_repo("tester/x")
    operations = [CommitOperationAdd(path, content) for path, content in FILES.items()]
    return api.create_commit("tester/x", operations, commit_message="files")


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_what_is_pushed_comes_back(api, hub, kind, tmp_path):
    api.create_repo("org/y", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    operations = [CommitOperationAdd(path, content) for path, content in FILES.items()]
    commit = api.create_commit("org/y", operations, commit_message="files", repo_type=kind)
    folder = Path(snapshot_download("org/y", repo_type=kind, revision=commit.oid))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert {**FILES, ".gitattributes": hub.files("org/y", kind + "s")[".gitattributes"]} == hub.files(
        "org/y", kind + "s"
    )
    info = api.repo_info("org/y", repo_type=kind, files_metadata=True)
    assert info.sha == commit.oid and info.card_data["license"] == "mit"
    assert {file.rfilename: file.size for file in info.siblings if file.lfs} == {"deep/b.bin": 300_000}


def test_upload_in_parts_and_pages(api, hub, tmp_path):
    hub.api.part_size, hub.api.page_size = 100_000, 2
    api.create_repo("tester/z")
    api.create_commit("tester/z", [CommitOperationAdd(*file) for file in FILES.items()], commit_message="files")
    assert len(hub.requests(r"/lfs/upload/\w+/\d", "PUT")) == 3
    assert sorted(api.list_repo_files("tester/z")) == sorted([*FILES, ".gitattributes"])
    assert len(hub.requests("cursor=")) > 0
    assert Path(hf_hub_download("tester/z", "deep/b.bin")).read_bytes() == FILES["deep/b.bin"]


def test_revisions(api, repo):
    api.create_branch("tester/x", branch="feature/a")
    api.create_commit("tester/x", [CommitOperationDelete("a.json")], commit_message="less", revision="feature/a")
    api.create_tag("tester/x", tag="v1")
    assert "a.json" not in api.list_repo_files("tester/x", revision="feature/a")
    for revision in ("main", "v1", repo.oid, repo.oid[:8]):
        assert Path(hf_hub_download("tester/x", "a.json", revision=revision)).read_bytes() == b"{}"
    assert [ref.name for ref in api.list_repo_refs("tester/x").branches] == ["main", "feature/a"]
    assert [commit.title for commit in api.list_repo_commits("tester/x")] == ["files", "initial commit"]
    paths = api.get_paths_info("tester/x", ["deep", "a.json", "none"], expand=True)
    assert [entry.path for entry in paths] == ["deep", "a.json"] and paths[1].last_commit.oid == repo.oid


@pytest.mark.parametrize(
    "error, call",
    [
        (RepositoryNotFoundError, lambda api: api.model_info("tester/none")),
        (RepositoryNotFoundError, lambda api: api.dataset_info("tester/x")),
        (RevisionNotFoundError, lambda api: api.model_info("tester/x", revision="none")),
        (RemoteEntryNotFoundError, lambda api: hf_hub_download("tester/x", "none")),
        (RevisionNotFoundError, lambda api: hf_hub_download("tester/x", "a.json", revision="none")),
        (HfHubHTTPError, lambda api: api.create_repo("tester/x")),
        (HfHubHTTPError, lambda api: api.create_repo("reader/x")),
        (HfHubHTTPError, lambda api: HfApi(token="hf_wrong").whoami()),
        (HfHubHTTPError, lambda api: HfApi(token=READER).upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id="tester/x")),
        (ValueError, lambda api: api.upload_file(
            path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="tester/x")),
        (HfHubHTTPError, lambda api: api.create_commit(
            "tester/x", [CommitOperationAdd("q", b"q")], commit_message="m", parent_commit="0" * 40)),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_hub(api, hub, repo, error, call):
    before = hub.files("tester/x")
    with pytest.raises(error):
        call(api)
    assert hub.files("tester/x") == before


def test_private_and_gated(api, hub, repo):
    reader, nobody = HfApi(token=READER), HfApi(token=False)
    api.update_repo_settings("tester/x", private=True)
    for other in (reader, nobody):
        with pytest.raises(RepositoryNotFoundError):
            other.model_info("tester/x")
    assert api.model_info("tester/x").private
    api.update_repo_settings("tester/x", private=False, gated="manual")
    for token in (READER, False):
        with pytest.raises(GatedRepoError):
            hf_hub_download("tester/x", "a.json", token=token)
    hub.store.repos["models", "tester/x"].gated.append("reader")
    hf_hub_download("tester/x", "a.json", token=READER)


def test_the_token_goes_to_the_hub_and_not_to_the_host_of_the_files(api, hub, repo):
    hf_hub_download("tester/x", "deep/b.bin")
    assert {entry.token for entry in hub.requests("/resolve/")} == {WRITER}
    assert {entry.token for entry in hub.requests("^/(cdn|lfs/upload)/")} == {None}


def test_ranges(api, hub, repo):
    from huggingface_hub import HfFileSystem

    with HfFileSystem(endpoint=hub.endpoint, token=WRITER).open("tester/x/deep/b.bin", block_size=1000) as file:
        file.seek(150_000)
        assert file.read(10) == FILES["deep/b.bin"][150_000:150_010]
    parts = hub.requests("/cdn/", "GET")
    assert parts and all(entry.status == 206 and entry.sent < 300_000 for entry in parts)


def test_a_download_that_is_cut_goes_on_where_it_stopped(api, hub, repo, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.fail("cut", "/cdn/", after=100_000)
    assert Path(hf_hub_download("tester/x", "deep/b.bin")).read_bytes() == FILES["deep/b.bin"]
    first, second = hub.requests("/cdn/", "GET")
    assert (first.sent, second.status, second.sent) == (100_000, 206, 200_000)


def test_a_lost_connection_leaves_nothing_that_looks_like_the_file(api, hub, repo, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fault = hub.fail("cut", "/cdn/", after=100_000, times=100)
    with pytest.raises(Exception, match="peer closed"):
        hf_hub_download("tester/x", "deep/b.bin")
    fault.times = 0
    assert Path(hf_hub_download("tester/x", "deep/b.bin")).read_bytes() == FILES["deep/b.bin"]


@pytest.mark.parametrize("fault", [{"kind": "refuse"}, {"kind": "cut_upload", "after": 1000}, {"kind": "status"}])
def test_an_upload_that_fails_is_tried_again(api, hub, monkeypatch, fault):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    api.create_repo("tester/x")
    hub.fail(pattern="/lfs/upload/", **fault)
    api.upload_file(path_or_fileobj=FILES["deep/b.bin"], path_in_repo="b.bin", repo_id="tester/x")
    assert hub.files("tester/x")["b.bin"] == FILES["deep/b.bin"]
    assert [entry.fault for entry in hub.requests("/lfs/upload/")] == [fault["kind"], None]


def test_it_keeps_what_it_has(hub, repo, tmp_path):
    again = HubServer(hub.root)
    try:
        assert again.files("tester/x") == hub.files("tester/x")
        assert again.store.repos["models", "tester/x"].branches == {"main": repo.oid}
    finally:
        again._http.server_close()


def test_as_a_program(hub_client, tmp_path):
    program = Path(__file__).with_name("hub_server.py")
    command = [sys.executable, str(program), "--root", str(tmp_path / "kept")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            endpoint = server.stdout.readline().strip().removeprefix("export HF_ENDPOINT=")
            assert server.stdout.readline().strip() == f"export HF_TOKEN={WRITER}"
            assert HfApi(endpoint=endpoint, token=WRITER).whoami()["name"] == "tester"
        finally:
            server.terminate()
