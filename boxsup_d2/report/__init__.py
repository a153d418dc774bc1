"""A page to look at masks with: one static HTML file that shows, sorts and compares mask files (``docs/report.md``).

It reads files and writes files. Networks, configs and data set registration have no part in it.
"""

from boxsup_d2.report.mask_sets import MaskSet
from boxsup_d2.report.write import write_report

__all__ = ["MaskSet", "write_report"]
