"""What the log says of an epoch: one line, and words for what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

Values = Mapping[str, Sequence[float | None]]  # term -> one number per epoch
# a term ends with -> the word for what it is without learning, and the end of that term's name
BOUNDS = (("accuracy", "chance", "chance"), ("loss", "collapse", "collapse_loss"))
PROBED = {
    "dice": "Dice",
    "position_error": "error of the position",
    "effective_rank": "effective rank",
    "nmi": "NMI of clusters and labels",
}
PATIENCE = 5  # epochs in a row after which something is told, then again at 10, 20, 40, ...
AT_COLLAPSE = 0.005  # share of the collapse value (where that is 0: distance to it)
RISEN = 1.1  # the validation loss, against its lowest
LONG_WAIT = 0.3  # share of an epoch
MANY_SKIPPED = 0.1  # share of the steps of an epoch


def describe_epoch(values: Values, epochs: int, metrics: Sequence[str]) -> str:
    """The line of the last epoch: losses, the method's metrics, speed, and the time left.

    Args:
        values: the terms so far.
        epochs: of the run.
        metrics: terms that say how well the method does.
    """
    last = {key: column[-1] for key, column in values.items() if column}
    bounds = {"validation": "val_loss", "collapse": "collapse_loss"}
    parts = [_describe_term("loss", "train_loss", last, bounds)]
    for metric in metrics:
        beside = {"validation": f"val_{metric}"}
        for kind, word, bound in BOUNDS:
            if metric.endswith(kind):
                beside[word] = f"{metric.removesuffix(kind)}{bound}"
        parts.append(_describe_term(metric.replace("_", " "), metric, last, beside))
    if speed := last.get("images_per_second"):
        parts.append(f"{speed:.3g} images/s" if speed < 100 else f"{speed:.0f} images/s")
    return _join(values, epochs, [part for part in parts if part])


def describe_time(values: Values, epochs: int) -> str:
    """That line with nothing but the time of the epoch, and the time left."""
    return _join(values, epochs, [])


def _join(values: Values, epochs: int, parts: Sequence[str]) -> str:
    seconds = [value for value in values.get("epoch_seconds", ()) if value is not None]
    done = len(values.get("epoch_seconds", ()))
    texts = list(parts)
    if seconds:
        waiting = _find_waiting(values)[-1]
        waited = "" if waiting is None else f" ({waiting:.0%} of it waiting for data)"
        texts.append(f"{describe_seconds(seconds[-1])}{waited}")
        if left := epochs - done:
            texts.append(f"{describe_seconds(left * median(seconds[-PATIENCE:]))} left")
    return f"Epoch {done} of {epochs}: {', '.join(texts)}"


def describe_probe(terms: Mapping[str, float]) -> str:
    """One line of what the probe of frozen features found; every term is in `history.csv`."""
    parts = []
    for key, name in PROBED.items():
        others = {other: f"probe_{key}_{other}" for other in ("random", "reference", "clusters")}
        others["chance"] = f"probe_{key.removesuffix('_error')}_chance"
        parts.append(_describe_term(name, f"probe_{key}", terms, others))
    return f"Probe of the frozen features: {', '.join(part for part in parts if part)}"


def _describe_term(
    name: str, key: str, last: Mapping[str, float | None], beside: Mapping[str, str]
) -> str:
    """`loss 2.741 (validation 2.803, collapse 3.611)`; empty where there is no such term."""
    value = last.get(key)
    if value is None:
        return ""
    found = {word: last.get(other) for word, other in beside.items()}
    told = [f"{word} {number:.4g}" for word, number in found.items() if number is not None]
    return f"{name} {value:.4g}" + (f" ({', '.join(told)})" if told else "")


def describe_seconds(seconds: float) -> str:
    """`38 s`, `12 min`, `3 h 20 min`, `2 d 4 h`: two parts at most."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes_over = divmod(minutes, 60)
    days, hours_over = divmod(hours, 24)
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours_over} h" if days else f"{hours} h {minutes_over:02d} min"


