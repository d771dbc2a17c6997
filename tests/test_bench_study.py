"""The tables of README and docs are those that the figures beside them give."""

import json
import re
from pathlib import Path

import pytest

from fastrl.bench.marked import put
from fastrl.bench.study import PARTS, exact

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
MARK = re.compile(r"<!-- (exact|study (\S+) (\S+)): made by bench/study\.py -->")
MARKED = [
    (path, *found.groups())
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for found in MARK.finditer(path.read_text())
]


def test_there_are_tables():
    assert len(MARKED) > 8


@pytest.mark.parametrize(
    ("path", "mark", "name", "part"), MARKED, ids=[f"{p.name}-{m}" for p, m, *_ in MARKED]
)
def test_a_table_is_what_the_kept_figures_give(path, mark, name, part, tmp_path):
    if name is None:
        text = exact(json.loads((RESULTS / "exact.json").read_text()))
    else:
        text = PARTS[part](json.loads((RESULTS / f"study-{name}.json").read_text()))
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    assert put(text, copy, mark, "study.py")
    assert copy.read_text() == path.read_text()
