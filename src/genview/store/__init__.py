"""Files: parts that appear whole, Parquet tables, tar shards, the run folder."""

from genview.store.evaluated import Evaluated, read_results, want_results
from genview.store.parts import appearing, claim, folder_appearing, sweep, write_bytes, write_json, write_state
from genview.store.run import Measure, RunFolder
from genview.store.table import find_rows, read_mapped, read_table, write_arrays, write_mapped, write_table
from genview.store.tars import read_at, write_named_tar, write_tar

__all__ = [
    "Evaluated",
    "Measure",
    "RunFolder",
    "appearing",
    "claim",
    "find_rows",
    "folder_appearing",
    "read_at",
    "read_mapped",
    "read_results",
    "read_table",
    "sweep",
    "want_results",
    "write_arrays",
    "write_bytes",
    "write_json",
    "write_mapped",
    "write_named_tar",
    "write_state",
    "write_table",
    "write_tar",
]
