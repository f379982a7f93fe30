"""A loader that is counted, not continued: step t is the same batch after a resume, anywhere."""

from __future__ import annotations

import atexit
import contextlib
import signal
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from math import ceil
from time import perf_counter
from typing import Any

from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Any]


class SteppedLoader:
    """Yields `make_batch(first_step)`, `make_batch(first_step + 1)`, ... without end, in order.

    The number of workers changes the speed and nothing else, because a batch may depend on nothing
    but its step. Workers run with one torch thread each (torch's own rule) and leave signals to the
    main process.

    Args:
        make_batch: step -> dict of tensors, lists and strings; picklable where workers are spawned.
        workers: background processes; 0 works in the main process.
        pin_memory: puts the tensors into page-locked memory (for CUDA).
        prefetch: batches prepared ahead, over all workers; each worker is at least two ahead.

    Attributes:
        seconds_waited: how long the caller has been blocked so far.
    """

    def __init__(
        self,
        make_batch: Callable[[int], Batch],
        first_step: int,
        workers: int,
        pin_memory: bool,
        prefetch: int = 4,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers: found {workers}, allowed from 0 (the main process)")
        self.seconds_waited = 0.0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader: DataLoader[Batch] = DataLoader(
                _Steps(make_batch),
                batch_size=None,
                sampler=count(first_step),
                num_workers=workers,
                pin_memory=pin_memory,
                collate_fn=_keep,
                worker_init_fn=_leave_signals_to_main_process,
                prefetch_factor=max(2, ceil(prefetch / workers)) if workers else None,
            )
            self._batches: Iterator[Batch] | None = iter(loader)
        atexit.register(_end_workers, weakref.ref(self._batches))

    def __iter__(self) -> SteppedLoader:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            raise RuntimeError("The loader was closed; make a new one.")
        begin = perf_counter()
        try:
            batch = next(self._batches)
        finally:
            self.seconds_waited += perf_counter() - begin
        if "error" in batch:
            self.close()
            cause = batch["error"].pop("cause", "no cause was given")
            where = ", ".join(f"{name} {value}" for name, value in batch["error"].items())
            raise RuntimeError(f"A batch could not be made ({where}): {cause}")
        return batch

    def close(self) -> None:
        """Ends the workers. May be called twice."""
        if self._batches is not None:
            _end_workers(weakref.ref(self._batches))
        self._batches = None


class _Steps(Dataset[Batch]):
    def __init__(self, make_batch: Callable[[int], Batch]) -> None:
        self.make_batch = make_batch

    def __getitem__(self, step: int) -> Batch:
        """An exception travels as text: an exception object may not be picklable."""
        try:
            return self.make_batch(step)
        except Exception as error:
            cause = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            return {"error": {"step": step, "cause": cause}}


def _keep(batch: Any) -> Any:
    return batch


def _leave_signals_to_main_process(_: int) -> None:
    """Ctrl-C and a scheduler's signals reach the workers too; they must outlive the last save."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        with contextlib.suppress(ValueError, OSError, AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_workers(batches: weakref.ref[Iterator[Batch]]) -> None:
    """Tells the workers to end; a traceback that holds the iterator would keep them alive.

    At the exit of a crashed process this must come before multiprocessing waits for its children,
    which ignore its SIGTERM.
    """
    shut_down = getattr(batches(), "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
