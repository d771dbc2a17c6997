"""A page as one HTML file.

The file carries its blocks as JSON, which a script of ours (the .js files beside this one, with
vendor/uPlot for the axes of plots) builds the page from. No text of a block is ever parsed as
HTML: the JSON holds no "<", and the script sets texts, not markup. The browser is told to run and
to style by nothing but what is in the file, and to fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib.resources import files
from numbers import Real
from typing import Any

from fastrl.page.blocks import Page, Plot, Samples, Table

STYLES = ("vendor/uPlot.min.css", "page.css")
# one scope: what a later file uses, an earlier one declares
SCRIPTS: tuple[str, ...] = ("elements.js", "style.js", "ranges.js", "drawing.js", "plot.js")
SCRIPTS += ("hover.js", "table.js", "cards.js", "samples.js", "page.js")
# what could end a script or start markup, in any text of the JSON
ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&"})
NO_SCRIPT = (
    "This report draws its plots and tables with a script of its own, which loads nothing. "
    "Please allow JavaScript to read it."
)


def render(page: Page) -> str:
    """One HTML file that loads nothing; the same page gives the same text, all of it ASCII.

    Raises ValueError for a group that `page.groups` does not have.
    """
    _check_groups(page)
    style = "\n".join(_resource(name) for name in STYLES)
    own = "\n".join(_resource(name) for name in SCRIPTS)
    # its licence goes with every copy
    uplot = f"/*\n{_resource('vendor/LICENSE-uPlot')}*/\n{_resource('vendor/uPlot.iife.min.js')}"
    scripts = [uplot, f'(() => {{\n"use strict";\n{own}}})();\n']
    for source in scripts:
        assert "</script" not in source and "<!--" not in source
    assert "</style" not in style
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"script-src {' '.join(_hash(source) for source in scripts)}; style-src {_hash(style)}"
    )
    title = html.escape(page.title).encode("ascii", "xmlcharrefreplace").decode("ascii")
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{title}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        f"<noscript><p>{NO_SCRIPT}</p></noscript>",
        f'<script type="application/json" id="page-data">{_data(page)}</script>',
        *(f"<script>{source}</script>" for source in scripts),
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _resource(name: str) -> str:
    text = files("fastrl.page").joinpath(name).read_text(encoding="utf-8")
    assert text.isascii(), name
    return text.replace("\r\n", "\n")  # as the browser reads it before it takes the hash


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode("ascii")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _data(page: Page) -> str:
    plain = _plain(page)
    for section, anchor in zip(plain["sections"], _anchors(page), strict=True):
        section["anchor"] = anchor
    # ASCII also spells U+2028, U+2029 and halves of characters, which have no UTF-8, as escapes
    text = json.dumps(plain, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPES)


def _plain(value: Any) -> Any:
    """What JSON has for a block: a mapping is its pairs, in order, and no finite number null."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, Real):
        number = float(value)
        if not math.isfinite(number):
            return None
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    if is_dataclass(value):
        named = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__name__, **named}
    if isinstance(value, Mapping):
        return [[_plain(k), _plain(v)] for k, v in value.items()]
    return [_plain(item) for item in value]


def _anchors(page: Page) -> Iterator[str]:
    """An id for each section, of letters, digits and hyphens, each once."""
    taken = {"top", "page-data"}
    for number, section in enumerate(page.sections, 1):
        words = re.findall(r"[a-z0-9]+", (section.anchor or section.title).lower())
        anchor = base = "-".join(words)[:60] or f"section-{number}"
        count = 1
        while anchor in taken:
            count += 1
            anchor = f"{base}-{count}"
        taken.add(anchor)
        yield anchor


def _check_groups(page: Page) -> None:
    for group in _groups(page):
        if group and group not in page.groups:
            near = get_close_matches(group, page.groups, 1)
            raise ValueError(
                f"the group {group!r} is not in the page's groups, which are "
                f"{', '.join(map(repr, page.groups)) or 'none'}"
                + (f"; did you mean {near[0]!r}?" if near else "; add it, with its label")
            )


def _groups(page: Page) -> Iterator[str]:
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Plot):
                yield from (series.group for series in block.series)
            elif isinstance(block, Table):
                yield from block.row_groups
            elif isinstance(block, Samples):
                yield from (r.group for prompt in block.prompts for r in prompt.responses)
