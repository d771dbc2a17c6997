"""JSON of files that others made: what cannot be read is a ValueError, whatever is wrong."""

from __future__ import annotations

import json
from typing import Any


def parse(data: str | bytes, **options: Any) -> Any:
    """The value in a JSON text; `options` are those of `json.loads`.

    Raises ValueError (json.JSONDecodeError where a place can be named), also for bytes that are
    no UTF-8, numbers of more digits than Python converts, and lists nested too deeply.
    """
    try:
        return json.loads(data, **options)
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None


def has_lone_surrogates(text: str) -> bool:
    r"""Whether a text holds halves of characters, as JSON's "\ud800" gives; it has no UTF-8."""
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
