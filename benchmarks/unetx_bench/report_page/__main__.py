"""Render the page of a report again: ``python -m unetx_bench.report_page REPORT_JSON [-o PAGE]``."""

from __future__ import annotations

from pathlib import Path

import click

from unetx_bench.report import read_report
from unetx_bench.report_page.page import PAGE_NAME, render_report_page
from unetx_opt.files import write_file

__all__ = ["main"]


@click.command()
@click.argument("report", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Page to write.  [report.html beside REPORT]")
def main(report: Path, output: Path | None) -> None:
    """Write the page of REPORT, with the pictures beside it."""
    page = render_report_page(read_report(report), report.parent)
    write_file(output or report.with_name(PAGE_NAME), page.encode())


if __name__ == "__main__":
    main()
