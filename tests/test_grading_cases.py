"""The verifier's rulings: files of answers with the verdict that the policy gives.

`cases.jsonl` came with the policy, and its lines with `firm` false are those on which a reasonable
person could rule otherwise; `own_cases.jsonl` was written from the policy without sight of the
code; `found_cases.jsonl` has what reviews and comparisons found, and how data sets write.
A gold beyond a limit may give no verdict: "not paid" is what counts.
"""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from fastrl.grading import grade

FOLDER = Path(__file__).parent / "grading"


def cases(name):
    by_category = defaultdict(list)
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        by_category[case["category"]].append(case)
    return by_category


CASES = {name: cases(name) for name in ("cases.jsonl", "own_cases.jsonl", "found_cases.jsonl")}


@pytest.mark.parametrize(
    "name, category", [(name, c) for name, found in CASES.items() for c in sorted(found)]
)
def test_every_case_gets_its_verdict(name, category):
    wrong = []
    for case in CASES[name][category]:
        (verdict,) = grade(
            [case["prediction"]], [case["gold"]], mode=case["mode"], content=case["content"]
        )
        if bool(verdict.correct) is not case["expected"]:
            wrong.append((case["id"], case["gold"][:60], case["prediction"][:60], verdict.reason))
    assert not wrong


def test_the_files_are_what_they_should_be():
    shared, own, found = (
        [case for group in CASES[name].values() for case in group] for name in CASES
    )
    assert len(shared) == 225 and sum(c["firm"] for c in shared) == 161
    assert len(own) >= 400 and sum(not c["expected"] for c in own) >= len(own) / 2
    assert len({c["id"] for c in shared + own + found}) == len(shared + own + found)


def test_verdicts_of_all_cases_do_not_depend_on_threads_or_order():
    every = [c for found in CASES.values() for group in found.values() for c in group]
    for content in ("answer", "completion"):
        chosen = [c for c in every if c["content"] == content]
        texts, golds = [c["prediction"] for c in chosen], [c["gold"] for c in chosen]
        alone = [grade([t], [g], content=content)[0] for t, g in zip(texts, golds, strict=True)]
        for threads in (1, 2, 7):
            assert grade(texts, golds, content=content, threads=threads) == alone
        assert grade(texts[::-1], golds[::-1], content=content, threads=3) == alone[::-1]
