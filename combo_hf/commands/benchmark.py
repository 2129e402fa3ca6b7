"""`combo-hf benchmark`: how fast everything is, beside plain code and beside the machine's limits."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from combo_hf.commands.common import PROGRAM, add_command, device, load_transformers, positive


def benchmark(arguments: argparse.Namespace) -> None:
    """Time network, training, parts and whole videos against plain code; a table with ratios and shares of the limit.

    All of it takes about an hour on two cores and 20 GB; `--only` names parts of cases.
    """
    from combo_hf import benchmarking
    from combo_hf.benchmarking.report import seconds

    if arguments.list:
        print("\n".join(benchmarking.case_names()))
        return
    load_transformers()

    def show(result: Any) -> None:
        print(
            f"{result.case:34} {result.variant:24} {seconds(result.wall):>9} wall {seconds(result.cpu):>9} CPU  "
            f"x{result.cpu_ratio:.2f}  {result.note}",
            file=sys.stderr,
            flush=True,
        )

    names = ("rounds", "quick", "compile", "threads", "device")
    options = benchmarking.BenchmarkOptions(
        tuple(arguments.only or ()), **{name: getattr(arguments, name) for name in names}
    )
    results, machine = benchmarking.run_benchmark(options, show)
    print(benchmarking.as_table(results, machine))
    if arguments.output:
        benchmarking.write_json(results, machine, arguments.output)
        print(f"written to {arguments.output}")


def register(commands: Any) -> None:
    """Add the sub-command."""
    example = f"{PROGRAM} benchmark --only eval/r50 log-mel --rounds 5 --output speed.json"
    command = add_command(commands, "benchmark", benchmark, "times and ratios on this machine", example, light=True)
    command.add_argument("--only", nargs="+", metavar="PART", help="cases with one of these in the name; default: all")
    command.add_argument("--list", action="store_true", help="names of the cases")
    command.add_argument("--rounds", type=positive, default=5, help="of every case, medians are taken; default 5")
    command.add_argument("--quick", action="store_true", help="tiny networks and videos: does everything run?")
    command.add_argument("--compile", action="store_true", help="also torch.compile (minutes per case)")
    command.add_argument(
        "--device", type=device, default="cpu", help="default cpu; cuda: network, training and videos on it"
    )
    command.add_argument("--threads", type=positive, help="of torch; default: as torch finds it")
    command.add_argument(
        "--output", "--json", dest="output", type=Path, metavar="FILE", help="also a JSON file of all lines"
    )
