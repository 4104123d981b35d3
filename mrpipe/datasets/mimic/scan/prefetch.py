"""Run an iterator in a background thread, a few items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class _Failed:
    def __init__(self, error: BaseException):
        self.error = error


class _Done:
    pass


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """Iterate over `items` in a thread that buffers up to `depth` items; its errors are raised in the consumer.

    Closing the generator early stops the thread after its current item.
    """
    buffer: queue.Queue[T | _Failed | _Done] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: T | _Failed | _Done) -> None:
        while not stopped.is_set():
            try:
                return buffer.put(item, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    break
            put(_Done())
        except BaseException as error:
            put(_Failed(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            item = buffer.get()
            if isinstance(item, _Done):
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()
