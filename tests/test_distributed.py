"""Runs of several processes, started by torchrun: the same numbers as one, and how they end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from fastrl.checkpoint import damage
from fastrl.cli import main
from fastrl.distributed import ALONE, World, merge
from fastrl.grading import Grade
from fastrl.types import Completion
from fastrl.wire import exchange, from_bytes, to_bytes

BIN = Path(sys.executable).parent
SMALL = [
    "--objective", "task", "--train.max_steps", "3", "--sampling.prompts_per_step", "6",
    "--sampling.responses_per_prompt", "4", "--eval.prompts", "5", "--eval.test_prompts", "0",
    "--eval.samples", "2", "--eval.every", "0", "--checkpoint.every", "1",
    "--optim.warmup_steps", "0",
]  # fmt: skip
UPDATES = [
    "--loss.loss", "clip", "--train.epochs", "2", "--train.minibatches", "4",
    "--train.max_steps", "2",
]  # fmt: skip
REWARD = """
import os, signal
class Broken(BaseException): pass
calls = 0
def f(completions, **columns):
    global calls
    calls += 1
    if calls == 2 and os.environ.get("RANK") == "1":
        if os.environ.get("FAIL") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("FAIL") == "raise":
            raise Broken("of all things")
        if os.environ.get("FAIL") == "reward":
            raise KeyError("no such thing")
    return [float(len(c) % 3) for c in completions]
"""

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo, which several processes on a CPU need",
)


def torchrun(processes, *words, agent=("--standalone",), cwd=None, **env):
    """A torchrun of `processes` running; `agent` are words of its own."""
    return subprocess.Popen(
        [str(BIN / "torchrun"), "--no-python", *agent, "--nproc-per-node", str(processes), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **env},
    )


def ended(process, timeout=300):
    """Exit code, stdout and stderr of a torchrun that ends by itself."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"torchrun did not end: {process.communicate()[1]}")
    return process.returncode, out, err


def said(err):
    """The lines of fastrl's own on stderr."""
    return [line for line in err.splitlines() if line.startswith("fastrl:")]


def exit_codes(err):
    """Of the processes that failed, as torchrun's summary has them."""
    return [int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", err)]


def train(processes, directory, *words, **settings):
    """`fastrl train` of the small run."""
    command = [str(BIN / "fastrl"), "train", "--output-dir", str(directory), *SMALL, *words]
    return torchrun(processes, *command, **settings)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def workers(process):
    """The processes that a torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tokens(run, step):
    table = pq.read_table(run / "completions" / f"step_{step:06d}.parquet")
    return table.select(["prompt_id", "draw", "response", "token_ids", "logprobs"]).to_pylist()


def assert_alike(run, other, steps=3):
    """The tokens of the first step and of the evaluation before it, then numbers to 1e-5."""
    assert tokens(run, 1) == tokens(other, 1)
    assert lines(run / "eval.jsonl")[0] == lines(other / "eval.jsonl")[0]
    for ours, theirs in zip(
        lines(run / "metrics.jsonl"), lines(other / "metrics.jsonl"), strict=True
    ):
        for name in ("tokens_sampled", "tokens_trained", "task_accuracy", "length_p95"):
            assert ours[name] == theirs[name]
        for name in ("grad_norm", "reward_mean", "kl", "kl_k3", "entropy", "loss", "mismatch_kl"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
        assert ours["mismatch_max_ratio"] == pytest.approx(theirs["mismatch_max_ratio"], rel=1e-5)
    for step in range(1, steps + 1):
        folder = Path("checkpoints") / f"step_{step}"
        assert damage(run / folder) is None
        for file in ("model.safetensors", "optimizer.safetensors"):
            ours, theirs = load_file(run / folder / file), load_file(other / folder / file)
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert distance(ours[name], theirs[name]) <= 1e-5, (step, name)


def distance(ours, theirs):
    """Relative, of whole tensors."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-300))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", "--output-dir", str(run), *SMALL]) == 0
    return run


