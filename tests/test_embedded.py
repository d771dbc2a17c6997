"""The embedded task keeps its law, and the embedded models are what the task says of them."""

import itertools
import json
import math
import random
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastrl.embedded import DIRECTORIES, NAMES, examples, make, measure, model_dir, task
from fastrl.errors import UsageError
from fastrl.model import load_model
from fastrl.packed_attention import PackedAttention
from fastrl.sampler import Sampler, SamplingParams
from fastrl.tokenizer import load_tokenizer


def some(split: str, seed: int, count: int) -> list[task.Problem]:
    return list(itertools.islice(task.problems(split, seed), count))


def test_no_expression_is_in_two_splits():
    expressions = {
        split: {p.expression for seed in range(3) for p in some(split, seed, 600)}
        for split in task.SPLITS
    }
    for one, other in itertools.combinations(expressions, 2):
        assert not expressions[one] & expressions[other]


def test_a_seed_gives_its_own_rows_each_time():
    rows = examples("test", 3, 200)
    assert rows == examples("test", 3, 200)
    prompts = {row[0][0]["content"] for row in rows}
    assert len(prompts) == 200
    others = {row[0][0]["content"] for row in examples("test", 4, 200)}
    assert len(prompts & others) < 20
    # a longer draw starts with the shorter one
    assert examples("test", 3, 300)[:200] == rows


def test_kinds_come_in_equal_parts():
    kinds = [columns["kind"] for _, _, columns in examples("test", 0, 400)]
    assert {kinds.count(kind) for kind in task.KINDS} == {100}


@pytest.mark.parametrize("split", task.SPLITS)
def test_answers_are_the_values_of_the_expressions(split):
    for (message,), answer, columns in examples(split, 1, 300):
        expression = message["content"].removeprefix(task.PROMPT)
        assert re.fullmatch(r"[0-9()*+-]+", expression)
        assert int(answer) == eval(expression)  # noqa: S307  (digits, operators, brackets only)
        assert 0 <= int(answer) <= columns["largest"] <= task.LARGEST


def test_a_split_or_a_number_of_rows_that_cannot_be_is_refused():
    with pytest.raises(UsageError, match="no split 'dev'.*train, validation, test"):
        examples("dev", 0, 1)
    with pytest.raises(UsageError, match=str(task.MOST_ROWS)):
        examples("test", 0, task.MOST_ROWS + 1)
    assert examples("test", 0, 0) == []


@pytest.mark.parametrize("share", task.SHARES)
def test_the_law_sums_to_one_and_each_sort_is_what_it_says(share):
    for problem in some("train", 5, 24):
        style = task.style_of(problem.kind, share)
        law = task.all_responses(problem, share)
        assert sum(p for p, _ in law.values()) == pytest.approx(1)
        for sort in task.SORTS:
            texts = [text for text, (_, s) in law.items() if s == sort]
            mass = sum(law[text][0] for text in texts)
            assert mass == pytest.approx(getattr(style, sort))
            for text in texts:
                right = task.boxed_answer(text) == problem.answer
                assert right == (sort == "right")
                wrong_lines = [
                    line
                    for line in re.findall(r"\d+[-+*]\d+=\d+", text)
                    if eval(line.split("=")[0]) != int(line.split("=")[1])  # noqa: S307
                ]
                assert len(wrong_lines) == (sort == "slip")
        assert sum(s == "shortcut" for _, s in law.values()) == 1


def test_drawing_follows_the_law():
    problem = some("train", 0, 1)[0]
    rng = random.Random(0)
    drawn = [task.draw_response(problem, 0.0, rng) for _ in range(4000)]
    law = task.all_responses(problem, 0.0)
    assert {text for text, _ in drawn} <= set(law)
    for sort in task.SORTS:
        share = sum(s == sort for _, s in drawn) / len(drawn)
        assert share == pytest.approx(getattr(task.STYLES["clean"], sort), abs=0.03)


@pytest.mark.parametrize("share", task.SHARES)
def test_the_dial_is_the_share_of_prompts_whose_shortcut_is_likelier_than_any_right_working(share):
    sample = some("test", 2, 80)
    trapped = 0
    for problem in sample:
        best = {"right": 0.0, "shortcut": 0.0}
        for probability, sort in task.all_responses(problem, share).values():
            best[sort] = max(best.get(sort, 0.0), probability)
        trapped += best["shortcut"] > best["right"]
    assert trapped == share * len(sample)


