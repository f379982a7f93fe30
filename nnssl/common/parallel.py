"""The same function for many items, in several processes, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import TypeVar

from tqdm import tqdm

from nnssl.common.errors import mark_expected

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str
) -> list[Result]:
    """Results in the order of ``items``; the first exception stops the rest.

    Args:
        function: Picklable, as are items and results.
        items: The inputs.
        workers: Number of processes, from 1, which stays in this process.
        title: Text before the progress bar.

    Raises:
        ChildProcessError: A process died.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    if workers == 1 or len(items) < 2:
        return [function(item) for item in tqdm(items, title)]
    count, spawn = min(workers, len(items)), get_context("spawn")
    with ProcessPoolExecutor(count, spawn, initializer=end_with_parent) as pool:
        futures = [pool.submit(mark_expected, function, item) for item in items]
        try:
            for future in tqdm(as_completed(futures), title, total=len(futures)):
                future.result()
        except BrokenProcessPool as error:
            what = "a worker process died, perhaps for lack of memory; try fewer workers"
            raise ChildProcessError(what) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def end_with_parent() -> None:
    """This worker ends when its parent was killed; it would write on, then wait forever."""
    if parent := parent_process():
        Thread(target=_wait_for_the_end, args=(parent,), daemon=True).start()


def _wait_for_the_end(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
