"""The plan of a run's peak: its parts by hand, the peak as measured, and what does not fit."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrl.config import Config, parse_overrides
from fastrl.errors import UsageError
from fastrl.fit import Fit
from fastrl.memory_plan import Workload, num_parameters, plan_memory
from fastrl.model import Decoder, PackedAttention
from fastrl.model_config import DecoderConfig
from fastrl.shapes import SHAPES

SHAPE = DecoderConfig("llama", 5000, 64, 160, 3, 4, 2, 16, 512, tie_embeddings=True)
WORK = Workload(
    config=SHAPE,
    itemsize=4,
    on_gpu=False,
    valid_vocab=5000,
    rows=1000,
    sequences=32,
    running=32,
    longest=100,
    longest_prompt=40,
    max_batch_tokens=512,
    block_size=16,
    num_blocks=0,
    checkpointed=False,
)
PARAMETERS = 5000 * 64 + 3 * (64 * 128 + 64 * 64 + 2 * 64 * 160 + 160 * 64 + 2 * 64) + 64


def test_the_parameters_are_those_of_the_published_models():
    assert num_parameters(SHAPE) == PARAMETERS
    assert num_parameters(SHAPES["Llama-3.2-3B"]) == 3_212_749_824
    assert num_parameters(SHAPES["Qwen3-4B"]) == 4_022_468_096


def test_the_parts_that_are_known_to_the_byte():
    phases = plan_memory(WORK).phases
    update = phases["update"]
    assert update["policy"] == update["reference"] == update["gradients"] == 4 * PARAMETERS
    assert update["moments"] == 8 * PARAMETERS and update["fp32 masters"] == 0
    # tables of 7 blocks, one more for each of 32 and for their prompt, 2 that nobody owns
    assert update["cache"] == (33 * 8 + 2) * 16 * 3 * 2 * 2 * 16 * 4
    narrow = plan_memory(replace(WORK, itemsize=2)).phases["update"]
    assert narrow["policy"] == narrow["gradients"] == 2 * PARAMETERS
    # of the largest parameter alone a gradient in fp32
    assert narrow["temporary"] == 4 * 5000 * 64
    assert narrow["fp32 masters"] == 4 * PARAMETERS and narrow["moments"] == 8 * PARAMETERS


def test_gradients_of_earlier_micro_batches_are_there_during_the_pass():
    few = replace(WORK, sequences=4)
    assert WORK.several_micro_batches and not few.several_micro_batches
    assert plan_memory(WORK).phases["backward pass"]["gradients"] == 4 * PARAMETERS
    assert plan_memory(few).phases["backward pass"]["gradients"] == 0
    assert few.micro_batch_rows == 4 * 99 and WORK.micro_batch_rows == 1000
    assert replace(WORK, rows=10).micro_batch_rows == 99  # a sequence is never split


def test_activations_grow_with_rows_and_layers_and_hardly_when_computed_again():
    def activations(**changes):
        return plan_memory(replace(WORK, **changes)).phases["backward pass"]["activations"]

    assert activations(rows=2000) == 2 * activations()
    deep, deeper = (replace(SHAPE, num_layers=layers) for layers in (6, 9))
    three_more = activations(config=deep) - activations()
    assert activations(config=deeper) - activations(config=deep) == three_more > 0
    again = activations(config=deep, checkpointed=True)
    assert again < activations(config=deep) / 2
    # each layer more costs its input
    more = activations(config=replace(SHAPE, num_layers=7), checkpointed=True)
    assert more - again == 1000 * 64 * 4


def test_processes_share_the_state_of_the_optimiser():
    four = plan_memory(replace(WORK, processes=4)).phases["update"]
    assert four["moments"] == 8 * PARAMETERS // 4
    assert four["policy"] > 4 * PARAMETERS  # whole, and a piece


def test_a_gpus_cache_takes_what_is_left_and_is_not_there_in_the_pass():
    work = replace(WORK, on_gpu=True, itemsize=2, num_blocks=0)
    plenty = plan_memory(work, available=10**12)
    assert plenty.phases["sampling"]["cache"] == plan_memory(WORK).phases["sampling"]["cache"] // 2
    assert "cache" not in plenty.phases["backward pass"]
    room = plenty.totals["sampling"] - 500_000
    assert plan_memory(work, available=room).totals["sampling"] == room


def test_what_lies_in_host_memory_is_on_the_gpu_while_it_is_used():
    gpu = replace(WORK, on_gpu=True, itemsize=2)
    plain = plan_memory(gpu)
    plan = plan_memory(replace(gpu, host_state=True, host_reference=True))
    assert plain.host == 0 and plan.host == (4 + 8 + 2) * PARAMETERS
    for name, parts in plan.phases.items():
        assert ("reference" in parts) == (name == "scoring")
        assert "moments" not in parts and "fp32 masters" not in parts
    # two pieces of masters and moments; the largest parameter is one
    assert plan.phases["update"]["state on its way"] == 2 * 3 * 4 * 5000 * 64
    assert plan.peak_of_first_step == plan.peak and "GB of host memory" in str(plan)


def test_a_checkpoint_that_is_written_in_the_background_is_a_copy():
    whole = (4 + 8) * PARAMETERS  # weights and moments
    plain, plan = plan_memory(WORK), plan_memory(replace(WORK, copies_checkpoint=True))
    assert all(plan.totals[name] == plain.totals[name] + whole for name in plain.totals)
    assert plan.peak_of_first_step == plain.peak_of_first_step
    narrow = plan_memory(replace(WORK, itemsize=2, copies_checkpoint=True, processes=4))
    copy = narrow.phases["update"]["checkpoint"]
    assert copy == pytest.approx((2 + 4 + 8) * PARAMETERS, abs=100)  # of all processes
    background = parse_overrides(Config(), ["--checkpoint.background", "on"])
    size = FIT.plan(background).peak - FIT.plan(Config()).peak
    assert size == 12 * num_parameters(FIT.shapes)


def test_a_gpu_that_is_too_small_is_told_of_host_memory():
    config = parse_overrides(Config(), ["--model.dtype", "bfloat16"])
    fit = Fit(SHAPES["Qwen3-4B"], 151936, 500, on_gpu=True, available=50 * 10**9)
    with pytest.raises(UsageError, match="train.reference host and optim.state host it needs"):
        fit.check(config)
    words = ["--train.reference", "host", "--optim.state", "host"]
    words += ["--train.checkpoint_activations", "on", "--train.max_tokens_per_batch", "4096"]
    resting = parse_overrides(config, words)
    assert fit.holds(fit.check(resting))
    with pytest.raises(UsageError, match=r"needs 56\.\d+ GB of host memory"):
        replace(fit, host=32 * 10**9).check(resting)


def test_the_first_step_has_no_moments_before_its_update():
    plan = plan_memory(replace(WORK, rows=3000))
    assert plan.highest == "backward pass"
    moments = plan.phases["backward pass"]["moments"]
    assert plan.peak_of_first_step == max(plan.peak - moments, plan.totals["update"])


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Qwen3-0.6B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_for_the_backward_pass_what_is_planned(name, dtype):
    """Counted by autograd, on sequences of many lengths; C++ for the rows of layers is built."""
    lengths = [45, 100, 60, 75]
    rows = sum(lengths)

    def kept(layers: int) -> int:
        config = replace(SHAPES[name], vocab_size=50, num_layers=layers)
        model = Decoder(config, dtype=dtype).init_weights(0)
        offsets = torch.tensor([0, 45, 145, 205, 280], dtype=torch.int32)
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            found.setdefault(x.untyped_storage().data_ptr(), x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            positions = torch.cat([torch.arange(n) for n in lengths])
            model(torch.zeros(rows, dtype=torch.int64), positions, PackedAttention(offsets, 100))
        return sum(x.untyped_storage().nbytes() for p, x in found.items() if p not in parameters)

    def planned(layers: int) -> int:
        config = replace(SHAPES[name], vocab_size=50, num_layers=layers)
        work = replace(WORK, config=config, itemsize=dtype.itemsize, rows=rows, valid_vocab=50)
        return plan_memory(work).phases["backward pass"]["activations"]

    # beside what two layers keep, the plan has the gradients of one
    assert planned(2) - planned(1) == pytest.approx(kept(2) - kept(1), rel=0.05)


FIT = Fit(shapes=SHAPES["SmolLM2-135M"], valid_vocab=49152, longest_prompt=200, on_gpu=False)


def test_layers_are_computed_again_where_the_run_would_not_fit_otherwise():
    config = parse_overrides(Config(), ["--sampling.prompts-per-step", "8"])
    free = FIT.plan(config)
    assert not free.workload.checkpointed
    tight = replace(FIT, available=free.peak - 1)
    assert tight.plan(config).workload.checkpointed and tight.check(config).peak < free.peak
    off = parse_overrides(config, ["--train.checkpoint-activations", "off"])
    with pytest.raises(UsageError, match=r"train.checkpoint_activations on it needs [\d.]+ GB$"):
        tight.check(off)


@pytest.mark.parametrize("gigabytes", [3.0, 4.5, 6.0])
def test_what_is_proposed_fits(gigabytes):
    config = parse_overrides(Config(), ["--train.max-tokens-per-batch", "65536"])
    fit = replace(FIT, available=int(gigabytes * 1e9))
    with pytest.raises(UsageError) as refused:
        fit.check(config)
    text = str(refused.value)
    words = re.search(r"; with (.*) it needs", text)
    assert words and text.startswith("the run needs ") and "\n" not in text
    settings = [f"--{pair.replace(' ', '=')}" for pair in re.split(", | and ", words[1])]
    assert len(settings) >= 2
    assert fit.holds(fit.check(parse_overrides(config, settings)))


def test_what_no_setting_makes_fit_is_said_to_be_so():
    with pytest.raises(UsageError, match="no setting brings it below .*smaller model"):
        replace(FIT, available=10**9).check(Config())
    gpu = Fit(SHAPES["Qwen3-4B"], 151936, 500, on_gpu=True, available=50 * 10**9, host=10**9)
    with pytest.raises(UsageError, match="between 4 processes, each with such a GPU"):
        gpu.check(Config())


SMALL = DecoderConfig("llama", 8192, 384, 1024, 8, 6, 2, 64, 1024, tie_embeddings=True)
STEP = [
    "--train.max_steps", "1", "--eval.prompts", "0", "--eval.test_prompts", "0",
    "--sampling.ignore_eos", "--sampling.prompts_per_step", "4", "--sampling.max_tokens", "120",
    "--optim.schedule", "constant",
]  # fmt: skip


def one_step(model: str, out: Path, *words: str) -> tuple[float, str]:
    """The measured peak over the planned one, and what the run printed."""
    run = subprocess.run(
        [sys.executable, "-m", "fastrl.cli", "train", "--model", model, "--output-dir", str(out),
         *STEP, *words],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = re.search(r"at the peak so far, planned [\d.]+ GB \(([+-][\d.]+)%\)", run.stdout)
    assert found, run.stdout
    return float(found[1]) / 100, run.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("shapes") / "small"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SMALL.to_hf()))
    return str(path)


@pytest.mark.parametrize(
    "dtype, rows, again",
    [("float32", 1024, "off"), ("bfloat16", 1024, "on")],
)
def test_the_measured_peak_is_the_planned_one(small, tmp_path, dtype, rows, again):
    words = ["--model.random-init", "--model.dtype", dtype]
    words += ["--train.max_tokens_per_batch", str(rows), "--train.checkpoint_activations", again]
    off, printed = one_step(small, tmp_path / "run", *words)
    assert abs(off) <= 0.1, printed
