"""Train by a recipe; the same as `combo-hf train`, as a script that launchers of several processes can start.

python examples/train.py --recipe synthetic-quick --output runs/quick
accelerate launch --quiet --config_file examples/accelerate/multi-gpu.yaml examples/train.py --recipe ... --output ...
python -m torch.distributed.run --nproc_per_node 2 examples/train.py --recipe ... --output ... --device cpu

Bad input is one line. Without --quiet accelerate adds a traceback of its own, of its launcher.
"""

import sys

from combo_hf import cli


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
