"""Run the three-minute recipe and compare its score with what its head states; exit code 1 if it is off.

python tests/programs/quick_recipe.py
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

from combo_hf import RECIPES
from combo_hf.training import TrainingRecipe, run_recipe


RECIPE = RECIPES / "synthetic-quick.yaml"


def stated(path: Path) -> tuple[float, float]:
    """Number and tolerance in the head of the recipe."""
    found = re.search(r"M_J (0\.\d+) \+- (0\.\d+)", path.read_text(encoding="utf-8"))
    return float(found.group(1)), float(found.group(2))


def main() -> int:
    wanted, tolerance = stated(RECIPE)
    recipe = TrainingRecipe.from_yaml(RECIPE, ["data.cache=null", *sys.argv[1:]])
    started, used = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = run_recipe(recipe, Path(folder) / "run", cpu=True)
    print(f"M_J {result.best:.3f}, stated {wanted} +- {tolerance}")
    print(f"{time.monotonic() - started:.0f} s, {time.process_time() - used:.0f} s of CPU time without the clips")
    return int(abs(result.best - wanted) > tolerance)


if __name__ == "__main__":
    sys.exit(main())
