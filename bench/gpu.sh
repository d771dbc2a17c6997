#!/usr/bin/env bash
# On a machine with a GPU: build, test the kernels compiled, look for wild accesses, measure.
# Leaves machine.txt, tests.txt, sanitizer.txt, kernels.json and kernels.md in the folder named.
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
step build 180 build.txt "$python" -m pip install --quiet --no-deps --no-build-isolation -e .
step tests 180 tests.txt "$python" -m pytest -q -p no:cacheprovider tests/test_rows*.py -k triton
if command -v compute-sanitizer >/dev/null; then
    step sanitizer 120 sanitizer.txt compute-sanitizer --tool memcheck --error-exitcode 9 \
        "$python" -m pytest -q -p no:cacheprovider tests/test_rows.py -k "triton and 1000"
else
    echo "compute-sanitizer is not here: the check for wild accesses did not run"
    failed=1
fi
step bench 240 bench.txt "$python" -m fastrl.cli bench kernels --out "$out/kernels.json"
step table 20 kernels.md "$python" bench/table.py "$out/kernels.json"
exit "$failed"
