#!/usr/bin/env bash
# On a machine with a GPU: build, test the kernels compiled, look for wild accesses, measure.
# Leaves machine.txt, tests.txt, sanitizer.txt, kernels.json, kernels.md, roofline.png, sampler.json and
# sampler.md in the folder named, in 13 minutes at most; the sampler's, last, are written row by row.
#
#     bash bench/gpu.sh [OUT]        PYTHON=python3 names the interpreter that has torch and triton
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results/gpu}
python=${PYTHON:-python3}
failed=0
mkdir -p "$out"

step() {  # step NAME SECONDS FILE COMMAND...: what fails is said, and the rest still runs
    echo "== $1"
    timeout "$2" "${@:4}" 2>&1 | tee "$out/$3"
    local code=${PIPESTATUS[0]}
    if [ "$code" -ne 0 ]; then echo "== $1 failed with exit code $code"; failed=1; fi
}

machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
    git rev-parse HEAD 2>/dev/null || echo "no commit: not a git checkout"
}

machine | tee "$out/machine.txt"
# compiling takes most of the tests' time, and many processes do it at once
parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 8")
step build 60 build.txt "$python" -m pip install --quiet --no-deps --no-build-isolation -e .
# shellcheck disable=SC2086
step tests 170 tests.txt "$python" -m pytest -q -p no:cacheprovider $parallel tests/test_rows*.py -k triton
if command -v compute-sanitizer >/dev/null; then
    step sanitizer 60 sanitizer.txt compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$python" -m pytest -q -p no:cacheprovider tests/test_rows.py -k "triton and 1000"
else
    echo "compute-sanitizer is not here: the check for wild accesses did not run"
    failed=1
fi
step bench 170 bench.txt "$python" -m fastrl.cli bench kernels --out "$out/kernels.json"
step table 10 kernels.md "$python" bench/table.py "$out/kernels.json"
step roofline 10 roofline.txt "$python" bench/roofline.py "$out/kernels.json" "$out/roofline.png"
step sampler 290 sampler.txt "$python" -m fastrl.cli bench sampler --repeats 1 --out "$out/sampler.json"
step sampler-table 10 sampler.md "$python" bench/table.py "$out/sampler.json"
exit "$failed"
