"""One HTML file from blocks of plots, tables, samples and text: `render(Page(...))`."""

from fastrl.page.blocks import (
    Block,
    Code,
    Figures,
    Page,
    Plot,
    SamplePrompt,
    SampleResponse,
    Samples,
    Section,
    Series,
    Table,
    Text,
    Verdict,
)
from fastrl.page.render import render

__all__ = [
    "Block",
    "Code",
    "Figures",
    "Page",
    "Plot",
    "SamplePrompt",
    "SampleResponse",
    "Samples",
    "Section",
    "Series",
    "Table",
    "Text",
    "Verdict",
    "render",
]
