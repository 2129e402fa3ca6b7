"""What several tests do to processes: start small ones, fill the disk of this one, put its caches elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


# The first line of a program that needs none of the networks: the modules below `combo_hf` without its `__init__`,
# which imports transformers. It starts in 0.1 s, not in 5.
BARE = (
    "import sys, types; package = sys.modules['combo_hf'] = types.ModuleType('combo_hf'); "
    f"package.__path__ = [{str(Path(__file__).resolve().parents[1] / 'combo_hf')!r}]\n"
)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Files of more than `size` bytes cannot be written."""
    import resource  # of POSIX

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def datasets_cache(folder: Path) -> Iterator[None]:
    """What `datasets` keeps goes to `folder / "cache"`, in processes of tests too."""
    datasets = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        yield
