#!/usr/bin/env bash
# On a machine with a GPU: build, then one of its parts, each in 8 minutes at most.
#
#     bash bench/gpu.sh [PART] [OUT]    PYTHON=python3 has torch and triton
#
# kernels (the default): tests of the compiled kernels, benchmarks. sanitizer: wild accesses and races in them.
# tune: their launch settings, timed. sampler: its tests, its benchmarks, row by row. loop: training: sampler
# against trainer, a killed run's bits, streams that wait for each other, and a step's profile. soak: fifty steps at the
# shapes of Qwen2.5-3B, random weights, whose memory does not grow. costs: what a training step costs over four
# sweeps. recipes: state in host memory, and two steps of each of the study's runs at its shapes, random weights.
# trl (which must be installed): steps beside TRL's and inside of it, of the model directory in MODEL (default: the
# embedded one). study: learning rates and seeds of sharpening and of task reward on MODEL, the settings in CONFIG
# (default: configs/smollm2.toml, whose directory MODEL has to be), JOBS (4) cells at once; the same call goes on with
# it. Leaves their output, kernels.json, tune.json, sampler.json and costs.json, their tables, roofline.png and
# costs.png in OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:-kernels}
out=${2:-bench/results/gpu}
parts="kernels sanitizer tune sampler loop soak costs recipes trl study"
case " $parts " in *" $part "*) ;; *) echo "gpu.sh: the part is $part; allowed: ${parts// /, }" >&2; exit 2 ;; esac
python=${PYTHON:-python3}
failed=0
mkdir -p "$out"

step() {  # step NAME SECONDS FILE COMMAND...: what fails is said, and the rest still runs
    echo "== $1"
    timeout "$2" "${@:4}" 2>&1 | tee "$out/$3"
    local code=${PIPESTATUS[0]}
    if [ "$code" -ne 0 ]; then echo "== $1 failed with exit code $code"; failed=1; fi
}

random_run() {  # random_run NAME SECONDS RECIPE WORD...: a recipe's run on random weights, which leaves no checkpoint
    step "$1" "$2" "$1.txt" "$python" -m fastrl.cli train "configs/$3.toml" --model.random-init --data embedded "${@:4}" \
        --sampling.ignore_eos --eval.prompts 0 --eval.test_prompts 0 --checkpoint.every 0 --output-dir "$out/$1"
    rm -rf "$out/$1/checkpoints"
}

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
    git rev-parse HEAD 2>/dev/null || echo "no commit: not a git checkout"
}

missing() {  # the build below installs no package
    "$python" -c '
import importlib.metadata as m, re, sys, tomllib
def there(name):
    try: return bool(m.version(name))
    except m.PackageNotFoundError: return False
needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
absent = [n for n in (re.split("[^a-zA-Z0-9_-]", need)[0] for need in needs) if not there(n)]
if absent: sys.exit(f"gpu.sh: not installed for this python: {chr(32).join(absent)}; what needs them fails (datasets: --data hf: alone)")'
}

machine | tee "$out/machine.txt"
missing
# compiling takes most of the tests' time, and many processes do it at once
parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 8")
step build 120 build.txt "$python" -m pip install --quiet --no-deps --no-build-isolation -e .
if [ "$part" = sanitizer ]; then
    if ! command -v compute-sanitizer >/dev/null; then
        echo "compute-sanitizer is not here, which comes with CUDA: nothing was checked"
        exit 1
    fi
    # small shapes of every kind of kernel; in one process, which the sanitizer watches
    few="triton and (1000 or 123 or norm or rotation or swiglu or split or context or top-k) and not offsets"
    for tool in memcheck racecheck; do
        step "$tool" 170 "$tool.txt" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -x \
            -p no:cacheprovider tests/test_rows.py tests/test_rows_loss.py tests/test_rows_sample.py tests/test_layer_rows_triton.py tests/test_paged_attention_triton.py -k "$few"
    done
    exit "$failed"
fi
if [ "$part" = tune ]; then
    step tune 340 tune.txt "$python" bench/tune.py "$out/tune.json"
    exit "$failed"
