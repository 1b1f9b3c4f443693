"""The page that shows what happened in a run: reads run folders and draws; never trains."""

from genview.report.collect import Result, results
from genview.report.fitting import write_fit_page
from genview.report.page import write_page
from genview.report.watch import Curve, watched

__all__ = ["Curve", "Result", "results", "watched", "write_fit_page", "write_page"]
