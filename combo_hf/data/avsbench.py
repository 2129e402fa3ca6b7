"""AVSBench: read the official folders, write them as parquet for `datasets`, and say what is wrong with them.

This is the module to import from. `subsets` has the table of subset differences, `avsbench_layout` finds files,
`avsbench_rows` reads clips, `avsbench_build` writes shards, `avsbench_card` the card, `avsbench_check` finds faults.
"""

from combo_hf.data.avsbench_build import BuildReport, build_dataset
from combo_hf.data.avsbench_card import push_dataset
from combo_hf.data.avsbench_check import check_dataset, find_subsets
from combo_hf.data.avsbench_layout import ClipEntry, find_home, parse_objects, read_entries
from combo_hf.data.avsbench_rows import RowOptions, read_rows
from combo_hf.data.findings import Finding, format_findings
from combo_hf.data.row_format import to_class_ids
from combo_hf.data.subsets import AVSS_CLASSES, RULES, SPLITS, SUBSETS, SubsetRule, subset_rule


__all__ = [
    "AVSS_CLASSES",
    "RULES",
    "SPLITS",
    "SUBSETS",
    "BuildReport",
    "ClipEntry",
    "Finding",
    "RowOptions",
    "SubsetRule",
    "build_dataset",
    "check_dataset",
    "find_home",
    "find_subsets",
    "format_findings",
    "parse_objects",
    "push_dataset",
    "read_entries",
    "read_rows",
    "subset_rule",
    "to_class_ids",
]
