"""Run an iterator in a thread of its own, a few items ahead of who consumes it."""

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


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The items of `items`, made by a thread; at most `depth` wait. An error is raised where the item would come.

    Stopping early (closing this generator) stops the thread after the item it is making.
    """
    waiting: queue.Queue[T | _Failed | _Done] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: T | _Failed | _Done) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(item, timeout=0.1)
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
            item = waiting.get()
            if isinstance(item, _Done):
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()
