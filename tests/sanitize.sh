#!/usr/bin/env bash
# The C++ under AddressSanitizer and UndefinedBehaviorSanitizer: builds a second extension in a
# temporary folder and runs the tests that reach it. `make sanitize` calls it; gcc only.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:?usage: tests/sanitize.sh PYTHON}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cp -r csrc fastrl kernels bench tests setup.py pyproject.toml README.md LICENSE MANIFEST.in "$scratch"
cd "$scratch"
rm -f fastrl/*.so
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="-fsanitize=address,undefined" "$python" setup.py --quiet build_ext --inplace
if ! nm fastrl/_C*.so | grep __asan_report >/dev/null; then
    echo "the extension was built without sanitizers" >&2
    exit 1
fi
# the copy's fastrl, with the kernels where the package expects them
ln -s ../kernels fastrl/kernels
export PYTHONPATH="$scratch" ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
"$python" -c "import fastrl._C as c; assert c.__file__.startswith('$scratch'), c.__file__"
"$python" -m pytest -q -p no:cacheprovider -n "${JOBS:-2}" -m "not slow" \
    -k "not (milliseconds or linearly or megabytes)" \
    tests/test_rows*.py tests/test_ops.py tests/test_losses.py \
    tests/test_sample_refusals.py tests/test_grading*.py tests/test_paged_attention.py \
    tests/test_dense.py tests/test_layer_rows.py tests/test_packed_attention.py \
    tests/test_ops_attention.py tests/test_optim.py tests/test_sampler.py
