"""Writes seeds of the fuzz targets of the grader, and a dictionary: the cases of tests/grading.

python tests/fuzz/seeds.py FOLDER: files in FOLDER/extraction and FOLDER/equivalence, FOLDER/words.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

CASES = Path(__file__).parents[1] / "grading"
MODES = ("box", "box_or_anchor", "flexible", "hash4", "choice", "tag")
LONGEST = 2000


def main(folder: Path) -> None:
    """One file a case, named by its content."""
    names = ("cases.jsonl", "own_cases.jsonl")
    cases = [json.loads(line) for name in names for line in (CASES / name).open()]
    words = {r"\boxed{", r"\frac{", "<think>", "</think>", "<answer>", "####", "answer is "}
    for case in cases:
        gold, completion = (raw(case[name]) for name in ("gold", "prediction"))
        mode = MODES.index(case["mode"])
        choices = (case["content"] != "answer") + 2 * mode
        write(folder / "extraction", bytes([mode]) + completion)
        write(folder / "equivalence", bytes([choices]) + gold + b"\n" + completion)
        words.update(re.findall(r"\\[a-zA-Z]+", case["gold"] + case["prediction"]))
    lines = [json.dumps(word) for word in sorted(words)]
    (folder / "words").write_text("\n".join(lines) + "\n")


def raw(text: str) -> bytes:
    """UTF-8, lone surrogates and all."""
    return text.encode(errors="surrogatepass")[:LONGEST]


def write(folder: Path, seed: bytes) -> None:
    """A seed, once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
