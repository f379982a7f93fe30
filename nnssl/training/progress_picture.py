"""Draws `progress.png`: the terms of a pre-training over its epochs, in panels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nnssl.common.drawing import COLOURS, STYLE, escape_math, make_panels, save_figure

Values = Mapping[str, list[float | None]]  # term -> one number per epoch
FEW = 30  # epochs of which every one gets a dot
SHARE = "share (0 to 1)"


class Plot(NamedTuple):
    """What a panel shows: terms, and what stands at its upright axis (empty: the title)."""

    terms: tuple[str, ...]
    unit: str = ""


def _encoders(key: str) -> tuple[str, ...]:
    """A term of the run's encoder, of a random one and of the reference."""
    return key, f"{key}_random", f"{key}_reference"


# Panels of every run. A validated term `val_x` is drawn beside x; what stands in no panel gets one
# of its own.
LOSS = ("train_loss", "val_loss", "collapse_loss")
PROBES = {
    "probe: Dice of frozen features": Plot(_encoders("probe_dice"), "Dice (0 to 1)"),
    "probe: error of the axial position": Plot(
        (*_encoders("probe_position_error"), "probe_position_chance"), "share of the volume"
    ),
    "probe: effective rank of slices": Plot(_encoders("probe_effective_rank"), "dimensions"),
    "probe: agreement of clusters and labels": Plot(
        ("probe_nmi_clusters", *_encoders("probe_nmi")), "NMI (0 to 1)"
    ),
    "probe: the same, classes balanced": Plot(
        ("probe_nmi_balanced_clusters", *_encoders("probe_nmi_balanced")), "NMI (0 to 1)"
    ),
    "probe: accuracy where nothing is to be seen": Plot(
        ("probe_noise_accuracy", "probe_flat_accuracy", "probe_accuracy_limit"), SHARE
    ),
}
COURSE = {
    "learning rate": Plot(("learning_rate",)),
    "speed": Plot(("images_per_second",), "images per second"),
    "time of an epoch": Plot(("epoch_seconds", "seconds_waited", "probe_seconds"), "seconds"),
    "time of a step": Plot(("seconds_per_step",), "seconds"),
    "steps skipped so far (loss not finite)": Plot(("skipped_steps",), "steps"),
}
CHANGE = "change of the encoder's weights"
GROUPS = {  # terms of more than one objective
    "accuracy": Plot(("accuracy", "chance"), "share of right answers"),
    "use of the clusters": Plot(
        ("cluster_entropy", "target_entropy", "prediction_entropy", "code_entropy"),
        "entropy (1: all alike)",
    ),
    "size of the clusters": Plot(("largest_cluster", "smallest_cluster"), "share of the places"),
    "clusters that change": Plot(("cluster_change",), "share of the places"),
    "voxels with a target": Plot(("known_share",), SHARE),
    "spread of the embedding": Plot(("embedding_std",), "standard deviation (0: collapsed)"),
    "effective rank of the embedding": Plot(("effective_rank",), "dimensions"),
}
WORDS = {
    "train_loss": "training",
    "val_loss": "validation",
    "collapse_loss": "if all were alike (collapse)",
    "mean_image_loss": "answering the mean image",
    "identity_loss": "answering the input",
    "mismatched_loss": "views of other images",
    "chance": "guessing",
    "probe_position_chance": "guessing",
    "epoch_seconds": "all",
    "seconds_waited": "of it waiting for data",
    "probe_seconds": "the probe",
    "probe_nmi_clusters": "the task's own clusters",
    "probe_nmi_balanced_clusters": "the task's own clusters",
    "probe_noise_accuracy": "noise",
    "probe_flat_accuracy": "flat images",
    "probe_accuracy_limit": "limit",
}


def draw_progress(
    values: Values, of_objective: Mapping[str, tuple[str, ...]], file: Path, heading: str = ""
) -> None:
    """Draw the panels of the objective and those of every run."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        save_figure(make_figure(values, of_objective, heading), file)


def make_figure(values: Values, of_objective: Mapping[str, tuple[str, ...]], heading: str) -> Any:
    """The figure of `draw_progress`; a panel in which nothing was measured is left out."""
    from matplotlib.ticker import MaxNLocator

    told = {key: column for key, column in values.items() if any(v is not None for v in column)}
    if not any(told.get("skipped_steps", ())):
        told.pop("skipped_steps", None)
    units = {title: panel.unit for title, panel in {**GROUPS, **PROBES, **COURSE}.items()}
    units[CHANGE] = "share of the first weights' length"
    panels = find_panels(told, of_objective)
    epochs = max(map(len, told.values()), default=1)
    figure, axes = make_panels(max(1, len(panels)), 4.6, 2.9, most=3)
    for axis, (title, keys) in zip(axes, panels.items(), strict=False):
        for number, key in enumerate(keys):
            _draw_term(axis, key, told[key], COLOURS[number % len(COLOURS)])
        axis.set_title(escape_math(title), loc="left", y=1.0)  # y: matplotlib looks for none
        axis.set(xlabel="epochs done", ylabel=escape_math(units.get(title) or title))
        axis.set_xlim(0, epochs + max(0.5, 0.02 * epochs))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.legend(fontsize=8, title="last value", title_fontsize=8, alignment="left")
    figure.suptitle(escape_math(heading), x=0.01, ha="left", fontsize=13)
    return figure


def _draw_term(axis: Any, key: str, column: list[float | None], colour: str) -> None:
    """A line over epochs; what is not measured every epoch is joined over the gaps."""
    found = [(epoch, value) for epoch, value in enumerate(column, 1) if value is not None]
    label = f"{_name(key)}: {found[-1][1]:.3g}"
    marker = "o" if len(found) <= FEW else None
    axis.plot(*zip(*found, strict=True), color=colour, label=label, marker=marker, ms=3.5)


def _name(key: str) -> str:
    """A term in words."""
    if key in WORDS:
        return WORDS[key]
    if key.startswith("probe_"):
        encoder = key.rpartition("_")[2]
        return {"random": "random weights", "reference": "reference"}.get(encoder, "this run")
    if key.startswith("weight_change_stage_"):
        return f"stage {key.rpartition('_')[2]}"
    name, of = (key[4:], ", validation") if key.startswith("val_") else (key, "")
    return escape_math(name.replace("_", " ") + of)


def find_panels(
    terms: Collection[str], of_objective: Mapping[str, tuple[str, ...]]
) -> dict[str, list[str]]:
    """Title -> the terms that there are; every term is in one panel."""
    change = tuple(sorted(k for k in terms if k.startswith("weight_change")))
    own = {**of_objective, "loss": (*LOSS, *of_objective.get("loss", ()))}
    taken = {key for keys in own.values() for key in keys}
    first = {"loss": own["loss"], **own}
    for title, panel in GROUPS.items():
        first.setdefault(title, tuple(key for key in panel.terms if key not in taken))
    last = {title: panel.terms for title, panel in {**PROBES, **COURSE}.items()} | {CHANGE: change}
    grouped = {key for keys in {**first, **last}.values() for key in keys}
    beside = {f"val_{key}" for key in terms}
    alone = {key.replace("_", " "): (key,) for key in sorted({*terms} - grouped - beside)}
    return {
        title: found
        for title, keys in {**first, **alone, **last}.items()
        if (found := [k for key in keys for k in (key, f"val_{key}") if k in terms])
    }
