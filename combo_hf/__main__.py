"""`python -m combo_hf`: the same as the command `combo-hf`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
