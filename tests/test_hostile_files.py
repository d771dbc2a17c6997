"""Damaged and adversarial files are refused in a sentence: no crash, no code, no gigabytes."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hostile_files import KINDS, MARK
from hostile_readers import outcome

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures memory with /proc, as Linux has it"
)
SCRIPT = Path(__file__).with_name("hostile_readers.py")


def cases(kind, count, folder):
    """What came of the first `count` cases, in a process of their own, and the memory they took."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kind, "0", str(count), str(folder)],
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = lines[-1] if lines else None
    assert done.returncode == 0, (last, done.stdout[-300:], done.stderr[-2000:])
    whats, found = lines[::2], lines[1::2]
    assert [line["case"] for line in found] == list(range(count))
    wrong = [(a["what"], b["found"]) for a, b in zip(whats, found, strict=True)
             if b["found"].startswith("WRONG")]  # fmt: skip
    assert not wrong, wrong[:5]
    tally = Counter(line["found"].partition(":")[0] for line in found)
    print(f"{kind}: {tally['refused']} refused, {tally['read']} read, {last['grown']:,} bytes")
    return tally


def check(kind, count, folder):
    tally = cases(kind, count, folder)
    assert set(tally) == {"refused", "read"} and tally.total() == count


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_refused_in_a_sentence(kind, tmp_path):
    check(kind, 160, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_hostile_files(kind, tmp_path):
    check(kind, 4000, tmp_path)


def raises(directory):
    raise ValueError("not meant for users")


def is_long(directory):
    from fastrl.errors import UsageError

    raise UsageError("one line\nand another one")


def runs_code(directory):
    (directory / MARK).touch()


@pytest.mark.parametrize("reader", [raises, is_long, runs_code])
def test_what_must_not_be_is_found(reader, tmp_path):
    (tmp_path / "case").mkdir()
    assert outcome(reader, tmp_path / "case").startswith("WRONG")


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_an_unpickling_ends_the_process():
    code = "from hostile_readers import forbid; import pickle; forbid(); pickle.loads({!r})"
    done = subprocess.run(
        [sys.executable, "-c", code.format(pickle.dumps(Evil()))],
        cwd=SCRIPT.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and "FORBIDDEN pickle.find_class" in done.stdout
    assert "code was run" not in done.stdout
