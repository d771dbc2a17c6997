"""A command of fastrl in an interpreter of its own that is made to be killed.

    python killed_run.py LOG DISK WORD...

Each phase of the run is a line of the file LOG, written as it begins. DISK, if not empty, is a
folder that holds what a power cut would leave: for each directory the names in it when it was last
synced, for each file what was in it then. `after_power_cut` makes a tree of that. LOG.saved has the
name of each checkpoint, from when it is said to be on the disk. The phase that HOLD_PHASE names
begins with a second in which nothing happens.
"""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path


class Disk:
    """What was synced, of everything below `root`; in files, since the process is killed."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.held: list[int] = []  # an open file's inode is not given to another

    def note(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.root):
            return
        self.held.append(os.dup(descriptor))
        target = self.folder / str(os.fstat(descriptor).st_ino)
        partial = target.with_suffix(".partial")
        if path.is_dir():
            partial.write_text(json.dumps({e.name: e.inode() for e in os.scandir(path)}))
        else:
            shutil.copyfile(path, partial)
        partial.replace(target)


def after_power_cut(disk: Path, root: Path, target: Path, rng: random.Random) -> None:
    """Make `target` of the tree `root` as a power cut may leave it.

    What was synced is there. What was not is there, or gone, or there in part, by `rng`.
    """

    def restore(now: Path | None, inode: int, into: Path) -> None:
        synced = disk / str(inode)
        if now is not None and now.is_dir() or now is None and is_listing(synced):
            into.mkdir()
            names = json.loads(synced.read_text()) if synced.exists() else {}
            there = {e.name: e.inode() for e in os.scandir(now)} if now is not None else {}
            for name in sorted(names.keys() | there.keys()):
                kept = names.get(name)
                if name in there and there[name] != kept and rng.random() < 0.5:
                    kept = there[name]  # the change came to the disk without being asked to
                elif name not in there and rng.random() < 0.5:
                    kept = None  # and so did a removal
                if kept is not None:
                    same = there.get(name) == kept
                    restore(now / name if same and now else None, kept, into / name)
            return
        data = synced.read_bytes() if synced.exists() else b""
        if now is not None and rng.random() < 0.5:
            current = now.read_bytes()
            if current.startswith(data):
                more = current[len(data) :]
                end = rng.randint(0, len(more))
                zeros = rng.choice([0, len(more) - end])
                data += more[:end] + bytes(zeros)
        into.write_bytes(data)

    def is_listing(synced: Path) -> bool:
        return synced.exists() and synced.read_bytes()[:1] == b"{" and _is_json(synced)

    restore(root, os.stat(root).st_ino, target)


def _is_json(path: Path) -> bool:
    try:
        values = json.loads(path.read_text())
    except ValueError:
        return False
    return all(isinstance(v, int) for v in values.values())


def main() -> int:
    log, folder, words = sys.argv[1], sys.argv[2], sys.argv[3:]
    held = os.environ.get("HOLD_PHASE")
    import fastrl.display
    import fastrl.keeper
    from fastrl.cli import main

    write = fastrl.keeper.write_checkpoint

    def write_checkpoint(*rest):
        path = write(*rest)
        with open(f"{log}.saved", "a") as saved:
            saved.write(f"{path.name}\n")
        return path

    fastrl.keeper.write_checkpoint = write_checkpoint

    with open(log, "a", buffering=1) as file:
        begin = fastrl.display.Display.phase

        def phase(self, name):
            file.write(name + "\n")
            begin(self, name)
            if name.split()[0] == held:
                time.sleep(1)

        fastrl.display.Display.phase = phase
        if folder:
            disk, sync = Disk(Path(folder), Path(log).parent), os.fsync

            def fsync(descriptor):
                sync(descriptor)
                disk.note(descriptor)

            os.fsync = fsync
        return main(words)


if __name__ == "__main__":
    sys.exit(main())
