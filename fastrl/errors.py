"""The errors that are said in one sentence."""

from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """A user's mistake: one sentence with what was given, what is allowed and the way out.

    The command line prints it without a traceback and exits with code 2.
    """


class Failure(RuntimeError):
    """What went wrong around a run that was asked for rightly: a full disk, a run that collapsed.

    One sentence; the command line prints it without a traceback and exits with code 1.
    """


class Unavailable(UsageError):
    """Something of a hub that cannot be had now; the request itself may be right."""


def reason(error: Exception) -> str:
    """What the system says, as in "No space left on device", or the library that met it."""
    return getattr(error, "strerror", None) or str(error)


def shown(value: Any) -> str:
    """A value of somebody's file as a sentence has it: ASCII, and no longer than that bears."""
    if isinstance(value, int) and abs(value) >= 10**40:  # Python writes only so many digits
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_folders(*paths: str | None) -> None:
    """Raises UsageError for a file to write whose folder is not there, before any work."""
    for path in paths:
        if path and not Path(path).resolve().parent.is_dir():
            raise UsageError(f"{path} cannot be written, its folder is not there; make it first")
