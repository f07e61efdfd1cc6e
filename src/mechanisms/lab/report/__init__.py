"""The report: a static site that opens from disk without a network, and single pages in the same style.

`build_report` writes the ledger with a page for each paper and experiment; `page` writes one stand-alone file.
"""

from mechanisms.lab.report.site import build_report
from mechanisms.lab.report.standalone import Section, Table, page

__all__ = ["Section", "Table", "build_report", "page"]
