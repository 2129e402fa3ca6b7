"""What a package index shows of README.md; everything else stands in pyproject.toml.

On the page of an index a relative link leads nowhere, and this project states no address of its repository to lead to:
the picture goes, and links to files of the sdist become their names.
"""

import re
from pathlib import Path

from setuptools import setup


PICTURE = re.compile(r"^!\[.*\]\((?!https?:).*\)\n\n\*.*\*\n\n", re.MULTILINE)  # with the line that explains it
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)]+)\)")


def index_page(readme: str) -> str:
    """README without its own pictures and without links that are relative."""
    return LINK.sub(lambda m: m[1] if m[1] == m[2] else f"{m[1]} (`{m[2]}`)", PICTURE.sub("", readme))


if __name__ == "__main__":
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=index_page(text), long_description_content_type="text/markdown")
