"""Synthetic scenes that are drawn and sound: clips, data set rows, shards, videos, folders in the layout of AVSBench.

`scenes` draws, `sounds` lets sound, `clip` puts both together, `dataset` writes many, `official_folders` writes them
as AVSBench stands on disk.
"""

from combo_hf.data.synthetic.dataset import *  # noqa: F403
from combo_hf.data.synthetic.dataset import __all__  # noqa: F401
