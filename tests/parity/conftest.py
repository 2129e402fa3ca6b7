"""The recorded numbers of the official code, wherever they are."""

from pathlib import Path

import pytest
from goldens import Goldens


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    """Those that COMBO_GOLDENS names, those beside the clone, or the small part that every clone has."""
    return Goldens.find(Path(__file__).resolve().parents[3] / "shared")
