"""Train by a recipe; the same as `combo-hf train`, as a script that launchers of several processes can start.

python examples/train.py --recipe examples/recipes/synthetic-quick.yaml --output runs/quick
accelerate launch --config_file examples/accelerate/multi-gpu.yaml examples/train.py --recipe ... --output ...
python -m torch.distributed.run --nproc_per_node 2 examples/train.py --recipe ... --output ... --device cpu
"""

import argparse
import sys

from transformers.utils import logging

from combo_hf.commands.training import add_arguments, train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    logging.disable_progress_bar()
    return train(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