@pytest.fixture(scope="module")
def gradient_alone():
    from distributed_gradient import gradients

    return gradients(ALONE)


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_gradient_of_a_batch_is_that_of_one_process(tmp_path, gradient_alone, processes):
    from distributed_gradient import CASES

    script, out = Path(__file__).with_name("distributed_gradient.py"), tmp_path / "out.safetensors"
    code, _, err = ended(torchrun(processes, sys.executable, str(script), str(out)))
    assert code == 0, err
    found = load_file(out)
    assert found.keys() == gradient_alone.keys()
    for name, expected in gradient_alone.items():
        assert distance(found[name], expected) <= 1e-5, name
    whole = {k.split("/")[1]: v for k, v in found.items() if k.startswith("one micro-batch/")}
    for name, expected in whole.items():
        if name != "values":  # they stand in another order there
            for case in CASES:
                if not case.startswith("few"):
                    assert distance(found[f"{case}/{name}"], expected) <= 1e-5, (case, name)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_process_reads_its_pieces_alone(tmp_path, tied):
    """The weights are those of the plain load, and at no time was the model whole."""
    from tiny_models import write_tiny_model

    write_tiny_model(
        *(tmp_path, "qwen3"), hidden_size=257, intermediate_size=1023, num_hidden_layers=20,
        tie_word_embeddings=tied,
    )  # fmt: skip
    script = Path(__file__).with_name("distributed_loading.py")
    code, _, err = ended(torchrun(2, sys.executable, str(script), str(tmp_path)))
    assert code == 0, err


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"),
    reason="gloo's threads are slowed with Linux's names for threads, and gcc",
)
def test_gloo_s_threads_let_go_before_python_ends(tmp_path):
    """One that does so later aborts the process, whose work is done."""
    here, slow = Path(__file__).parent, str(tmp_path / "slow_gloo.so")
    words = ("-shared", "-fPIC", str(here / "slow_gloo.c"), "-o", slow, "-ldl")
    subprocess.run(["gcc", *words], check=True)
    script = str(here / "distributed_end.py")
    code, _, err = ended(torchrun(2, sys.executable, script, LD_PRELOAD=slow))
    assert code == 0, err


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_is_the_one_of_one_process(tmp_path, alone, processes):
    code, out, err = ended(train(processes, tmp_path / "run"))
    assert code == 0, err
    assert out.count("converges to") == 1 and f"{processes} processes" in out
    assert out.count("3 steps, ") == 1 and not said(err)
    assert_alike(tmp_path / "run", alone)


@pytest.fixture(scope="module")
def several_updates(tmp_path_factory):
    run = tmp_path_factory.mktemp("updates") / "run"
    assert main(["train", "--output-dir", str(run), *SMALL, *UPDATES]) == 0
    return run


@pytest.mark.parametrize("keep", [pytest.param("true", marks=pytest.mark.slow), "false"])
def test_several_updates_a_step_are_those_of_one_process(tmp_path, several_updates, keep):
    words = (*UPDATES, "--train.keep_gathered", keep)
    code, _, err = ended(train(2, tmp_path / "run", *words))
    assert code == 0, err
    assert_alike(tmp_path / "run", several_updates, steps=2)
    assert sum(m["clip_share"] for m in lines(several_updates / "metrics.jsonl")) > 0


def test_further_rounds_are_decided_alike(tmp_path):
    words = ("--loss.drop_groups_without_signal", "true", "--sampling.max_rounds", "3")
    assert main(["train", "--output-dir", str(tmp_path / "alone"), *SMALL, *words]) == 0
    code, _, err = ended(train(2, tmp_path / "run", *words))
    assert code == 0, err
    assert_alike(tmp_path / "run", tmp_path / "alone")
    ours, theirs = (lines(tmp_path / name / "metrics.jsonl") for name in ("run", "alone"))
    for name in ("sampling_rounds", "prompts_drawn", "groups_trained", "tokens_filtered"):
        assert [m[name] for m in ours] == [m[name] for m in theirs]
    assert max(m["sampling_rounds"] for m in ours) > 1


