"""Data specifications: what every source gives, how it is split, and what a bad row is told."""

import json
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastrl import datasources
from fastrl.datasources import PRESETS, SPLITS, TEMPLATE, load_examples
from fastrl.errors import UsageError
from fastrl.grading import grade


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def by_split(source, **settings):
    """The examples of every split that has some."""
    found = {}
    for split in SPLITS:
        try:
            found[split] = load_examples(source, split=split, **settings)
        except UsageError as error:
            if "has no rows" not in str(error):
                raise
    return found


def everything(source, **settings):
    """All rows of a source that is split by hash, by their ids."""
    return {e.id: e for rows in by_split(source, **settings).values() for e in rows}


def filler(count=60):
    """Rows enough for every split to have some."""
    return [{"prompt": f"what is {i}+{i}?", "answer": str(2 * i)} for i in range(count)]


MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"}]
GOOD = [
    {"prompt": "q {x}", "answer": "7", "level": 3},
    {"question": "q?", "answer": 7},
    {"prompt": None, "question": "q", "answer": "7", "messages": None},
    {"messages": MESSAGES, "answer": " 7 "},
    {"prompt": "日本\u2028?", "answer": "a\nb"},
    {"prompt": "n", "answer": 0.1},
    {"prompt": "n", "answer": 1e22},
    {"prompt": "n", "answer": -1e-7},
]


def test_a_jsonl_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, GOOD + filler())), encoding="utf-8")
    found = everything(str(path))
    assert sorted(found) == list(range(0, 2 * len(GOOD + filler()), 2))  # by line
    turns = [found[2 * i].messages for i in range(len(GOOD))]
    asked = ["q {x}", "q?", "q", None, "日本\u2028?", "n", "n", "n"]
    for messages, question in zip(turns, asked, strict=True):
        if question is None:
            assert list(messages) == MESSAGES
        else:
            assert messages == (
                {"role": "user", "content": TEMPLATE.replace("{prompt}", question)},
            )
    answers = [found[2 * i].answer for i in range(len(GOOD))]
    big, small = "1" + "0" * 22, "-0.0000001"
    assert answers == ["7", "7", "7", " 7 ", "a\nb", "0.1", big, small]
    assert found[0].columns == {"level": 3} and found[6].columns == {}


