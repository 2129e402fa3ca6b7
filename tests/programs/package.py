"""Build sdist and wheel, and look whether everything is in them; exit code 1 where something is missing.

python tests/programs/package.py   (needs the packages build and twine)
"""

from __future__ import annotations

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
        subprocess.run([sys.executable, "-m", "build", "--outdir", folder, str(ROOT)], check=True, capture_output=True)
        wheel, sdist = next(Path(folder).glob("*.whl")), next(Path(folder).glob("*.tar.gz"))
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], check=True)
        with zipfile.ZipFile(wheel) as archive:
            missing = {name for name in files if name.startswith("combo_hf/")} - set(archive.namelist())
        with tarfile.open(sdist) as archive:
            missing |= files - {name.partition("/")[2] for name in archive.getnames()}
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB; {sdist.name}, {sdist.stat().st_size / 1e6:.1f} MB")
    if missing:
        print(f"missing in wheel or sdist: {', '.join(sorted(missing))}", file=sys.stderr)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