def test_two_machines_a_layer_at_a_time(tmp_path, alone):
    """Two torchruns here stand for them."""
    agent = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "fastrl",
             "--rdzv-endpoint", f"localhost:{free_port()}")  # fmt: skip
    words = ("--train.keep_gathered", "false")
    both = [train(1, tmp_path / "run", *words, agent=agent) for _ in range(2)]
    results = [ended(process) for process in both]
    assert [code for code, *_ in results] == [0, 0], results
    assert sum(out.count("converges to") for _, out, _ in results) == 1
    assert_alike(tmp_path / "run", alone)


def test_a_killed_process_is_named_and_another_number_of_them_goes_on(tmp_path, monkeypatch):
    (tmp_path / "odd_reward.py").write_text(REWARD)
    # the audit would call the function too, which counts its calls
    run, words = tmp_path / "run", ("--reward", "odd_reward:f", "--train.check", "false")
    started = time.monotonic()
    code, _, err = ended(train(2, run, *words, cwd=tmp_path, FAIL="kill"))
    assert code == 1 and time.monotonic() - started < 60
    (line,) = said(err)
    host = re.escape(socket.gethostname())
    assert re.fullmatch(rf"fastrl: rank 1 of 2 on {host}: its process \d+ was killed.*", line)
    assert -signal.SIGKILL in exit_codes(err)
    assert [m["step"] for m in lines(run / "metrics.jsonl")] == [1]
    resumed = torchrun(3, str(BIN / "fastrl"), "resume", str(run), cwd=tmp_path)
    code, out, err = ended(resumed)
    assert code == 0, err
    assert [m["step"] for m in lines(run / "metrics.jsonl")] == [1, 2, 3]
    whole = tmp_path / "whole"
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--output-dir", str(whole), *SMALL, *words]) == 0
    assert_alike(run, whole)


SILENT = "nothing heard of it for 5 s; its process was killed or its machine is gone"
WITH_STORE = (
    "gone with its torchrun, which held the store; its process was killed or its machine is gone"
)


@pytest.mark.parametrize(
    "node, number, sentence",
    [
        (1, signal.SIGKILL, SILENT),
        pytest.param(1, signal.SIGSTOP, SILENT, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGKILL, WITH_STORE, marks=pytest.mark.slow),
    ],
)
def test_the_only_process_of_a_machine_is_named(tmp_path, node, number, sentence):
    """Killed, or as if its machine were gone: nothing closes its connections."""
    run, port = tmp_path / "run", free_port()
    script = str(Path(__file__).with_name("named_node.py"))
    words = ["train", "--output-dir", str(run), *SMALL, "--train.max_steps", "400"]
    nodes = [
        torchrun(1, sys.executable, script, f"node-{n}", *words, agent=(
            "--nnodes", "2", "--node-rank", str(n),
            "--master-addr", "localhost", "--master-port", str(port)))
        for n in range(2)
    ]  # fmt: skip
    wait_for(run / "metrics.jsonl")
    time.sleep(6)  # longer than they may be silent
    (victim,) = workers(nodes[node])
    os.kill(victim, number)
    started = time.monotonic()
    code, _, err = ended(nodes[1 - node], 60)
    assert code == 1 and time.monotonic() - started < 30
    assert said(err) == [f"fastrl: rank {node} of 2 on node-{node}: {sentence}"]
    if number == signal.SIGSTOP:
        os.kill(victim, signal.SIGKILL)
    ended(nodes[node])


