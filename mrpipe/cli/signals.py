"""Signals that end a process become exceptions, so that temporary files are removed and child processes end."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PAUSE = 2.0  # seconds


class Interrupted(KeyboardInterrupt):
    """One of `SIGNALS` has arrived; `exit_code` is the one with which a shell reports it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` at a signal, unless the signal is ignored (as by nohup) or handled by the caller."""
    last = -math.inf

    def stop(number: int, frame: object) -> None:
        nonlocal last
        # A parent and its process group often send a signal twice: the second one must not stop the clean-up.
        if time.monotonic() - last >= _PAUSE:
            last = time.monotonic()
            raise Interrupted(number)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    in_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, stop) for n in SIGNALS if in_main and signal.getsignal(n) in usual}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
