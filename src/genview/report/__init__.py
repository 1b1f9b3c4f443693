"""The page that shows what happened in a run: reads run folders and draws; never trains."""

from genview.report.beside import Compared, write_comparison
from genview.report.collect import Result, results
from genview.report.comparison import Design, Entry, Row
from genview.report.fitting import write_fit_page
from genview.report.page import write_page
from genview.report.study import write_study, write_tables
from genview.report.watch import Curve, Standing, standings, watched

__all__ = [
    "Compared",
    "Curve",
    "Design",
    "Entry",
    "Result",
    "Row",
    "Standing",
    "results",
    "standings",
    "watched",
    "write_comparison",
    "write_fit_page",
    "write_page",
    "write_study",
    "write_tables",
]