@pytest.mark.parametrize(
    "fail, code, sentence",
    [
        ("raise", 1, "rank 1 of 2 on {host}: odd_reward.Broken: of all things"),
        pytest.param(
            *("reward", 2, "reward 'odd_reward:f' raised KeyError: 'no such thing' on"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_process_that_fails_says_why(tmp_path, fail, code, sentence):
    (tmp_path / "odd_reward.py").write_text(REWARD)
    started = time.monotonic()
    words = ("--reward", "odd_reward:f", "--eval.prompts", "0")
    process = train(2, tmp_path / "run", *words, cwd=tmp_path, FAIL=fail)
    _, _, err = ended(process, 60)
    assert time.monotonic() - started < 60
    (line,) = said(err)
    assert sentence.format(host=socket.gethostname()) in line
    assert set(exit_codes(err)) == {code}
    assert ("Traceback" in err.partition("torch/distributed/")[0]) == (fail == "raise")


def test_a_users_mistake_is_one_sentence_on_every_process(tmp_path):
    # torchrun ends the other shell as soon as the first is gone
    keep = 'trap "" TERM; out=$1; shift; "$@"; code=$?; echo $code >> $out; exit $code'
    words = ["train", "--objective", "shrpen", "--output-dir", str(tmp_path / "never")]
    shell = ["sh", "-c", keep, "sh", str(tmp_path / "codes"), str(BIN / "fastrl"), *words]
    code, out, err = ended(torchrun(2, *shell))
    (line,) = said(err)
    assert code == 1 and "did you mean 'sharpen'" in line
    assert (tmp_path / "codes").read_text().split() == ["2", "2"]
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_a_directory_in_use_is_refused(alone):
    code, out, err = ended(train(2, alone))
    (line,) = said(err)
    assert "fastrl resume" in line and set(exit_codes(err)) == {2}


def test_a_signal_to_one_stops_all_after_the_step(tmp_path):
    run = tmp_path / "run"
    process = train(2, run, "--train.max_steps", "400", "--checkpoint.every", "0")
    wait_for(run / "metrics.jsonl")
    os.kill(workers(process)[-1], signal.SIGTERM)
    code, out, err = ended(process, 60)
    assert code == 1 and set(exit_codes(err)) == {3}, err
    assert f"fastrl resume {run}" in out
    step = lines(run / "metrics.jsonl")[-1]["step"]
    assert step < 400 and damage(run / "checkpoints" / f"step_{step}") is None


def test_an_evaluation_is_the_one_of_one_process(tmp_path, alone):
    words = ["eval", str(alone), "--prompts", "9", "--samples", "2", "--out"]
    code, out, err = ended(torchrun(2, str(BIN / "fastrl"), *words, str(tmp_path / "two.json")))
    assert code == 0 and out.count('"accuracy"') == 1, err
    assert main([*words, str(tmp_path / "one.json")]) == 0
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()


def test_one_process_needs_no_others():
    assert ALONE.share([1, 2, 3]) == [1, 2, 3] and ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.sum(1.5, 2) == [1.5, 2] and ALONE.most(3) == 3 and not ALONE.any(False)
    (array,) = ALONE.gather_arrays(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(array, np.arange(6.0).reshape(2, 3))


def test_shares_come_together_again():
    items = list(range(7))
    for size in (1, 2, 3, 9):
        shares = [World(rank, size).share(items) for rank in range(size)]
        assert merge(shares) == items


def test_responses_travel_whole():
    groups = [
        [
            (Completion((1, 2), (-0.1, -1e-9), (0.0, -0.5), "stop", "}"), "a\n\u20ac",
             Grade(True, "1", "correct", (3, 4)), 1.0),
            (Completion((), (), (), "error"), "", None, None),
        ],
        [(Completion((7,), (-float("inf"),), (0.0,), "length", 7), "\ufffd",
          Grade(None, None, "gold_empty"), 0.1)],
        [],
    ]  # fmt: skip
    assert from_bytes(to_bytes(groups)) == groups
    assert exchange(ALONE, groups) == groups
