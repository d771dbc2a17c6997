"""`bench/table.py`, which is a script and no module of the package."""

import importlib.util
from pathlib import Path


def table(rows: list[dict], mark: str) -> str:
    """The rows as Markdown, made for the place of a file that `mark` names."""
    path = Path(__file__).parents[1] / "bench" / "table.py"
    spec = importlib.util.spec_from_file_location("table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.marks(rows)[0].startswith(f"<!-- {mark}:")
    return module.table(rows)