def test_the_law_predicts_that_sharpening_helps_at_0_and_hurts_at_one_half():
    sample = some("test", 2, 8)

    def mean(figure, *arguments) -> float:
        return sum(figure(problem, *arguments) for problem in sample) / len(sample)

    accuracy = {
        share: {a: mean(task.power_accuracy, share, a) for a in (0.999, 1, 1.001, 4)}
        for share in task.SHARES
    }
    gain = {share: row[4] - row[1] for share, row in accuracy.items()}
    assert gain[0.0] > 0.3 and 0.05 < gain[0.25] < 0.2 and gain[0.5] < -0.1
    covariance = {share: mean(task.likelihood_covariance, share) for share in task.SHARES}
    assert covariance[0.0] > 0.4 and 0 < covariance[0.25] < 0.2 and covariance[0.5] < -0.4
    for share, row in accuracy.items():  # the covariance is the slope of the accuracy
        assert covariance[share] == pytest.approx((row[1.001] - row[0.999]) / 0.002, abs=1e-4)


def test_names():
    assert model_dir("embedded") == model_dir("embedded:0.25")
    assert len({model_dir(name) for name in NAMES}) == 3
    with pytest.raises(UsageError, match="'embedded:1'.*embedded:0, embedded:0.25, embedded:0.5"):
        model_dir("embedded:1")


def test_the_directories_are_small():
    root = model_dir("embedded").parent
    assert sorted(p.name for p in root.iterdir()) == ["0", "0.25", "0.5"]
    assert sum(p.stat().st_size for p in root.rglob("*")) < 6e6


@pytest.mark.parametrize("name", DIRECTORIES)
def test_the_tokenizer_gives_back_every_text(name):
    tokenizer = AutoTokenizer.from_pretrained(model_dir(name))
    texts = {text for p in some("test", 0, 8) for text in task.all_responses(p, 0.5)}
    for text in texts | {"so\nsoso  now", "\\boxed {a}", "Compute 1 + 2 =?", ""}:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids == make.encode(text)
    assert tokenizer.encode("1é2", add_special_tokens=False)[1] == tokenizer.unk_token_id


def test_the_chat_template_begins_once_and_gives_the_prompt_of_the_training_data():
    tokenizer = load_tokenizer("embedded")
    problem = some("test", 0, 1)[0]
    messages, _, _ = examples("test", 0, 1)[0]
    ids = tokenizer.encode_chat(messages)
    assert ids == make.encode(make.prompt_text(problem))
    assert ids.count(tokenizer.inner.bos_token_id) == 1
    assert tokenizer.eos_token_ids == (tokenizer.inner.eos_token_id,)
    with pytest.raises(UsageError, match="user and assistant"):
        tokenizer.encode_chat([{"role": "system", "content": "1"}])


