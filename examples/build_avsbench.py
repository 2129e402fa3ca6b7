"""Check AVSBench, write it as parquet, and draw what is in it. Without AVSBench, synthetic clips in its folders do.

python examples/build_avsbench.py --root AVSBench --output avsbench --subset s4 --num-processes 4
python examples/build_avsbench.py --synthetic --output avsbench-synthetic --subset avss
"""

import sys
from pathlib import Path

from combo_hf.cli import Parser, run_script
from combo_hf.data.avsbench import SUBSETS, build_dataset, check_dataset, format_findings
from combo_hf.data.figures import count_rows, draw_histogram, row_picture
from combo_hf.data.synthetic.official_folders import write_official


def draw(folder: Path, subset: str) -> None:
    """Pictures of the first rows, and bars of what the training split holds."""
    from datasets import load_dataset

    pictures = folder.with_name(folder.name + "-pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    rows = load_dataset(str(folder), subset, split="train")
    for row in rows.select(range(min(3, len(rows)))):
        row_picture(row).save(pictures / f"{subset}-{row['video_id']}.png")
    counts = count_rows(rows.remove_columns(["frames", "audio"]))
    print(counts)
    bars = counts.categories or counts.classes
    what = "clips that name a category" if counts.categories else "annotated frames with a class"
    draw_histogram(bars, f"{subset} train: {what}").save(pictures / f"{subset}-histogram.png")
    print(f"pictures in {pictures}")


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, help="folder of AVSBench")
    parser.add_argument(
        "--synthetic", action="store_true", help="write synthetic clips to <output>-source and use them"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the parquet files")
    parser.add_argument("--subset", choices=SUBSETS, default="s4")
    parser.add_argument("--num-processes", type=int, default=1)
    arguments = parser.parse_args()
    if (arguments.root is None) == (not arguments.synthetic):
        parser.error("name either --root or --synthetic")

    root, subset = arguments.root, arguments.subset
    if arguments.synthetic:
        root = arguments.output.with_name(arguments.output.name + "-source")
        if not root.exists():
            write_official(root, subset, {"train": 6, "val": 2, "test": 2}, maskiges="superpixels")
    findings = check_dataset(root, subset, num_processes=arguments.num_processes)
    print(format_findings(findings))
    if any(finding.serious for finding in findings):
        raise SystemExit("mend the errors above, or leave the clips out: combo-hf data build --skip-broken")
    report = build_dataset(root, subset, arguments.output, num_processes=arguments.num_processes)
    print(f"{report.rows} rows in {report.folder}")
    draw(report.folder, subset)


if __name__ == "__main__":
    sys.exit(run_script(main))
