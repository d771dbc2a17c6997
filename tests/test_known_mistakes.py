"""The list of mistakes that kernels like these were shipped with, and the tests that look for each.

A test that takes `row_path` runs on every path: torch, C++ with each instruction set, Triton in the
interpreter or on a GPU. Where one does not apply, `DOES_NOT_APPLY` of its module or the table here
says why.
"""

import ast
import importlib
from pathlib import Path

import mutate_rows
import pytest

FOLDER = Path(__file__).parent
ROWS, MEMORY, BITS, SAMPLE = (f"test_rows{name}" for name in ("", "_memory", "_bits", "_sample"))
HEAD, INPLACE, LOSS = "test_rows_head", "test_rows_inplace", "test_rows_loss"
EVERY_PATH = "every path"

# number: (what went wrong, {module: names of tests begin so}, where it does not apply)
MISTAKES = {
    1: ("padded columns counted", {ROWS: "test_1_", SAMPLE: "test_1_"}, EVERY_PATH),
    2: ("a maximum that starts at 0", {ROWS: "test_2_", SAMPLE: "test_2_"}, EVERY_PATH),
    3: ("a first block of -inf", {ROWS: "test_3_"}, EVERY_PATH),
    4: ("0 * -inf in the entropy", {ROWS: "test_4_", SAMPLE: "test_4_"}, EVERY_PATH),
    5: (
        "reading what is masked, padded or impossible",
        {ROWS: "test_5_", MEMORY: "test_5_", HEAD: "test_5_", SAMPLE: "test_5_"},
        "a target outside the vocabulary gives NaN on a GPU; elsewhere it is refused in advance",
    ),
    6: ("cancellation at a likely target", {ROWS: "test_6_"}, EVERY_PATH),
    7: ("logits overwritten that others need", {INPLACE: "test_7_"}, EVERY_PATH),
    8: ("offsets of 32 bits", {MEMORY: "test_8_", SAMPLE: "test_8_"}, EVERY_PATH),
    9: (
        "a float that becomes fp64 under the compiler",
        {BITS: "test_9_", SAMPLE: "test_9_"},
        "the compiler sees one operator for all of C++; it cannot trace the interpreter",
    ),
    10: (
        "a size or setting that recompiles",
        {"test_kernels_compile": "test_10_"},
        "torch and C++ compile nothing at run time",
    ),
    11: (
        "waiting for the GPU",
        {BITS: "test_11_"},
        "there is none under torch and C++; the definition looks at values",
    ),
    12: (
        "sums across chunks in bf16",
        {HEAD: "test_12_"},
        "the products are the head's: once, not in each path's kernels",
    ),
    13: (
        "losses that differ between frameworks",
        {"test_golden_losses": "test_a_preset_is_the_frameworks_own_loss"},
        "Triton's losses are compared with the definition's in test_rows_loss",
    ),
    14: ("an entropy without a gradient", {ROWS: "test_14_", HEAD: "test_14_"}, EVERY_PATH),
    15: ("the temperature divided twice, or once only", {ROWS: "test_15_"}, EVERY_PATH),
    16: (
        "a head's weight read outside its forward",
        {"test_head_module": "test_it_", "test_compaction": "test_compaction_"},
        "above the paths: a module, and a choice of rows",
    ),
    17: (
        "everything masked",
        {ROWS: "test_17_", LOSS: "test_17_", HEAD: "test_17_"},
        "a sample has no mask",
    ),
    18: (
        "results that differ between runs",
        {BITS: "test_18_", HEAD: "test_18_", SAMPLE: "test_18_"},
        "threads: a row of Triton's is one program",
    ),
}


def functions_of(module):
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_the_list_is_whole():
    assert list(MISTAKES) == list(range(1, 19))


@pytest.mark.parametrize("number", MISTAKES)
def test_every_mistake_has_its_tests(number):
    _, tests, where = MISTAKES[number]
    assert tests and where
    for module, beginning in tests.items():
        assert any(name.startswith(beginning) for name in functions_of(module)), (module, beginning)


def test_every_numbered_test_is_in_the_table():
    for path in FOLDER.glob("test_*.py"):
        for name in functions_of(path.stem):
            number = name.removeprefix("test_").partition("_")[0]
            if name.startswith("test_") and number.isdecimal():
                _, tests, _ = MISTAKES[int(number)]
                assert name.startswith(tests[path.stem]), f"{path.name}: {name}"


def test_the_mutations_are_of_lines_that_exist():
    """`python tests/mutate_rows.py` shows that the tests notice each; by hand, for hours."""
    for mutations in mutate_rows.PATHS.values():
        for file, line, change in mutations:
            assert line in (FOLDER.parent / file).read_text(), (file, line)
            assert line != change


def test_what_does_not_apply_names_tests_that_exist():
    for module in (BITS, MEMORY):
        for test, _ in importlib.import_module(module).DOES_NOT_APPLY:
            assert test in functions_of(module)
