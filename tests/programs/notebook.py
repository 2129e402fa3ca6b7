"""Make examples/segment_a_video.ipynb from its twin, segment_a_video.py, in which cells begin with `# %%`.

python tests/programs/notebook.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any


TWIN = Path(__file__).resolve().parents[2] / "examples" / "segment_a_video.py"


def make_notebook(text: str) -> dict[str, Any]:
    """Cells of the percent format as a notebook without outputs."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(re.split(r"^# %%", text, flags=re.M)[1:]):
        kind, _, body = part.partition("\n")
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if "markdown" in kind:
            body = re.sub(r"^# ?", "", body, flags=re.M)
            cell |= {"cell_type": "markdown"}
        else:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**cell, "source": body.strip().splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> int:
    notebook = json.dumps(make_notebook(TWIN.read_text(encoding="utf-8")), indent=1)
    TWIN.with_suffix(".ipynb").write_text(notebook + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
