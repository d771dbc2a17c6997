"""The end of a run of several processes when one of them fails or dies: one line, no hang.

The first to fail leaves its reason in torchrun's store; a thread of every process looks there,
whether its neighbours on the machine are alive, and whether those of other machines still count
their heartbeats up, so that none waits in a collective for ever. One process prints the reason, the
first if it can.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, TypeVar

import torch.distributed as dist

from fastrl.distributed import World
from fastrl.errors import Failure, UsageError

T = TypeVar("T")

PERIOD_S = 0.5  # between two looks
PATIENCE_S = 3.0  # what broke a collective, and may not be the reason, waits for a better one
# without a heartbeat a process of another machine is dead: no C call of a run holds Python's lock
# for so long (safetensors and tokenizers let go of it)
SILENCE_S = 20.0
TURN_S = 5.0  # how long the first process has to speak before another does

FAILED, USAGE = 1, 2  # exit codes


class Watch:
    """A context that no failure leaves: the process ends there, with those of the others.

    Nor does a process that has left it stop on SIGTERM: it is about to exit.
    """

    def __init__(self, world: World) -> None:
        """Every process, after `init_process_group`."""
        self.world = world
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        # a connection of its own: a call that waits on another's holds it
        client = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
        self.store = dist.PrefixStore(f"fastrl/{attempt}", client)
        self.beats = 0
        self._beat()
        self.processes = world.gather([world.host, os.getpid(), _is_ours(address)])
        # ranks of another machine with the address of torchrun's store
        self.holders = [
            rank
            for rank, (host, _, holds) in enumerate(self.processes)
            if holds and host != world.host
        ]
        # of the ranks of other machines: the last heartbeat, and since when it is that by our clock
        self.heard = {
            rank: (b"", time.monotonic())
            for rank, (host, *_) in enumerate(self.processes)
            if host != world.host
        }
        self.silence_s: dict[int, float] = {}  # of the same ranks, at our last look
        self._leaving = threading.Event()
        self._left = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        signal.signal(signal.SIGTERM, _interrupt)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                # torchrun ends the others when the first exits; the work is done, let them go
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self._leaving.set()
                self.world.part()
                # whoever goes from now on has done its work
                _tried(lambda: self.store.set("done", "yes"), None)
                self._left.set()
        except RuntimeError as broken:
            error = broken
        if error is not None:
            self.fail(error)
        self._thread.join()

    def fail(self, error: BaseException) -> NoReturn:
        """End this process for `error`, or for what is behind it in another process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if isinstance(error, UsageError):
            self._end(str(error), USAGE)
        if isinstance(error, Failure):
            self._end(str(error), FAILED)
        # a collective that broke and a signal of torchrun's are what a death elsewhere looks like
        if isinstance(error, (RuntimeError, OSError, KeyboardInterrupt)):
            deadline = time.monotonic() + PATIENCE_S
            # as long as another machine is silent, it may be the reason
            while (
                time.monotonic() < deadline
                or max(self.silence_s.values(), default=0.0) > PATIENCE_S / 2
            ):
                self._end_if_known()
                time.sleep(PERIOD_S / 5)
        if isinstance(error, KeyboardInterrupt):
            self._end("interrupted", FAILED)
        traceback.print_exception(error)
        reason = traceback.format_exception_only(error)[0].strip().partition("\n")[0]
        self._end(f"{self.world}: {reason}", FAILED)

    def _look(self) -> None:
        while not self._left.wait(PERIOD_S):
            _tried(self._beat, None)
            self._end_if_known()

    def _beat(self) -> None:
        self.beats += 1
        self.store.set(f"beats/{self.world.rank}", str(self.beats))

    def _listen(self) -> None:
        """Ask the store, once, for the heartbeats of other machines' ranks."""
        if not self.heard:
            return
        now = time.monotonic()  # before the question: what we wait for is not their silence
        beats = self.store.multi_get([f"beats/{rank}" for rank in self.heard])
        for (rank, (last, _)), beat in zip(list(self.heard.items()), beats, strict=True):
            if beat != last:
                self.heard[rank] = (beat, now)
        self.silence_s = {rank: now - since for rank, (_, since) in self.heard.items()}

    def _end_if_known(self) -> None:
        """End this process if another has left its reason, or has died without one."""
        try:
            if self.store.check(["reason"]):
                self._end("", FAILED)
            self._listen()
            dead = self._dead()
            if dead and not self.store.check(["done"]):
                self._end(dead, FAILED)  # it may have failed by itself, and said why
        except RuntimeError:  # the store died with the machine or the torchrun that held it
            if not self._leaving.is_set():
                self._end(self._without_store(), FAILED)

    def _without_store(self) -> str:
        if not self.holders:
            return f"{self.world}: torchrun's store is gone, and its machine with it"
        rank = self.holders[0]
        return (
            f"{self._named(rank)}: gone with its torchrun, which held the store; its process was"
            " killed or its machine is gone"
        )

    def _named(self, rank: int) -> World:
        return World(rank, self.world.size, host=self.processes[rank][0])

    def _dead(self) -> str:
        """What to say of a process that is no more; "" while all are there."""
        for rank, (host, pid, _) in enumerate(self.processes):
            name = self._named(rank)
            if host == self.world.host and not _is_alive(pid):
                return f"{name}: its process {pid} was killed or crashed"
            if self.silence_s.get(rank, 0.0) > SILENCE_S:
                return (
                    f"{name}: nothing heard of it for {SILENCE_S:.0f} s; its process was killed or"
                    " its machine is gone"
                )
        return ""

    def _end(self, text: str, code: int) -> NoReturn:
        """Leave `text` as the reason unless there is one, have it printed once, end."""
        self._ending.acquire()  # for good: one thread ends the process
        mine = json.dumps([text, code])
        reason = json.loads(
            _tried(lambda: self.store.compare_set("reason", "", mine), mine.encode())
        )
        if self._may_speak():
            if sys.__stdout__ and sys.__stdout__.isatty():
                print("\033[?25h", end="", file=sys.__stdout__, flush=True)  # the cursor
            print(f"fastrl: {reason[0]}", file=sys.stderr, flush=True)
            _tried(lambda: self.store.set("said", "yes"), None)
        if reason[1] == USAGE:  # torchrun ends the others when the first exits: all at once
            self._wait_for(lambda: self.store.add("ended", 0) >= self.world.size, count=True)
        sys.stderr.flush()
        os._exit(reason[1])

    def _may_speak(self) -> bool:
        if not self.world.is_first:
            self._wait_for(lambda: self.store.check(["said"]))
        return _tried(lambda: self.store.add("speakers", 1), 1) == 1

    def _wait_for(self, condition: Callable[[], bool], count: bool = False) -> None:
        """Return once it holds, or the store is gone, or TURN_S are over."""
        if count:
            _tried(lambda: self.store.add("ended", 1), 0)
        deadline = time.monotonic() + TURN_S
        while not _tried(condition, True) and time.monotonic() < deadline:
            time.sleep(PERIOD_S / 10)


def _tried(call: Callable[[], T], otherwise: T) -> T:
    """What the store answers; `otherwise` where it is gone."""
    try:
        return call()
    except RuntimeError:
        return otherwise


def _is_ours(address: str) -> bool:
    """Whether an address is this machine's."""
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
