#!/usr/bin/env bash
# Fuzzes extraction and equivalence under AddressSanitizer and UndefinedBehaviorSanitizer, with
# clang: bash tests/fuzz/run.sh [-runs=N | -max_total_time=SECONDS]; any option of libFuzzer, for
# each target. A finding stops it and stays in build/fuzz. --keep instead: makes
# tests/fuzz/corpus.tar.xz of the smallest inputs that reach what all so far have reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=build/fuzz
# a stack for each allocation would take half of the time
export ASAN_OPTIONS=${ASAN_OPTIONS:-malloc_context_size=0:quarantine_size_mb=4:detect_leaks=0}
mkdir -p $build/old/{extraction,equivalence} $build/seeds
flags="-std=c++17 -g -O2 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
rm -f $build/*.o
(cd $build && clang++ $flags -c $(ls "$OLDPWD"/csrc/grading/*.cpp | grep -v module.cpp))
for target in extraction equivalence; do
    clang++ $flags -D${target^^} tests/fuzz/fuzz_grading.cpp $build/*.o -o $build/fuzz_$target
done
python3 tests/fuzz/seeds.py $build/seeds
[[ -f tests/fuzz/corpus.tar.xz ]] && tar -xJf tests/fuzz/corpus.tar.xz -C $build/old
if [[ ${1:-} == --keep ]]; then
    rm -rf $build/new
    mkdir -p $build/new/{extraction,equivalence}
    for target in extraction equivalence; do
        $build/fuzz_$target -set_cover_merge=1 -max_len=1024 $build/new/$target $build/old/$target \
            $build/seeds/$target 2>&1 | tail -n 2
    done
    tar --sort=name --owner=0 --group=0 --mtime=@0 -C $build/new -cf - extraction equivalence |
        xz -9e >tests/fuzz/corpus.tar.xz
    exit
fi
for target in extraction equivalence; do
    $build/fuzz_$target -max_len=512 -timeout=2 -print_final_stats=1 -dict=$build/seeds/words \
        -artifact_prefix=$build/$target- "${@:--max_total_time=60}" \
        $build/old/$target $build/seeds/$target >$build/$target.log 2>&1 ||
        { tail -n 60 $build/$target.log; exit 1; }
    sed -n "s/stat::number_of_executed_units: */$target, executions: /p" $build/$target.log
done
