#!/usr/bin/env bash
# Fuzzes the C++ under AddressSanitizer and UndefinedBehaviorSanitizer, with clang, and with gcc for
# its instruction sets: bash tests/fuzz/run.sh [TARGET...] [-runs=N | -max_total_time=SECONDS]; any
# option of libFuzzer, for each target. A finding stops it and stays in build/fuzz. --keep instead:
# makes tests/fuzz/corpus.tar.xz of the smallest inputs of the grader that reach what all so far have
# reached.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=build/fuzz
declare -A file=(
    [extraction]=grading [equivalence]=grading [batch]=grading [logits]=logits [sampling]=logits
    [layer_rows]=layer [dense]=layer [layer]=layer [paged]=attention [packed]=attention
)
all="extraction equivalence batch logits sampling layer_rows dense layer paged packed"
seeded="extraction equivalence"  # from the cases of tests/grading, and the corpus in the repository
targets=
while [[ ${1:-} == [a-z]* ]]; do targets+=" $1" && shift; done
[[ ${1:-} == --keep ]] && targets=$seeded
targets=${targets:-$all}
# a stack for each allocation would take half of the time
export ASAN_OPTIONS=${ASAN_OPTIONS:-malloc_context_size=0:quarantine_size_mb=4:detect_leaks=0}
for target in $targets $seeded; do mkdir -p $build/old/$target; done
mkdir -p $build/seeds $build/grading $build/kernels

flags="-std=c++17 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
flags+=" -D_GLIBCXX_SANITIZE_VECTOR"  # what lies beyond a vector's size is out of bounds
is_old() { [[ ! -f $1/built || $(find csrc tests/fuzz/run.sh -newer $1/built -name '*.*') ]]; }
if is_old $build/grading; then
    (cd $build/grading && clang++ $flags -O2 -fsanitize=fuzzer -c \
        $(ls "$OLDPWD"/csrc/grading/*.cpp | grep -v module.cpp))
    touch $build/grading/built
fi
if [[ $targets != "$seeded" ]] && is_old $build/kernels; then
    (cd $build/kernels && g++ $flags -O1 -w -fopenmp-simd -fsanitize-coverage=trace-pc -c \
        $(ls "$OLDPWD"/csrc/*.cpp | grep -v module.cpp))
    g++ -O2 -c tests/fuzz/gcc_coverage.cpp -o $build/kernels/gcc_coverage.o
    touch $build/kernels/built
fi
for target in $targets; do
    parts=kernels coverage=
    [[ ${file[$target]} == grading ]] && parts=grading coverage=-fsanitize=fuzzer
    clang++ $flags -O2 $coverage -D${target^^} -c tests/fuzz/fuzz_${file[$target]}.cpp \
        -o $build/$target.o
    clang++ $flags -fsanitize=fuzzer $build/$target.o $build/$parts/*.o -ldl -pthread \
        -Wl,--wrap=__sanitizer_cov_trace_pc -o $build/fuzz_$target
done

python3 tests/fuzz/seeds.py $build/seeds
[[ -f tests/fuzz/corpus.tar.xz ]] && tar -xJf tests/fuzz/corpus.tar.xz -C $build/old
if [[ ${1:-} == --keep ]]; then
    rm -rf $build/new
    mkdir -p $build/new/{extraction,equivalence}
    for target in $seeded; do
        $build/fuzz_$target -set_cover_merge=1 -max_len=1024 $build/new/$target $build/old/$target \
            $build/seeds/$target 2>&1 | tail -n 2
    done
    tar --sort=name --owner=0 --group=0 --mtime=@0 -C $build/new -cf - $seeded |
        xz -9e >tests/fuzz/corpus.tar.xz
    exit
fi
for target in $targets; do
    if [[ ${file[$target]} == grading ]]; then
        from=${target/batch/equivalence}
        options="-timeout=2 -dict=$build/seeds/words $build/old/$from $build/seeds/$from"
    else
        options="-timeout=20 -len_control=0"
    fi
    $build/fuzz_$target -max_len=512 -print_final_stats=1 -artifact_prefix=$build/$target- \
        "${@:--max_total_time=60}" $build/old/$target $options >$build/$target.log 2>&1 ||
        { tail -n 60 $build/$target.log; exit 1; }
    sed -n "s/stat::number_of_executed_units: */$target, executions: /p" $build/$target.log
done
