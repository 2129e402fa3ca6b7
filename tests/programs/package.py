"""Build sdist and wheel: exit code 1 where a file is missing in them, or a link of their page leads nowhere.

python tests/programs/package.py   (needs the packages build and twine)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = {name for name in tracked.splitlines() if (ROOT / name).is_file()}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"  # of tracked files alone; and a build writes into the folder that it is of
        for name in files:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
        subprocess.run([sys.executable, "-m", "build", "--outdir", folder, str(tree)], check=True, capture_output=True)
        wheel, sdist = next(Path(folder).glob("*.whl")), next(Path(folder).glob("*.tar.gz"))
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], check=True)
        with zipfile.ZipFile(wheel) as archive:
            missing = {name for name in files if name.startswith("combo_hf/")} - set(archive.namelist())
            page = next(archive.read(name) for name in archive.namelist() if name.endswith("/METADATA")).decode()
        with tarfile.open(sdist) as archive:
            missing |= files - {name.partition("/")[2] for name in archive.getnames()}
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}, {sdist.stat().st_size / 1e6:.1f} MB")
    if missing:
        print(f"missing in wheel or sdist: {', '.join(sorted(missing))}", file=sys.stderr)
    relative = re.findall(r"\]\((?!https?:)[^)]+\)", page)
    if relative or "# combo_hf" not in page:
        print(f"links of the index page that lead nowhere: {relative}", file=sys.stderr)
    return int(bool(missing or relative or "# combo_hf" not in page))


if __name__ == "__main__":
    sys.exit(main())
