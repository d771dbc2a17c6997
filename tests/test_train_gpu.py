"""The loop on a GPU: sampler and trainer agree, and a killed run comes to the same bits."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_train import SMALL, fingerprint, lines, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# the device made of host memory is there in a process that asks for it
PYTHON = [sys.executable, *(["-m", "fake_cuda"] if hasattr(torch.cuda, "is_fake") else [])]
# the largest log-ratio of a token: DESIGN's bound for fp32; bf16 has 8 bits, through every layer
LARGEST = {"float32": 1e-4, "bfloat16": 0.2}


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("objective", ["sharpen", "task"])
def test_sampler_and_trainer_give_a_token_one_logprob(tmp_path, objective, dtype):
    words = ["--objective", objective, "--model.device", "cuda", "--model.dtype", dtype]
    assert train(tmp_path / "run", *words) == 0
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert len(metrics) == 4
    for step in metrics:
        assert 1 <= step["mismatch_max_ratio"] <= 1 + LARGEST[dtype]
        assert abs(step["mismatch_kl"]) <= LARGEST[dtype] / 10
        assert step["grad_norm"] > 0


def test_a_killed_run_comes_to_the_same_bits(tmp_path):
    words = ["train", *SMALL, "--objective", "tilted", "--model.device", "cuda"]
    words += ["--train.deterministic", "true", "--checkpoint.every", "1"]

    def start(*words):
        command = [*PYTHON, "-m", "fastrl.cli", *words]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(*words, "--output-dir", str(whole)).wait(300) == 0
    process = start(*words, "--output-dir", str(cut))
    first = cut / "checkpoints" / "step_1"
    while not first.exists():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cut / "checkpoints" / "step_4").exists()
    assert start("resume", str(cut)).wait(300) == 0
    assert fingerprint(cut) == fingerprint(whole)
