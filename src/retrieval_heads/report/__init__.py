"""The report of a run: one HTML file that opens from disk and asks nothing of the network."""

from retrieval_heads.report.page import write_report
from retrieval_heads.report.stored_run import StoredRun, load_run, pick_records, read_ablations, read_compressions

__all__ = ["StoredRun", "load_run", "pick_records", "read_ablations", "read_compressions", "write_report"]
