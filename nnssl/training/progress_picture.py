"""Draws `progress.png`: the terms of a pre-training over its epochs, in panels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from nnssl.common.files import atomic_path

Values = Mapping[str, list[float | None]]  # term -> one number per epoch


def _encoders(key: str) -> tuple[str, ...]:
    """A term of the run's encoder, of a random one and of the reference."""
    return key, f"{key}_random", f"{key}_reference"


# Panels of every run: title -> terms. A validated term `val_x` is drawn beside x; what stands in no
# panel gets one of its own.
LOSS = {"loss": ("train_loss", "val_loss", "collapse_loss")}
PANELS = {
    "probe: Dice of frozen features": _encoders("probe_dice"),
    "probe: error of the axial position": (
        *_encoders("probe_position_error"),
        "probe_position_chance",
    ),
    "probe: effective rank of slices": _encoders("probe_effective_rank"),
    "probe: NMI of clusters and labels": ("probe_nmi_clusters", *_encoders("probe_nmi")),
    "probe: the same, classes balanced": (
        "probe_nmi_balanced_clusters",
        *_encoders("probe_nmi_balanced"),
    ),
    "probe: accuracy where nothing is to be seen": (
        "probe_noise_accuracy",
        "probe_flat_accuracy",
        "probe_accuracy_limit",
    ),
    "learning rate": ("learning_rate",),
    "images per second": ("images_per_second",),
    "seconds per epoch": ("epoch_seconds", "seconds_waited", "probe_seconds"),
    "seconds per step": ("seconds_per_step",),
    "steps skipped so far (loss not finite)": ("skipped_steps",),
}


def draw_progress(values: Values, of_objective: Mapping[str, tuple[str, ...]], file: Path) -> None:
    """Draw the panels of the objective and those of every run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels = find_panels(values, of_objective)
    rows = (len(panels) + 2) // 3
    figure, axes = plt.subplots(rows, 3, figsize=(15, 3.2 * rows), squeeze=False)
    for axis, (title, keys) in zip(axes.flat, panels.items(), strict=False):
        for key in keys:
            marker = "." if _is_sparse(key) else None
            axis.plot(*_find_points(key, values[key]), label=key, marker=marker)
        axis.set(title=title, xlabel="epoch")
        axis.legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    with atomic_path(file) as part:
        figure.savefig(part, dpi=80)
    plt.close(figure)


def _find_points(key: str, column: list[float | None]) -> tuple[list[int], list[float]]:
    """Epochs and values; what is not measured every epoch is joined over the gaps."""
    values = [float("nan") if v is None else v for v in column]
    if not _is_sparse(key):
        return list(range(len(values))), values
    epochs = [epoch for epoch, v in enumerate(column) if v is not None]
    return epochs, [values[epoch] for epoch in epochs]


def _is_sparse(key: str) -> bool:
    return key.startswith("probe_")


def find_panels(
    terms: Collection[str], of_objective: Mapping[str, tuple[str, ...]]
) -> dict[str, list[str]]:
    """Title -> the terms that there are; every term is in one panel."""
    change = tuple(sorted(k for k in terms if k.startswith("weight_change")))
    common = {**PANELS, "relative change of the encoder's weights": change}
    first = {**LOSS, **of_objective, "loss": (*LOSS["loss"], *of_objective.get("loss", ()))}
    grouped = {key for keys in {**first, **common}.values() for key in keys}
    beside = {f"val_{key}" for key in terms}
    alone = {key: (key,) for key in sorted({*terms} - grouped - beside)}
    return {
        title: found
        for title, keys in {**first, **alone, **common}.items()
        if (found := [k for key in keys for k in (key, f"val_{key}") if k in terms])
    }
