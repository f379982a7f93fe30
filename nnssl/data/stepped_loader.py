"""A loader that is counted, not continued: step t is the same batch after a resume, anywhere."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from math import ceil
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from time import perf_counter
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader, Dataset

from nnssl.common.errors import is_expected
from nnssl.common.parallel import end_with_parent

Batch = dict[str, Any]
SECONDS_BETWEEN_LOOKS = (
    1.0  # at the clock and at what the caller looks at, while a batch is awaited
)
MOST_SECONDS = 1800.0  # for one batch: it may read whole volumes, from a slow disk
ADVICE = "Worker processes end for lack of memory, or of open files (`ulimit -n` should show 1024)."


class SteppedLoader:
    """Yields `make_batch(first_step)`, `make_batch(first_step + 1)`, ... without end, in order.

    The number of workers changes the speed and nothing else, because a batch may depend on nothing
    but its step. Workers run with one torch thread each (torch's own rule), leave signals to the
    main process, and end with it. A worker that cannot send a batch ends, so that nobody waits.

    Args:
        make_batch: step -> dict of tensors, lists and strings; picklable where workers are spawned.
        workers: background processes; 0 works in the main process.
        pin_memory: puts the tensors into page-locked memory (for CUDA).
        prefetch: batches prepared ahead, over all workers; each worker is at least two ahead.
        while_waiting: called every second with the seconds that the next batch has been awaited;
            it may raise.

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
        while_waiting: Callable[[float], None] | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers: found {workers}, allowed from 0 (the main process)")
        self.seconds_waited = 0.0
        self._steps, self._while_waiting = count(first_step), while_waiting
        self._causes, tell = Pipe(duplex=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader: DataLoader[Batch] = DataLoader(
                _Steps(make_batch),
                batch_size=None,
                sampler=count(first_step),
                num_workers=workers,
                pin_memory=pin_memory,
                collate_fn=_keep,
                worker_init_fn=partial(_begin_worker, tell),
                timeout=SECONDS_BETWEEN_LOOKS if workers else 0,
                prefetch_factor=max(2, ceil(prefetch / workers)) if workers else None,
            )
            self._batches: Iterator[Batch] | None = iter(loader)
        atexit.register(_end_workers, weakref.ref(self._batches))

    def __iter__(self) -> SteppedLoader:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            raise RuntimeError("The loader was closed; make a new one.")
        step, begin = next(self._steps), perf_counter()
        try:
            batch = self._await_batch(self._batches, begin)
        except Exception as error:
            told = self._causes.recv() if self._causes.poll() else ADVICE
            cause = f"{type(error).__name__}: {error}\n{told}"
            batch = {"error": {"step": step, "cause": cause}}
        finally:
            self.seconds_waited += perf_counter() - begin
        if "error" in batch:
            self.close()
            cause = batch["error"].pop("cause", "no cause was given")
            where = ", ".join(f"{name} {value}" for name, value in batch["error"].items())
            raise RuntimeError(f"A batch could not be made ({where}): {cause}")
        return batch

    def _await_batch(self, batches: Iterator[Batch], begin: float) -> Batch:
        while True:
            try:
                return next(batches)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
            seconds = perf_counter() - begin
            if self._while_waiting is not None:
                self._while_waiting(seconds)
            if seconds > MOST_SECONDS:
                raise TimeoutError(f"no worker process sent it for {seconds / 60:.0f} minutes")

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
            told = "" if is_expected(error) else f"\n{traceback.format_exc()}"
            return {"error": {"step": step, "cause": f"{type(error).__name__}: {error}{told}"}}


def _keep(batch: Any) -> Any:
    return batch


def _begin_worker(tell: Connection, _: int) -> None:
    """Ctrl-C and a scheduler's signals reach the workers too; they must outlive the last save."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        with contextlib.suppress(ValueError, OSError, AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    end_with_parent()

    def end(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
        tell.send(f"A worker process could not send a batch: {kind.__name__}: {error}\n{ADVICE}")
        os._exit(0)  # of any other code torch makes an error wherever the main process is

    # threads send the batches; they would print what goes wrong and go on
    sys.excepthook = end
    Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, _: end(type(error), error, None)
    )


def _end_workers(batches: weakref.ref[Iterator[Batch]]) -> None:
    """Tells the workers to end; a traceback that holds the iterator would keep them alive.

    At the exit of a crashed process this must come before multiprocessing waits for its children,
    which ignore its SIGTERM.
    """
    shut_down = getattr(batches(), "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
    for worker in getattr(batches(), "_workers", ()):
        worker.kill()  # one that hangs
        worker.join(1.0)
