"""A static HTML page that shows, sorts and compares the masks of files (``docs/report.md``).

It reads and writes files, without networks, configs or registered data sets.
"""

from boxsup_d2.report.mask_sets import MaskSet
from boxsup_d2.report.write import write_report

__all__ = ["MaskSet", "write_report"]
