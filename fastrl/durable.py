"""Files that are whole and on the disk when a call returns, whatever the power does after it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO


def lock(file: IO[bytes], *, wait: bool = False) -> bool:
    """Have a file to this process until it is closed; False where another process has it.

    `wait`: for the other's end. A file system that knows no locks keeps nobody out.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def sync(*paths: Path) -> None:
    """Bring files and directories to the disk as they are; a directory is the names in it."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file under another name, and put it in the place of `path`.

    After a crash `path` is the old file or the new one, never a part.
    """
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def replace_bytes(path: Path, data: bytes) -> None:
    """`replace` by a file that holds `data`."""
    replace(path, lambda partial: partial.write_bytes(data))


def make_directories(paths: Iterable[Path]) -> None:
    """Make directories and those around them, each with its name on the disk."""
    for path in paths:
        made = [path, *path.parents]
        made = made[: next(i for i, p in enumerate(made) if p.is_dir())]
        path.mkdir(parents=True, exist_ok=True)
        sync(*(p.parent for p in reversed(made)))
