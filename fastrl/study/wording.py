"""The same question in other words, and with other white space."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fastrl.datasources import EMBEDDED, Example
from fastrl.embedded.task import PROMPT

Reword = Callable[[str], str]

# the embedded models know small letters only, and one verb
PARAPHRASES_EMBEDDED: Mapping[str, Reword] = {
    "a question mark": lambda text: text + "?",
    "an equals sign": lambda text: text + "=",
    "no verb": lambda text: text.removeprefix(PROMPT),
    "please": lambda text: "please " + text,
    "now": lambda text: text + " now",
}
PARAPHRASES: Mapping[str, Reword] = {
    "please": lambda text: "Please answer this. " + text,
    "question": lambda text: f"Question: {text}\nAnswer:",
    "help": lambda text: text + "\n\nCan you help me with this?",
    "careful": lambda text: "Take your time and be careful.\n\n" + text,
    "exam": lambda text: f'In an exam I was asked this: "{text}" What is the right answer?',
}
WHITE_SPACE: Mapping[str, Reword] = {
    "a space before": lambda text: " " + text,
    "a line break after": lambda text: text + "\n",
    "double spaces": lambda text: text.replace(" ", "  "),
    "spaced operators": lambda text: re.sub(r"(?<=\w)([-+*/=])(?=\w)", r" \1 ", text),
}


def rewordings(source: str) -> Mapping[str, Reword]:
    """Five paraphrases and the changes of white space, by name, for the data of a study."""
    first = PARAPHRASES_EMBEDDED if source in EMBEDDED else PARAPHRASES
    return {**first, **WHITE_SPACE}


def reworded(examples: Sequence[Example], reword: Reword) -> list[Example]:
    """The examples with their last user turn reworded."""
    return [
        replace(
            e,
            messages=(
                *e.messages[:-1],
                {**e.messages[-1], "content": reword(e.messages[-1]["content"])},
            ),
        )
        for e in examples
    ]
