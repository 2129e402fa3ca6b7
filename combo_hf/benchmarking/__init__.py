"""What `combo-hf benchmark` measures: the network, training, the parts around it and whole videos.

Every case compares plain code that is kept here (a straightforward execution of the same algorithm) with what the
package does, in one run, in alternation.
"""

from combo_hf.benchmarking.report import as_table, write_json
from combo_hf.benchmarking.run import BenchmarkOptions, case_names, run_benchmark


__all__ = ["BenchmarkOptions", "as_table", "case_names", "run_benchmark", "write_json"]
