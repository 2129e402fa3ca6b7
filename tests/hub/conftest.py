"""A Hub of our own, and the client pointed at it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import WRITER, HubServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The client's own upload uses an argument that its HTTP library will drop."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with nothing in it. For other processes: `env=hub.environment(tmp_path / "home")`."""
    server = HubServer(tmp_path / "hub").start()
    yield server
    server.stop()


@pytest.fixture
def hub_client(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """`hub`, with the client of this process talking to it as its user `tester`, caches empty."""
    import huggingface_hub
    from huggingface_hub import constants, hf_api
    from huggingface_hub.hf_file_system import HfFileSystem

    home = tmp_path / "client"
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": home / "agent_harnesses.json",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    if "transformers" in sys.modules:  # its client is made once, with the address of then
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    if "datasets" in sys.modules:
        from datasets import config

        for name, value in {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": False,
            "HF_DATASETS_CACHE": home / "datasets",
            "HF_MODULES_CACHE": str(home / "modules"),
        }.items():
            monkeypatch.setattr(config, name, value)
    HfFileSystem.clear_instance_cache()
    huggingface_hub.close_session()
    yield hub
    HfFileSystem.clear_instance_cache()
    huggingface_hub.close_session()