fi
if [ "$part" = loop ]; then
    step loop-tests 200 loop_tests.txt "$python" -m pytest -q -p no:cacheprovider tests/test_train_gpu.py \
        tests/test_early.py::test_on_a_gpu_graphs_are_captured_beside_it
    export TORCH_CUDA_SANITIZER=1  # torch's own look at streams that use a tensor at once
    step streams 60 streams.txt "$python" -m fastrl.cli train --objective tilted --max-steps 2 --eval.prompts 0 \
        --eval.test_prompts 0 --sampling.prompts_per_step 8 --output-dir "$out/streams"
    unset TORCH_CUDA_SANITIZER
    step profile 90 profile.txt "$python" bench/step_profile.py "${MODEL:-embedded}"
    rm -rf "$out/streams/checkpoints"
    exit "$failed"
fi
if [ "$part" = soak ]; then
    random_run soak 340 qwen2.5-3b-math --max-steps 50 --sampling.prompts_per_step 8 --sampling.max_tokens 128 \
        --sampling.max_total_tokens 1024
    step memory 10 memory.txt "$python" -c '
import json, sys
peaks = [json.loads(line)["peak_memory_bytes"] for line in open(sys.argv[1])]
print(f"{len(peaks)} steps, peak {peaks[9]} bytes after 10 and {peaks[-1]} after all")
sys.exit(len(peaks) < 50 or peaks[-1] > 1.01 * peaks[9])' "$out/soak/metrics.jsonl"
    exit "$failed"
fi
if [ "$part" = sampler ]; then
    step sampler-tests 90 sampler_tests.txt "$python" -m pytest -q -p no:cacheprovider tests/test_sampler_gpu.py \
        tests/test_sampler_memory.py "tests/test_paged_attention.py::test_functions_for_variable_lengths_agree_with_the_definition"
    step sampler 250 sampler.txt "$python" -m fastrl.cli bench sampler --repeats 1 --out "$out/sampler.json"
    step sampler-table 10 sampler.md "$python" bench/table.py "$out/sampler.json"
    exit "$failed"
fi
if [ "$part" = costs ]; then
    step costs 340 costs.txt "$python" -m fastrl.cli bench step --only costs --repeats 1 --out "$out/costs.json"
    step costs-table 10 costs.md "$python" bench/table.py "$out/costs.json"
    step costs-picture 10 costs_picture.txt "$python" bench/costs.py "$out/costs.json" "$out/costs.png"
    exit "$failed"
fi
if [ "$part" = trl ]; then
    model=${MODEL:-embedded}
    step trl 170 trl.txt "$python" -m fastrl.cli bench step --only trl --model "$model" --out "$out/trl.json"
    step step 170 step.txt "$python" -m fastrl.cli bench step --only step --model "$model" --out "$out/step.json"
    step trl-table 10 trl.md "$python" bench/table.py "$out/trl.json"
    exit "$failed"
fi
if [ "$part" = study ]; then
    step study 350 study.txt "$python" -m fastrl.cli study "${CONFIG:-configs/smollm2.toml}" --model "${MODEL:-embedded}" \
        --arms sharpen,task --lrs 1e-5,2e-5,4e-5 --seeds 5 --samples 64 --baselines --jobs "${JOBS:-4}" --eval.prompts 128 \
        --output-dir "$out/study"
    exit "$failed"
fi
if [ "$part" = recipes ]; then
    step host-memory 60 host_memory.txt "$python" -m pytest -q -p no:cacheprovider tests/test_offload_gpu.py
    for recipe in llama-3.2-3b-math qwen2.5-3b-math qwen3-4b-deepscaler; do
        random_run "$recipe" 95 "$recipe" --max-steps 2 --sampling.prompts_per_step 32 --sampling.max_tokens 500 \
            --sampling.max_total_tokens 2048
    done
    exit "$failed"
fi
# shellcheck disable=SC2086
step tests 150 tests.txt "$python" -m pytest -q -p no:cacheprovider $parallel tests/test_rows*.py tests/test_*_triton.py \
    -k "triton and not 32_bit and not far_apart"
# one after another: each takes up to 18 GB, and keeps them for the next
step offsets 40 offsets.txt "$python" -m pytest -q -p no:cacheprovider tests/test_rows*.py tests/test_*_triton.py \
    -k "triton and (32_bit or far_apart)"
step bench 150 bench.txt "$python" -m fastrl.cli bench kernels --out "$out/kernels.json"
step table 10 kernels.md "$python" bench/table.py "$out/kernels.json"
step roofline 10 roofline.txt "$python" bench/roofline.py "$out/kernels.json" "$out/roofline.png"
exit "$failed"
