"""Of any data file: examples as promised, in the same splits each time, or one clear sentence."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrl.datasources import EVERY_ROW, SPLITS, load_examples
from fastrl.errors import UsageError

bounded = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=9)
)
anything = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
words = st.text(min_size=1, max_size=12)
turn = st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": words})
good = st.one_of(
    st.fixed_dictionaries({"prompt": words, "answer": words}),
    st.fixed_dictionaries({"question": words, "answer": st.integers() | st.floats()}),
    st.fixed_dictionaries({"messages": st.lists(turn, min_size=1, max_size=3), "answer": words}),
)
keys = st.sampled_from(["prompt", "question", "messages", "answer", "level"])
row = st.one_of(good, good, good, st.dictionaries(keys, anything, max_size=4))


def splits_of(path):
    """The examples of each split, or the refusal; a split without rows has none."""
    found = {}
    for split in (*SPLITS, EVERY_ROW):
        try:
            found[split] = load_examples(str(path), split=split)
        except UsageError as error:
            sentence = str(error)
            assert "\n" not in sentence and str(path) in sentence and len(sentence) < 800, sentence
            if "has no rows in its" not in sentence:
                return sentence
            found[split] = []
    return found


def check(path):
    """What every file that is read gives."""
    found = splits_of(path)
    if isinstance(found, str):
        assert splits_of(path) == found
        return "refused"
    everything = {e.id: e for e in found[EVERY_ROW]}
    parts = [e.id for split in SPLITS for e in found[split]]
    assert sorted(parts) == sorted(everything)  # each row is in one split
    for split in SPLITS:
        assert [e.id for e in found[split]] == sorted(e.id for e in found[split])
        assert all(everything[e.id] == e for e in found[split])
    for example in everything.values():
        assert example.answer.strip() and example.messages[-1]["role"] == "user"
        json.dumps([example.answer, example.messages], ensure_ascii=False).encode()
    sides = {}  # no question stands in two splits
    for split in SPLITS:
        for e in found[split]:
            question = json.dumps(e.messages, sort_keys=True)
            assert sides.setdefault(question, split) == split
    return "read"


@bounded
@given(rows=st.lists(row, max_size=12))
def test_rows_of_a_jsonl_file(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        check(path)


@bounded
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode())))
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_any_bytes(name, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        check(path)


@bounded
@given(rows=st.lists(row, min_size=1, max_size=12))
def test_rows_of_a_parquet_file(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        try:
            pq.write_table(pa.Table.from_pylist(rows), path)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
            return  # columns of two types, or of none that parquet has
        check(path)


def test_the_properties_see_both_ends():
    """Rows as these are drawn are read and refused; else the properties would say nothing."""
    found = set()

    @settings(bounded, max_examples=40)
    @given(rows=st.lists(row, min_size=1, max_size=3))
    def draw(rows):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            found.add(check(path))

    draw()
    assert found == {"read", "refused"}
