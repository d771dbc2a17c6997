"""Texts that a script keeps up to date between two marks of a Markdown file."""

from __future__ import annotations

from pathlib import Path


def put(text: str, path: Path, name: str, script: str) -> bool:
    """Put `text` between the marks of `name` in a file; False where it has none."""
    begin, end = f"<!-- {name}: made by bench/{script} -->", f"<!-- {name} end -->"
    before, found, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        return False
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    return True
