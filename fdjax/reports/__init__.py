"""Tables and pictures that show what a run found: Markdown, terminal, JSON and PNG."""

from fdjax.reports.files import write, write_json, write_text
from fdjax.reports.multiples import plot_foretold
from fdjax.reports.pictures import (
    plot_cost,
    plot_curves,
    plot_plan,
    plot_ranking,
)
from fdjax.reports.tables import print_table, printable, table

__all__ = [
    "plot_cost",
    "plot_curves",
    "plot_foretold",
    "plot_plan",
    "plot_ranking",
    "print_table",
    "printable",
    "table",
    "write",
    "write_json",
    "write_text",
]
