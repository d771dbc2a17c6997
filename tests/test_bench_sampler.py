"""`fastrl bench sampler` on the embedded model: its rows, what it refuses, its bounds by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from bench_table import table

from fastrl.bench import sampler, sampler_limits, sampler_tasks
from fastrl.bench.sampler_limits import Machine, decode_seconds, prefill_operations
from fastrl.bench.sampler_rivals import (
    Rival,
    Subject,
    check_greedy,
    check_logprobs,
    subject,
)
from fastrl.bench.sampler_tasks import Call, Task, sample_groups
from fastrl.cli import main
from fastrl.model import DecoderConfig
from fastrl.sampler import Sampler, SamplingParams
from fastrl.shapes import SHAPES

CONTRACT = {
    "name", "shape", "dtype", "device", "ms", "ms_p20", "ms_p80", "peak_bytes", "max_error",
    "baseline", "baseline_ms", "speedup", "tokens_per_s", "weights", "machine", "versions",
}  # fmt: skip
TINY = DecoderConfig("qwen3", 96, 24, 40, 2, 4, 2, 8, 64, tie_embeddings=True, qk_norm=True)


@pytest.fixture(scope="module")
def embedded() -> Subject:
    return subject("embedded", torch.float32, torch.device("cpu"))


def bench(tmp_path, *words: str) -> list[dict]:
    out = tmp_path / "rows.json"
    command = ["bench", "sampler", "--repeats", "1", "--model", "embedded", "--out", str(out)]
    assert main([*command, *words]) == 0
    return json.loads(out.read_text())


def test_groups_beside_transformers_and_bare_matmuls(tmp_path, capsys):
    rows = bench(tmp_path, "--shape", "16,6,4", "--dtype", "float32")
    assert [row["baseline"] for row in rows] == ["generate", "continuous batching"]
    for row in rows:
        assert row.keys() >= CONTRACT
        assert (row["name"], row["shape"]) == ("sample groups", [16, 6, 4])
        assert (row["model"], row["weights"]) == ("embedded", "loaded")
        assert row["tokens_per_s"] == pytest.approx(1e3 * 16 * 4 / row["ms"])
        share = row["tokens_per_s"] / row["bare_matmuls_tokens_per_s"]
        assert row["share_of_bare_matmuls"] == pytest.approx(share)
        assert row["rows_computed"] == 2 * 6 + 16 * 3
        assert 0 < row["max_error"] < 1e-4
        if row["baseline_ms"] is None:
            assert row["baseline_failed"]
        else:
            assert row["speedup"] == pytest.approx(row["baseline_ms"] / row["ms"])
            assert row["baseline_tokens_per_s"] == pytest.approx(1e3 * 64 / row["baseline_ms"])
    assert rows[0]["baseline_ms"], "generate has to run"
    heard = capsys.readouterr()
    assert "tokens/s" in heard.out and "sample groups, embedded, 16x6x4, float32: " in heard.err
    assert "generate" in table(rows, "sampler") and "of bare matmuls" in table(rows, "sampler")


def test_cost_follows_the_tokens_computed(tmp_path):
    words = ("--dtype", "bfloat16", "--only")
    (mixed,) = bench(tmp_path, *words, "mixed lengths", "--shape", "16,6,32")
    assert mixed["rows_computed"] == 2 * 6 + 8 * (7 + 31)
    assert mixed["padded_rows"] == 16 * (6 + 31)
    assert mixed["baseline_rows_computed"] == 2 * 6 + 16 * 19
    (shared,) = bench(tmp_path, *words, "shared prompt", "--shape", "256,40,3")
    assert shared["baseline"] == "prompt computed 16 times"
    assert shared["rows_computed"] == 16 * 40 + 256 * 2
    assert shared["baseline_rows_computed"] == 256 * 40 + 256 * 2
    for row in (mixed, shared):
        assert row["us_per_row"] == pytest.approx(1e3 * row["ms"] / row["rows_computed"])
    assert "10,752" in table([mixed, shared], "sampler")  # 256 x 42


@pytest.mark.parametrize(
    "words, what",
    [
        (["--only", "sample"], "'sample groups', 'mixed lengths'"),
        (["--only", "decode"], "'decode' is measured on a GPU"),
        (["--shape", "32,58"], "shape is 32,58"),
        (["--shape", "12,6,4"], "12 responses are no groups of 8"),
        (["--dtype", "int8"], "float32, bfloat16"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--model", "nowhere"], "no model 'nowhere'"),
    ],
)
def test_refusals(words, what, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "sampler", "--model", "embedded", *words]) == 2
    assert what in capsys.readouterr().err


def test_model_is_of_the_sampler(capsys):
    assert main(["bench", "kernels", "--model", "embedded"]) == 2
    assert "--model" in capsys.readouterr().err


def test_a_rival_that_cannot_run_is_said_in_its_row(embedded):
    class Broken(Rival):
        def run(self) -> int:
            return 3

    prompts, params = [[5, 6, 7]], [SamplingParams(n=2, max_tokens=2, ignore_eos=True)]
    task = Task(Call(embedded.model, prompts, params), {"x": Broken(None, prompts, 2, 2)})
    (row,) = sampler.rows(task, embedded, {"name": "", "shape": [], "dtype": ""}, "", 1)
    assert row["baseline_failed"] == "RuntimeError: it made 3 tokens instead of 4"
    assert row["baseline_ms"] is None and row["ms"] > 0


def test_validation_sees_wrong_logprobs_and_wrong_tokens(embedded):
    prompt = [5, 6, 7, 8]
    params = SamplingParams(n=1, max_tokens=6, seed=1, ignore_eos=True)
    ((completion,),) = Sampler(embedded.model).generate([prompt], params)
    ours, theirs = check_logprobs(embedded, [(prompt, completion)], 1.0)
    assert 0 < ours < 1e-4 and 0 < theirs < 1e-4
    first, *rest = completion.logprobs
    shifted = replace(completion, logprobs=(first + 1e-3, *rest))
    with pytest.raises(AssertionError, match="from the truth"):
        check_logprobs(embedded, [(prompt, shifted)], 1.0)
    check_greedy(Sampler(embedded.model), embedded.theirs, [prompt], 6)
    other = subject("embedded:0.5", torch.float32, torch.device("cpu"))
    with pytest.raises(AssertionError, match="greedy token"):
        check_greedy(Sampler(other.model), embedded.theirs, [[t] * 4 for t in range(3, 40)], 6)


def test_validation_in_bf16_sees_one_shifted_response_of_eight():
    one = subject("embedded", torch.bfloat16, torch.device("cpu"))
    prompts = [[5 + i, 6, 7, 8] for i in range(8)]
    params = SamplingParams(n=1, max_tokens=24, seed=1, ignore_eos=True)
    found = Sampler(one.model).generate(prompts, params)
    pairs = [(prompt, completion) for prompt, (completion,) in zip(prompts, found, strict=True)]
    ours, theirs = check_logprobs(one, pairs, 1.0)
    assert 1e-3 < ours < 1 and 1e-3 < theirs < 1
    shifted = replace(pairs[3][1], logprobs=tuple(x - 0.5 for x in pairs[3][1].logprobs))
    with pytest.raises(AssertionError, match="from the truth"):
        check_logprobs(one, [*pairs[:3], (prompts[3], shifted), *pairs[4:]], 1.0)


def test_rivals_make_every_token_though_the_model_has_an_end_token(embedded):
    task = sample_groups(embedded, (64, 5, 40))
    task.rivals["generate"]()  # raises where a response is shorter


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_of_the_size_in_their_names(name):
    config = SHAPES[name]
    layers = config.num_layers * sum(a * b for a, b in sampler_limits.products(config))
    billions = (layers + config.vocab_size * config.hidden_size) / 1e9
    named = {"SmolLM2-135M": 0.1345, "Qwen3-0.6B": 0.596, "Qwen2.5-3B": 3.085}
    named |= {"Llama-3.2-3B": 3.213, "Qwen3-4B": 4.022}
    assert billions == pytest.approx(named[name], rel=2e-3)
    assert DecoderConfig.from_hf(config.to_hf()) == config


def test_the_bound_of_a_decode_step_by_hand():
    responses, prompt, own = 16, 10, 5
    seen, cached = responses * (prompt + own), 2 * prompt + responses * own
    one = subject_of(TINY)
    weights = sum(weight.numel() for weight in sampler_limits.matrices(one.model))
    # columns and rows of qkv, o, gate_up, down; then queries, outputs, keys and values
    layer = (24 + 64) + (32 + 24) + (24 + 80) + (40 + 24) + 2 * 32
    numbers = weights + responses * (2 * layer + 24 + 96) + 2 * 2 * cached * 16
    found = decode_seconds(TINY, Machine(1e9, math.inf), responses, seen, cached, 2)
    assert found == pytest.approx(2 * numbers / 1e9)
    operations = 2 * responses * weights + 2 * 4 * seen * 32
    found = decode_seconds(TINY, Machine(math.inf, 1e12), responses, seen, cached, 2)
    assert found == pytest.approx(operations / 1e12)
    both = decode_seconds(TINY, Machine(1e9, 1e12), responses, seen, cached, 2)
    assert both >= max(2 * numbers / 1e9, operations / 1e12)


def test_operations_of_a_prefill_by_hand():
    one = subject_of(TINY)
    *layers, head = (weight.numel() for weight in sampler_limits.matrices(one.model))
    pairs = 1 + 2 + 3 + 4 + 5  # of a token and one that it sees
    expected = 3 * (2 * 5 * sum(layers) + 2 * 4 * pairs * 32 + 2 * head)
    assert prefill_operations(TINY, 3, 5) == expected


def test_decode_and_prefill_rows_have_their_bounds():
    one, machine = subject_of(TINY), Machine(1e11, 1e12)
    task = sampler_tasks.decode(one, (8, 6, 4), machine)
    task.ours()
    assert task.ours.rows == 6 + 8 * 3
    middle = decode_seconds(TINY, machine, 8, 8 * (6 + 2), 6 + 8 * 2, 4)
    found = task.bounds(50.0)
    assert found["limit_tokens_per_s"] == pytest.approx(8 / middle)
    assert found["share_of_limit"] == pytest.approx(50 * middle / 8)
    task = sampler_tasks.prefill(one, (3, 10, 1), machine)
    task.ours()
    assert task.ours.rows == 3 * 10
    found = task.bounds(30.0)  # 30 prompts a second
    assert found["prompt_tokens_per_s"] == 300
    rate = 30 * prefill_operations(TINY, 1, 10)
    assert found["share_of_matmul_rate"] == pytest.approx(rate / 1e12)


def test_the_requests_of_nano_vllm():
    task = sampler_tasks.nano_vllm(subject_of(TINY), (256, 1024, 1024), Machine(1e11, 1e12))
    lengths = [len(prompt) for prompt in task.ours.prompts]
    assert len(lengths) == 256 and 100 <= min(lengths) <= max(lengths) <= 1024
    assert {p.temperature for p in task.ours.params} == {0.6}
    assert task.ours.tokens == 133_966  # as its README has it


def test_a_measured_machine_is_possible():
    machine = sampler_limits.measure_machine(torch.ones(64, 64), width=64, repeats=2)
    assert machine.bandwidth > 0 and machine.matmul_rate > 0


def subject_of(config: DecoderConfig) -> Subject:
    from fastrl.bench.sampler_rivals import random_model, twin

    model = random_model(config, torch.float32, torch.device("cpu"))
    return Subject("tiny", "random", model, twin(model))
