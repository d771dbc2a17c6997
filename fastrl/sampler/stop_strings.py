"""Stop strings in the text of a response that grows by a token at a time."""

from __future__ import annotations

from collections.abc import Sequence

from fastrl.tokenizer import BROKEN, TextStream, Tokenizer


class StopStrings:
    """Finds the stop strings of one response, in time that does not grow with its length.

    It finds what a search of the whole text after every token does. The end of the text is
    searched first, and the whole only where that has a stop string. A string with U+FFFD in it,
    which stands for the bytes of an unfinished character too, is always looked for in the whole.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._text = TextStream(tokenizer)
        self._end = ""  # one character less than the longest of them
        self._keep = max(map(len, stop)) - 1
        self._always_whole = any(BROKEN in s for s in stop)

    def find(self, token_ids: Sequence[int]) -> str | None:
        """The first stop string, in their order, that the text of `token_ids` has.

        `token_ids`: the response so far, one token longer than at the last call.
        """
        end = self._end + self._text.add(token_ids[-1])
        self._end = end[max(0, len(end) - self._keep) :]
        if not self._always_whole and not any(s in end for s in self._stop):
            return None
        text = self._tokenizer.decode(token_ids)
        return next((s for s in self._stop if s in text), None)
