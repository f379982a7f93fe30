"""Times the phases of a training step from outside; the step itself stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import thread_time
from typing import Any

import torch
from torch import nn

PHASES = ("views", "forward", "backward", "optimiser")


class PhaseClock:
    """Seconds spent in each phase of one step.

    On CUDA an interval lies between two events of the stream, so that nothing waits for the device;
    elsewhere it is told in processor seconds of the thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._open: dict[str, Any] = {}
        self._intervals: list[tuple[str, Any, Any]] = []

    def begin(self, phase: str) -> None:
        self._open[phase] = self._now()

    def end(self, phase: str) -> None:
        self._intervals.append((phase, self._open.pop(phase), self._now()))

    def _now(self) -> Any:
        if not self._cuda:
            return thread_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call; on CUDA the device must be synchronised."""
        seconds = dict.fromkeys(PHASES, 0.0)
        for phase, begin, end in self._intervals:
            seconds[phase] += begin.elapsed_time(end) / 1000 if self._cuda else end - begin
        self._intervals.clear()
        return seconds


@contextmanager
def time_phases(trainer: Any, amp: bool = True) -> Iterator[Callable[[], dict[str, float]]]:
    """Hooks a clock to a trainer: nothing of it is left afterwards.

    Views are `trainer.prepare` (pre-training only), forward is the network and, where the trainer
    has one, its loss; backward is `Tensor.backward`; the optimiser is its step, without the
    clipping of the gradient.

    Args:
        trainer: an initialised trainer.
        amp: False switches mixed precision off inside the network and the loss.

    Yields:
        What tells the seconds per phase since its last call; on the CPU processor seconds of the
        training thread.
    """
    clock = PhaseClock(trainer.device)
    modules = [m for m in (trainer.network, trainer.loss) if isinstance(m, nn.Module)]
    with ExitStack() as stack:
        for module in modules:
            for handle in _hooks(module, clock, None if amp else trainer.device.type):
                stack.callback(handle.remove)
        before = trainer.optimizer.register_step_pre_hook(lambda *_: clock.begin("optimiser"))
        after = trainer.optimizer.register_step_post_hook(lambda *_: clock.end("optimiser"))
        stack.callback(before.remove)
        stack.callback(after.remove)
        if hasattr(trainer, "prepare"):
            stack.enter_context(_timed(trainer, "prepare", clock, "views"))
        stack.enter_context(_timed(torch.Tensor, "backward", clock, "backward"))
        yield clock.take


def _hooks(module: nn.Module, clock: PhaseClock, full_precision: str | None) -> Iterator[Any]:
    def begin(*_: Any) -> None:
        if full_precision is not None:  # until the trainer's own autocast ends
            torch.set_autocast_enabled(full_precision, False)
        clock.begin("forward")

    yield module.register_forward_pre_hook(begin)
    yield module.register_forward_hook(lambda *_: clock.end("forward"))


@contextmanager
def _timed(owner: Any, name: str, clock: PhaseClock, phase: str) -> Iterator[None]:
    original, own = getattr(owner, name), name in vars(owner)

    def wrapper(*arguments: Any, **options: Any) -> Any:
        clock.begin(phase)
        try:
            return original(*arguments, **options)
        finally:
            clock.end(phase)

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
