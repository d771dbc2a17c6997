"""The tables of `bench/table.py`."""

from fastrl.bench import table as script


def table(rows: list[dict], mark: str) -> str:
    """The rows as Markdown, made for the place of a file that `mark` names."""
    assert script.mark(rows) == mark
    return script.table(rows)
