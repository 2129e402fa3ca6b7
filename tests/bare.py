"""`combo_hf` for a process of a test that needs none of its networks: 0.1 s to start, not 5."""

from pathlib import Path


# The first line of such a program: the modules below `combo_hf`, without its `__init__`, which imports transformers.
BARE = (
    "import sys, types; package = sys.modules['combo_hf'] = types.ModuleType('combo_hf'); "
    f"package.__path__ = [{str(Path(__file__).resolve().parents[1] / 'combo_hf')!r}]\n"
)