def test_a_parquet_file(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [{**row, "level": i} for i, row in enumerate(filler())]
    rows[0]["answer"] = rows[1]["prompt"] = None
    pq.write_table(pa.Table.from_pylist(rows[2:]), path)
    found = everything(str(path))
    assert [e.columns["level"] for _, e in sorted(found.items())] == list(range(2, 60))
    assert found[3].answer == "10" and found[3].messages[0]["content"].startswith("what is 5+5?")
    for bad, said in ((0, "row 0: 'answer' is None"), (1, "row 1: 'prompt' is None")):
        table = pa.Table.from_pylist([*rows[2 : 2 + bad], rows[bad], *filler()])
        pq.write_table(table, path)
        with pytest.raises(UsageError, match=f"rows.parquet {said}"):
            everything(str(path))
    path.write_text("no parquet")
    with pytest.raises(UsageError, match="rows.parquet is no readable parquet file"):
        load_examples(str(path))


BAD = [
    (b'{"prompt":', "is no JSON: .* at column 11"), (b"[]", "is no object"), (b"7", "is no obj"),
    (b'{"prompt": "\xff", "answer": "7"}', "is no UTF-8: .* at byte 12"),
    (b"[" * 100_000, "cannot be read: "), (b"1" * 5000, "cannot be read: .*4300 digits"),
    (b'{"prompt": "q"}', "'answer' is None; give a string that is not empty"),
    (b'{"prompt": "q", "answer": " "}', "'answer' is ' '"),
    (b'{"prompt": "q", "answer": true}', "'answer' is True"),
    (b'{"prompt": "q", "answer": NaN}', "'answer' is nan"),
    (b'{"prompt": "q", "answer": ["7"]}', r"'answer' is \['7'\]"),
    (b'{"answer": "7"}', "'prompt' is None; give 'prompt', 'question' or 'messages'"),
    (b'{"prompt": " ", "answer": "7"}', "'prompt' is ' '"),
    (b'{"question": 3, "answer": "7"}', "'question' is 3"),
    (b'{"messages": [], "answer": "7"}', "'messages' must be a list of objects with role and"),
    (b'{"messages": [{"role": "user"}], "answer": "7"}', "'messages' must be a list of objects"),
    (b'{"messages": ["hello"], "answer": "7"}', "'messages' must be a list of objects"),
    (b'{"messages": [{"role": "assistant", "content": "7"}], "answer": "7"}',
     "last of its 'messages' is of role 'assistant'; end with the user's turn"),
]  # fmt: skip


@pytest.mark.parametrize("line, said", BAD)
def test_a_bad_row_is_named_by_its_file_and_line(tmp_path, line, said):
    path = tmp_path / "rows.jsonl"
    good = "\n".join(map(json.dumps, filler())).encode()
    path.write_bytes(good + b"\n\n" + line + b"\n")
    with pytest.raises(UsageError, match=rf"rows\.jsonl line 62:? .*{said}"):
        everything(str(path))


def test_a_source_without_splits_is_split_by_its_questions(tmp_path):
    rows = [{"prompt": f"q{i % 500}", "answer": "7", "row": i} for i in range(1000)]
    rows += [{"messages": [{"role": "user", "content": f"q{i % 50}"}], "answer": str(i)}
             for i in range(100)]  # fmt: skip
    source = write(tmp_path / "rows.jsonl", rows)
    asked = {s: [e.messages for e in load_examples(source, split=s)] for s in SPLITS}
    questions = {s: {m[0]["content"] for m in found} for s, found in asked.items()}
    assert sum(map(len, asked.values())) == 1100
    assert sum(map(len, questions.values())) == 550  # no question stands on two sides
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(len(asked[split]) / 1100 - share) < 0.05
    assert load_examples(source, split="test") == load_examples(source, split="test", seed=5)
    assert load_examples(source, limit=7) == load_examples(source)[:7]
    other = write(tmp_path / "other.jsonl", rows[::-1])
    assert {e.columns.get("row") for e in load_examples(other, split="test")} == {
        e.columns.get("row") for e in load_examples(source, split="test")
    }


def test_the_template_is_the_users_turn(tmp_path):
    rows = [{"prompt": "{prompt} {y}", "answer": "7"}, {"messages": MESSAGES, "answer": "2"}]
    found = everything(write(tmp_path / "rows.jsonl", rows + filler()), template="Q: {prompt} A:")
    assert found[0].messages == ({"role": "user", "content": "Q: {prompt} {y} A:"},)
    assert list(found[1].messages) == MESSAGES
    with pytest.raises(UsageError, match=r"has no \{prompt\}; write it where the question goes"):
        load_examples("embedded", template="no place")


@pytest.mark.parametrize(
    "source, said",
    [
        ("nothing", "there is no data 'nothing'; give embedded, .*, math500, "),
        ("rows.csv", "there is no data 'rows.csv'"),
        ("missing.jsonl", "there is no file missing.jsonl"),
        ("missing.parquet", "there is no file missing.parquet"),
        ("hf:openai/gsm8k", "names no split; give hf:REPO:SPLIT"),
        ("hf:openai/gsm8k:", "names no split"),
        ("hf::train", "names no split"),
        ("aime24", "aime24 is for testing only, it has no train split; train on another"),
    ],
)
def test_a_source_that_is_none(source, said):
    with pytest.raises(UsageError, match=said):
        load_examples(source)


def test_an_empty_split_says_how_rows_are_split(tmp_path):
    source = write(tmp_path / "rows.jsonl", filler(1))
    empty = set(SPLITS) - by_split(source).keys()
    assert len(empty) == 2
    for split in empty:
        with pytest.raises(UsageError, match=f"no rows in its {split} split .*one row in 10"):
            load_examples(source, split=split)
    with pytest.raises(UsageError, match="there is no split 'dev'; allowed: train, validation"):
        load_examples(source, split="dev")


ROWS = {  # a row as its data set has it; the question and the answer that come of it
    "math": ({"problem": "P", "level": "Level 5", "type": "Algebra",
              "solution": r"First $\boxed{1}$, then $\boxed{\frac{1}{2}}$."}, "P", r"\frac{1}{2}"),
    "math500": ({"problem": "P", "solution": r"\boxed{3}", "answer": r"\left( 3, \pi \right)",
                 "subject": "Precalculus", "level": 2, "unique_id": "test/807.json"},
                "P", r"\left( 3, \pi \right)"),
    "minerva": ({"question": "Q", "answer": "4.5e33"}, "Q", "4.5e33"),
    "deepscaler": ({"problem": "P", "answer": r"-\frac{2}{3}", "solution": "S"},
                   "P", r"-\frac{2}{3}"),
    "aime24": ({"id": 60, "problem": "P", "solution": "S", "answer": "204", "url": "U",
                "year": "2024"}, "P", "204"),
    "aime25": ({"problem": "P", "answer": "70", "id": "0"}, "P", "70"),
    "hmmt24": ({"problem_idx": 1, "problem": "P", "answer": 2007, "problem_type": ["A"]},
               "P", "2007"),
    "hmmt25": ({"problem_idx": 1, "problem": "P", "answer": "103"}, "P", "103"),
    "gsm8k": ({"question": "Q", "answer": "He pays 5*2=<<5*2=10>>10.\n#### 1,234"}, "Q", "1234"),
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch):
    """Stands in for `datasets.load_dataset`: gives `hub.rows`, notes what was asked for."""
    import datasets

    hub = SimpleNamespace(rows=[], asked=[])

    def load_dataset(repo, config, split):
        hub.asked.append((repo, config, split))
        if isinstance(hub.rows, Exception):
            raise hub.rows
        return datasets.Dataset.from_list(hub.rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return hub


def test_every_preset_has_a_row_here_and_a_data_set_of_its_own():
    assert ROWS.keys() == PRESETS.keys()
    assert len({preset.repo for preset in PRESETS.values()}) == len(PRESETS)
    for name in ("aime24", "aime25", "hmmt24", "hmmt25"):
        assert name[:4] in PRESETS[name].repo and PRESETS[name].repo.endswith(name[4:])


@pytest.mark.parametrize("name", ROWS)
def test_a_preset_reads_rows_of_its_shape(name, hub):
    row, question, answer = ROWS[name]
    preset, hub.rows = PRESETS[name], [row]
    split = "test" if preset.test else "train"
    (e,) = load_examples(name, split="test") if preset.test else everything(name).values()
    assert e.messages[0]["content"] == TEMPLATE.replace("{prompt}", question)
    assert e.answer == answer
    assert set(e.columns) == set(row) - {preset.question, preset.answer}
    assert grade([rf"\boxed{{{answer}}}"], [e.answer])[0].correct
    assert set(hub.asked) == {(preset.repo, preset.config, preset.test or preset.train)}
    for column in (preset.question, preset.answer):
        hub.rows = [{k: v for k, v in row.items() if k != column}]
        with pytest.raises(UsageError, match=f"row 0 has no column '{column}', only "):
            load_examples(name, split=split)
    hub.rows = [{**row, preset.answer: None}]
    with pytest.raises(UsageError, match="row 0: no answer was found in 'None'"):
        load_examples(name, split=split)


def test_the_splits_of_presets(hub):
    hub.rows = [{"problem": f"P{i}", "solution": rf"\boxed{{{i}}}"} for i in range(200)]
    train, validation = (load_examples("math", split=s) for s in ("train", "validation"))
    assert len(train) + len(validation) == 200 and 8 < len(validation) < 35
    assert not {e.id for e in train} & {e.id for e in validation}
    assert len(load_examples("math", split="test")) == 200
    assert [split for _, _, split in hub.asked] == ["train", "train", "test"]
    hub.rows = [{"problem": f"P{i}", "answer": str(i)} for i in range(200)]
    assert len(everything("deepscaler")) == 200
    assert {split for repo, _, split in hub.asked[3:]} == {"train"}
    with pytest.raises(UsageError, match="no validation split; give .*eval_source, or eval.prom"):
        load_examples("math500", split="validation")


def test_answers_are_taken_out_of_solutions(hub):
    assert datasources.after_hashes("12 #### 3\n#### 1,234,567.5 ") == "1234567.5"
    assert datasources.after_hashes("#### 1,2") == "1,2"
    assert datasources.after_hashes("no marker") is None
    assert datasources.after_hashes("#### ") is None
    assert datasources.last_boxed(r"\boxed{1} and \fbox{ \{2\} }") == r"\{2\}"
    assert datasources.last_boxed(r"$\boxed 2$.") == "2"
    assert datasources.last_boxed("".join(rf"\boxed{{{i}}}" for i in range(9))) == "8"
    assert datasources.last_boxed(r"\boxed{1") is None
    hub.rows = [{"problem": "P", "solution": r"\boxed{1}"}, {"problem": "P", "solution": "two"}]
    with pytest.raises(UsageError, match="MATH-lighteval:test row 1: no answer was found in 'two'"):
        load_examples("math", split="test")


def test_a_data_set_of_the_hub(hub):
    hub.rows = filler()
    assert len(everything("hf:some/repo:train[:10%]")) == 60
    assert set(hub.asked) == {("some/repo", None, "train[:10%]")}
    hub.rows = ConnectionError("no route\nmore")
    said = r"some/repo \(split test\) cannot be loaded: ConnectionError: no route; check the name"
    with pytest.raises(UsageError, match=said):
        load_examples("hf:some/repo:test")


def test_the_embedded_task_needs_no_template():
    train, test = (load_examples("embedded", split=s, limit=50) for s in ("train", "test"))
    assert [e.id for e in train] == list(range(50))
    assert all(e.messages[0]["content"].startswith("Compute ") for e in train + test)
    assert not {e.messages[0]["content"] for e in train} & {e.messages[0]["content"] for e in test}
    assert train != load_examples("embedded", limit=50, seed=1)
    (example,) = load_examples("embedded", limit=1, template="{prompt}=")
    assert example.messages[0]["content"] == train[0].messages[0]["content"] + "="


def gym(names, **settings):
    return load_examples(f"reasoning-gym:{names}", **({"limit": 30} | settings))


def test_reasoning_gym_rows():
    mixed = gym("chain_sum+leg_counting")
    assert Counter(e.columns["task"] for e in mixed) == {"chain_sum": 15, "leg_counting": 15}
    assert [e.columns["task"] for e in mixed[:3]] == ["chain_sum", "leg_counting", "chain_sum"]
    assert mixed == gym("chain_sum+leg_counting")
    assert mixed[:10] == gym("chain_sum+leg_counting", limit=10)
    assert [e.answer for e in mixed[::2]] == [e.answer for e in gym("chain_sum")[:15]]
    small = gym("chain_sum", task_args={"chain_sum": {"min_terms": 2, "max_terms": 2}})
    assert all(e.messages[0]["content"].count("+") + e.messages[0]["content"].count("-") <= 3
               for e in small)  # fmt: skip


@pytest.mark.parametrize("seed", [0, 7, 4293, 2**40 + 1])
def test_reasoning_gym_seeds_its_splits_apart(monkeypatch, seed):
    import reasoning_gym

    asked = []
    create = reasoning_gym.create_dataset

    def note(name, seed, size, **settings):
        asked.append(range(seed, seed + size))
        return create(name, seed=seed, size=size, **settings)

    monkeypatch.setattr(reasoning_gym, "create_dataset", note)
    for s in (seed, seed + 1):
        for split in SPLITS:
            assert len(gym("pool_matrix", split=split, seed=s, limit=3)) == 3
    assert len({r.start // 100_000 for r in asked}) == 6
    assert all(r.start >= 0 and r.stop <= 2**32 for r in asked)  # numpy's seeds
    with pytest.raises(UsageError, match="400002 rows of .* its validation split has 400000"):
        gym("chain_sum+pool_matrix", split="validation", limit=400_002)


@pytest.mark.parametrize(
    "names, args, said",
    [
        ("chain_som", {}, "no task 'chain_som'; did you mean 'chain_sum'"),
        ("", {}, "no task ''"),
        ("chain_sum+", {}, "no task ''"),
        ("chain_sum", {"leg_counting": {}}, r"\[data.task_args.leg_counting\] belongs to no task"),
        ("chain_sum", {"chain_sum": {"terms": 2}}, r"\[data.task_args.chain_sum\] does not fit"),
        ("chain_sum", {"chain_sum": {"min_terms": 0}}, r"\[data.task_args.chain_sum\] does not"),
    ],
)
def test_reasoning_gym_tasks_that_cannot_be(names, args, said):
    with pytest.raises(UsageError, match=said):
        gym(names, task_args=args)


def test_solved_examples_go_before_every_prompt():
    shots = ("1 + 1?", "\\boxed{2}")
    plain = load_examples("embedded", limit=3)
    shown = load_examples("embedded", limit=3, shots=shots)
    for one, other in zip(plain, shown, strict=True):
        assert [m["role"] for m in other.messages] == ["user", "assistant", "user"]
        assert [m["content"] for m in other.messages[:2]] == list(shots)
        assert other.messages[2:] == one.messages and other.answer == one.answer
    with pytest.raises(UsageError, match="3 turns; give pairs"):
        load_examples("embedded", shots=("a", "b", "c"))


def test_a_file_is_tested_on_whole_unless_it_was_trained_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"question {i}", "answer": str(i)} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(path)
    assert (datasources.test_split(source, "embedded"), datasources.test_split(source, source)) == (
        "all", "test",
    )  # fmt: skip
    assert datasources.test_split("embedded", "math") == "test"
    every = load_examples(source, split="all")
    assert [e.answer for e in every] == [row["answer"] for row in rows]
    parts = [load_examples(source, split=split) for split in ("train", "validation", "test")]
    assert sorted(e.id for part in parts for e in part) == list(range(50))
    with pytest.raises(UsageError, match="splits of its own"):
        load_examples("embedded", split="all")
    with pytest.raises(UsageError, match="task_args"):
        load_examples("embedded", task_args={"chain_sum": {"min_terms": 2}})
