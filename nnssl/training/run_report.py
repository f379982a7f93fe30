"""`report.html` of a pre-training: what was seen, what was learned, and the line to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.common.files import atomic_path, read_json
from nnssl.common.page import Picture, ReportTable, render_page
from nnssl.data.pool.settings import MARK
from nnssl.nnunet.checkpoint import own_part, read_checkpoint
from nnssl.nnunet.paths import CONFIG_FILE, FINAL, PROBE_FILE, WEIGHTS, parse_fold_folder
from nnssl.nnunet.runs import FINETUNER, RunLocation
from nnssl.probe.pictures import EMBEDDING, NEIGHBOURS
from nnssl.probe.volumes import NO_STRUCTURE, read_structures
from nnssl.training.epoch_log import describe_seconds

REPORT_FILE, TEMPLATE = "report.html", "run_report.html.j2"
PROGRESS = "progress.png"
PICTURES = "pictures"
ENCODERS = {
    "pretrained": "this run",
    "random": "random weights",
    "reference": "the reference of the settings",
}
COLUMNS = {  # of the probe's table
    "dice": "Dice of frozen features",
    "position_error": "error of the axial position (share of the volume)",
    "position_chance": "the same, guessing",
    "effective_rank": "effective rank",
    "nmi": "NMI of clusters and labels",
}
CAPTIONS = {
    EMBEDDING: "Every point is a slice; near points have similar features. Slices should lie by "
    "their place in the body rather than by patient or dataset.",
    NEIGHBOURS: "Slices (left), and those of other patients whose features are most similar.",
}


@dataclass(frozen=True)
class RunPage:
    """What the page says, in texts."""

    trainer: str
    dataset: str
    fold: str
    summary: str
    sentences: list[str]
    next_text: str
    next_line: str
    tables: list[ReportTable]
    course: list[Picture]
    pictures: list[Picture]
    origin: str
    settings: str


def write_run_report(folder: Path) -> Path:
    """Writes `report.html` into the folder of a finished pre-training, and returns its path.

    Raises:
        ValueError, OSError: the run is not finished, or a file of it cannot be read.
    """
    file = folder / REPORT_FILE
    page = render_page("nnssl.training", TEMPLATE, run=read_page(folder))
    with atomic_path(file) as part:
        part.write_text(page, encoding="utf-8")
    return file


def read_page(folder: Path) -> RunPage:
    """Collects what the files of a finished run tell."""
    checkpoint = read_checkpoint(folder / FINAL, mmap=True)
    own, start = own_part(checkpoint, "pretrain"), checkpoint.get("init_args", {})
    trainer, plans, configuration, fold = parse_fold_folder(folder)
    location = RunLocation(folder.parents[1], plans, configuration, fold)
    own_plans = own.get("plans") or start.get("plans", {})
    probe = read_json(folder / PROBE_FILE) if (folder / PROBE_FILE).is_file() else {}
    text, line = suggest_next(own_plans, start.get("dataset_json", {}), location, folder / FINAL)
    shown = sorted((folder / PICTURES).glob(f"epoch_{own['epoch']:04d}_*.png"))
    shown += [folder / PICTURES / name for name in CAPTIONS]
    versions = ", ".join(f"{name} {number}" for name, number in own.get("versions", {}).items())
    settings = folder / CONFIG_FILE
    return RunPage(
        trainer=trainer,
        dataset=location.results.name,
        fold=fold,
        summary=str(own.get("about", {}).get("summary", "")),
        sentences=_write_sentences(own, probe),
        next_text=text,
        next_line=line,
        tables=[
            _tabulate_seen(own),
            _tabulate_budget(own, own_plans, configuration),
            *([_tabulate_probe(probe)] if probe.get("encoders") else []),
        ],
        course=_read_pictures([folder / PROGRESS]),
        pictures=_read_pictures(shown),
        origin=f"Read from {FINAL}, {PROBE_FILE} and the pictures beside them; {versions}. "
        f"nnssl_runs --report writes this page anew.",
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else "not recorded",
    )


def suggest_next(
    plans: Mapping[str, Any], dataset_json: Mapping[str, Any], location: RunLocation, file: Path
) -> tuple[str, str]:
    """What to do with the weights, as a sentence and a line to type."""
    name, dataset = shlex.quote(str(file)), location.results.name
    pool = plans.get(MARK)
    told = read_structures(dataset_json) if "labels" in dataset_json else {}
    if pool or not {*told.values()} - {NO_STRUCTURE}:
        what = "is a pool" if pool else "has no labels but masks of the foreground"
        return (
            f"{dataset} {what}, so fine-tune these weights on another dataset, which has labels. "
            "This line makes plans for it that take them, and prints the lines that follow:",
            f"nnssl_plan_like {name} -d DATASET",
        )
    return (
        "Fine-tune these weights on the labels of the same dataset and fold (add -device cpu where "
        "there is no GPU):",
        f"{WEIGHTS}={name} {location.make_command(FINETUNER)}",
    )


def _write_sentences(own: Mapping[str, Any], probe: Mapping[str, Any]) -> list[str]:
    """What was learned, for one who did not watch."""
    history, epochs = own.get("history", {}), own.get("epoch", 0)
    seconds = sum(filter(None, history.get("epoch_seconds", [])))
    sentences = [f"{own.get('step')} steps in {epochs} epochs took {describe_seconds(seconds)}."]
    loss, collapse = (_last(history, key) for key in ("train_loss", "collapse_loss"))
    if loss is not None:
        beside = "" if collapse is None else f"; a network that maps all alike has {collapse:.3g}"
        sentences.append(f"The training loss ended at {loss:.3g}{beside}.")
    encoders = probe.get("encoders", {})
    own_dice, random = (encoders.get(n, {}).get("dice") for n in ("pretrained", "random"))
    if own_dice is not None:
        patients = probe.get("settings", {}).get("patients", "a few")
        beside = "" if random is None else f" (random weights: {random:.3f})"
        sentences.append(
            f"A linear classifier on its frozen features, fitted on {patients} labelled patients, "
            f"reaches a Dice of {own_dice:.3f}{beside}."
        )
    return sentences


def _tabulate_seen(own: Mapping[str, Any]) -> ReportTable:
    cases = own.get("cases", {})
    training, held_out = cases.get("train", []), cases.get("left_out", [])
    patients = cases.get("records", {}).get("patient")
    images = cases.get("unlabelled", {})
    collections = images.get("images", {})
    added = sum(len(each.get("identifiers", [])) for each in collections.values())
    left_out = sum(images.get("left_out", {}).values())
    rows = {
        "training cases": str(len(training)),
        "patients of these": str(len(set(patients))) if patients else "not recorded",
        "images without labels that were added": str(added),
        "images without labels that were left out (patients who are evaluated)": str(left_out),
        "validation cases, never learned from": str(len(held_out)),
    }
    note = "Labels were not learned from. Collections: " + (", ".join(collections) or "none") + "."
    return ReportTable("What was seen", _list_rows(rows), note)


def _tabulate_budget(
    own: Mapping[str, Any], plans: Mapping[str, Any], configuration: str
) -> ReportTable:
    budget = own.get("budget", {})
    planned = plans.get("configurations", {}).get(configuration, {})
    sizes = {
        "patch (voxels)": "x".join(map(str, budget.get("patch_size", []))) or "not recorded",
        "raw patches per step": str(budget.get("samples", "not recorded")),
        "views of each": f"{budget['views']:g}" if budget else "not recorded",
        "nnU-Net's plan: patch": "x".join(map(str, planned.get("patch_size", []))) or "inherited",
        "nnU-Net's plan: batch": str(planned.get("batch_size", "inherited")),
    }
    speed = _last(own.get("history", {}), "images_per_second")
    rows = {**sizes, "images per second": "not recorded" if speed is None else f"{speed:.3g}"}
    return ReportTable("Budget of a step, per process", _list_rows(rows))


def _tabulate_probe(probe: Mapping[str, Any]) -> ReportTable:
    encoders: Mapping[str, Mapping[str, Any]] = probe["encoders"]
    rows = [
        {
            "encoder": ENCODERS.get(name, name),
            **{title: _write(found.get(key)) for key, title in COLUMNS.items()},
            **{f"Dice, {n}": _write(v) for n, v in found.get("dice_per_structure", {}).items()},
        }
        for name, found in encoders.items()
    ]
    columns = dict.fromkeys(column for row in rows for column in row)
    even = [{column: row.get(column, "n/a") for column in columns} for row in rows]
    note = " ".join(str(probe.get(key) or "") for key in ("labels", "why_no_labels", "choice"))
    return ReportTable("Probe of the frozen features", even, note.strip())


def _read_pictures(files: Sequence[Path]) -> list[Picture]:
    return [
        Picture(
            file.stem,
            file.stem.replace("_", " "),
            CAPTIONS.get(file.name, ""),
            file.read_bytes(),
            "png",
        )
        for file in files
        if file.is_file()
    ]


def _list_rows(texts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"what": what, "found": text} for what, text in texts.items()]


def _last(history: Mapping[str, Sequence[float | None]], key: str) -> float | None:
    return next((value for value in reversed(history.get(key, [])) if value is not None), None)


def _write(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"