# ------------------------------------------------------------------ what looks wrong


def find_troubles(values: Values, steps: int, overfits: bool = True) -> Iterator[str]:
    """What looks wrong after the last epoch, and what to do about it.

    Args:
        values: the terms so far.
        steps: of an epoch.
        overfits: whether a rising validation loss is a bad sign.
    """
    if _is_due(count := _count_last(_find_collapsed(values))):
        value = values["collapse_loss"][-1]
        yield (
            f"loss at its collapse value ({value:.4g}) for {count} epochs: so far the network's "
            "answer does not depend on what it sees. Some tasks need thousands of steps to leave "
            "it; else try a smaller training.initial_lr, a longer training.warmup_epochs, or "
            "another trainer (nnssl_trainers)"
        )
    if overfits and _is_due(count := _count_risen(values)) and count > PATIENCE:
        yield (
            f"validation loss above {RISEN:.2g} times its lowest, of {count} epochs ago, while the "
            "training loss has fallen: the task is learned by heart. More images "
            "(nnssl_preprocess_unlabelled) or fewer training.num_epochs may do better"
        )
    waiting = _find_waiting(values)
    if _is_due(count := _count_last([w is not None and w > LONG_WAIT for w in waiting])):
        yield (
            f"{waiting[-1]:.0%} of the time is spent waiting for data, for {count} epochs: give it "
            "more background workers (the environment variable nnUNet_n_proc_DA), or put "
            "nnUNet_preprocessed on a faster disk"
        )
    skipped = _count_skipped(values)
    if skipped > MANY_SKIPPED * steps:
        yield (
            f"{skipped:.0f} of {steps} steps were skipped: loss or gradient were not finite, or "
            "the batch held nothing to learn from. Lower training.initial_lr, set "
            "training.precision: float32, or look for odd values in the images"
        )


def _find_collapsed(values: Values) -> list[bool]:
    pairs = zip(values.get("train_loss", ()), values.get("collapse_loss", ()), strict=False)
    return [None not in pair and _is_collapsed(*pair) for pair in pairs]  # type: ignore[arg-type]


def _is_collapsed(loss: float, collapse: float) -> bool:
    """Not below it; or, where that is the lowest value of all (BYOL: 0), at it."""
    return loss <= AT_COLLAPSE if collapse == 0 else loss >= collapse - AT_COLLAPSE * abs(collapse)


def _count_risen(values: Values) -> int:
    """Epochs since the lowest validation loss, where it has risen and the training loss fell."""
    pairs = zip(values.get("train_loss", ()), values.get("val_loss", ()), strict=False)
    known = [(train, val) for train, val in pairs if train is not None and val is not None]
    if not known:
        return 0
    best = min(range(len(known)), key=lambda epoch: known[epoch][1])
    (train, val), (train_then, lowest) = known[-1], known[best]
    risen = val > lowest + (RISEN - 1) * abs(lowest) and train < train_then
    return len(known) - 1 - best if risen else 0


def _find_waiting(values: Values) -> list[float | None]:
    """Share of each epoch that was spent waiting for data."""
    whole = values.get("epoch_seconds", ())
    waited = values.get("seconds_waited", [None] * len(whole))
    return [w / s if w is not None and s else None for w, s in zip(waited, whole, strict=False)]


def _count_skipped(values: Values) -> float:
    *before, last = [0.0, *(value or 0.0 for value in values.get("skipped_steps", ()))]
    return last - before[-1] if before else 0.0


def _count_last(flags: Sequence[bool]) -> int:
    """How many at the end are true."""
    return next((i for i, flag in enumerate(reversed(flags)) if not flag), len(flags))


def _is_due(count: int) -> bool:
    rounds, rest = divmod(count, PATIENCE)
    return rest == 0 and rounds > 0 and rounds & (rounds - 1) == 0