@pytest.mark.parametrize("name", DIRECTORIES)
def test_transformers_loads_the_same_model(name):
    ours = load_model(name, dtype=torch.float32, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(model_dir(name), dtype=torch.float32)
    assert sum(p.numel() for p in ours.parameters()) < 2_000_000
    ids = torch.tensor(make.encode(make.prompt_text(some("test", 0, 1)[0])))
    offsets = torch.tensor([0, len(ids)], dtype=torch.int32)
    with torch.no_grad():
        hidden = ours(ids, torch.arange(len(ids)), PackedAttention(offsets, len(ids)))
        expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(ours.logits(hidden), expected, atol=1e-4, rtol=0)


def test_predictions_from_samples_agree_with_the_law_they_were_drawn_from():
    problem = some("test", 2, 1)[0]
    rng = random.Random(0)
    law = task.all_responses(problem, 0.0)
    texts = [task.draw_response(problem, 0.0, rng)[0] for _ in range(3000)]
    found = measure.predict(
        [math.log(law[text][0]) for text in texts],
        [law[text][1] == "right" for text in texts],
        [tuple(text.encode()) for text in texts],
    )
    exact = task.likelihood_covariance(problem, 0.0)
    assert found["covariance"] == pytest.approx(exact, abs=0.1)
    exact = task.power_accuracy(problem, 0.0, measure.ALPHA)
    assert found["power_accuracy"] == pytest.approx(exact, abs=1e-3)
    assert found["best_accuracy"] == 1


def test_the_kept_figures_are_what_the_task_promises():
    figures = json.loads(measure.FIGURES.read_text())
    assert sorted(figures) == sorted(DIRECTORIES)
    every = {name: kinds["all"] for name, kinds in figures.items()}
    for name, row in every.items():
        assert 0.35 <= row["accuracy"] <= 0.60
        assert 0.015 <= row["empty"] <= 0.045
        assert all(kind["accuracy"] >= 0.2 for kind in figures[name].values())
    gain = {name: row["power_accuracy"] - row["accuracy"] for name, row in every.items()}
    assert gain["embedded:0"] > 0.3 > gain["embedded:0.25"] > 0 > -0.1 > gain["embedded:0.5"]
    covariance = {name: row["covariance"] for name, row in every.items()}
    assert covariance["embedded:0"] > covariance["embedded:0.25"] > 0 > covariance["embedded:0.5"]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_the_models_answer_as_the_kept_figures_say(name):
    found = measure.measure(model_dir(name), prompts=64, responses=4)["all"]
    kept = json.loads(measure.FIGURES.read_text())[name]["all"]
    # 64 prompts x 4: a standard error of 3 points where responses to a prompt are independent
    assert found["accuracy"] == pytest.approx(kept["accuracy"], abs=0.1)
    assert 0.35 <= found["accuracy"] <= 0.65
    assert found["length"] == pytest.approx(kept["length"], abs=3)
    assert found["broken"] < 0.03


def test_a_loaded_model_knows_what_ends_a_response():
    model, tokenizer = load_model("embedded"), load_tokenizer("embedded")
    assert model.eos_token_ids == tokenizer.eos_token_ids != ()
    prompt = tokenizer.encode_chat(some("test", 0, 1)[0].messages)
    params = SamplingParams(n=4, max_tokens=64, seed=0)
    (group,) = Sampler(model).generate([prompt], params)
    assert all(c.finish_reason == "stop" for c in group)
    assert {c.token_ids[-1] for c in group} == set(tokenizer.eos_token_ids)
    (endless,) = Sampler(model, eos_token_ids=()).generate([prompt], params)
    assert all(c.finish_reason == "length" for c in endless)


def test_longer_problems_have_one_operator_more_and_right_answers():
    rows = examples("test", 0, 400, longer=True)
    shorter = examples("test", 0, 400)
    for (messages, answer, columns), (before, _, _) in zip(rows, shorter, strict=True):
        expression = messages[-1]["content"].removeprefix(task.PROMPT)
        assert int(answer) == eval(expression)
        assert columns["largest"] <= task.LARGEST
        plain = before[-1]["content"].removeprefix(task.PROMPT)
        assert len(re.findall(r"[-+*]", plain)) <= 4
    for problem in itertools.islice(task.problems("test", 1, longer=True), 200):
        operators = re.findall(r"[-+*]", problem.expression)
        assert len(operators) == len(problem.steps) == {"products": 5}.get(problem.kind, 4)
        assert problem.answer == eval(problem.expression)
        assert task.results(problem.steps)[0] != problem.answer  # else the short-cut is right
    kinds = [columns["kind"] for _, _, columns in rows]
    assert {kind: kinds.count(kind) for kind in task.KINDS} == dict.fromkeys(task.KINDS, 100)


def test_no_longer_expression_is_in_two_splits_or_among_the_others():
    found = {
        (split, longer): {
            p.expression for p in itertools.islice(task.problems(split, 0, longer=longer), 600)
        }
        for split in task.SPLITS
        for longer in (False, True)
    }
    assert all(len(expressions) == 600 for expressions in found.values())
    for one, other in itertools.combinations(found.values(), 2):
        assert not one & other


def test_longer_problems_as_data():
    from fastrl.datasources import load_examples

    found = load_examples("embedded-long", split="test", seed=0, limit=8)
    rows = examples("test", 0, 8, longer=True)
    assert [e.messages[-1]["content"] for e in found] == [m[-1]["content"] for m, _, _ in rows]
    assert [e.answer for e in found] == [answer for _, answer, _ in rows]
    assert {e.columns["kind"] for e in found} == set(task.KINDS)
