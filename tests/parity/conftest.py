"""The recorded numbers of the official code, wherever they are."""

from pathlib import Path

import pytest
from goldens import Goldens


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    """Those that COMBO_GOLDENS names, those beside the clone, or the small part that every clone has."""
    return Goldens.find(Path(__file__).resolve().parents[3] / "shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The losses of a configuration right after its stages: a model of full size, which takes seconds to make, is kept
    for one configuration at a time, and neighbours run in one process."""
    named = {item.name: item for item in items if Path(str(item.path)).parent == Path(__file__).parent}
    pairs = [(named.get(name.replace("test_losses[", "test_stages[")), item) for name, item in named.items()]
    for stages, losses in pairs:
        if stages is not None and losses.name.startswith("test_losses["):
            items.remove(losses)
            items.insert(items.index(stages) + 1, losses)
