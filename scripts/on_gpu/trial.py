"""One trainer on the tiny data set, in a process of its own: starts, steps, resumes, compiles.

usage: python -m on_gpu.trial FOLDER TRAINER CONFIGURATION DEVICE PART [PART ...]

A line of JSON per part. A part that fails leaves its traceback, and the next one is tried.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.common.environment import set_variables
from nnssl.config import read_config
from nnssl.estimate.dry_run import find_trainer_class
from on_gpu.data import NAMES, PLANS
from on_gpu.timings import list_waits

LENGTH = "num_epochs=2 num_iterations_per_epoch=4 num_val_iterations_per_epoch=1"
FINDING = {"finetune": "nnSSLMAETrainer", "semi_supervised": "nnSSLMAETrainer"}
STOPPED_AFTER = 6  # steps of a run that is resumed: inside its second epoch


def main() -> int:
    folder, name, configuration, device, *parts = sys.argv[1:]
    root = Path(folder)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trial = Trial(root, name, configuration, torch.device(device))
    out, failed = sys.stdout, 0
    for part in parts:
        begin = perf_counter()
        record: dict[str, Any] = {"trainer": name, "configuration": configuration, "part": part}
        try:
            with redirect_stdout(sys.stderr):
                record |= {"ok": True, **getattr(trial, f"try_{part}")()}
        except BaseException as error:
            record |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
            record |= {"traceback": traceback.format_exc()}
            failed += 1
        record |= {"seconds": round(perf_counter() - begin, 1), "peak_mib": trial.read_peak()}
        print(json.dumps(record), file=out, flush=True)
    return failed


class Trial:
    """What can be tried of a trainer; each `try_` gives what was found, or raises."""

    def __init__(self, root: Path, name: str, configuration: str, device: torch.device) -> None:
        self.root, self.name, self.configuration, self.device = root, name, configuration, device
        self.kind = read_config(name).kind
        self.preprocessed = root / "preprocessed" / NAMES["tiny"]

    def read_peak(self) -> int | None:
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated(self.device) / 2**20)

    # ------------------------------------------------------------------ parts

    def try_float16(self) -> dict[str, Any]:
        """A whole run in nnU-Net's mixed precision, and its checkpoint in stock's network."""
        found = self._run("float16")
        return found | self._load_stock(self.last)

    def try_bfloat16(self) -> dict[str, Any]:
        """The same in bfloat16; fine-tuning has nnU-Net's precision only."""
        if self.kind != "pretrain":
            return {"skipped": "nnU-Net's own precision"}
        return self._run("bfloat16", "precision=bfloat16")

    def try_syncs(self) -> dict[str, Any]:
        """Where the host waits for the device inside a step: file, line and how often a step."""
        trainer = self._build("syncs")
        self._begin(trainer)
        batches = [next(trainer.dataloader_train) for _ in range(3)]
        for batch in batches[:2]:
            trainer.train_step(batch)
        if self.device.type != "cuda":
            return {"skipped": "no CUDA"}
        places = list_waits(lambda: trainer.train_step(batches[2]))
        return {"count": sum(places.values()), "places": places}

    def try_resume(self) -> dict[str, Any]:
        """A run that was stopped inside an epoch ends with the same bits as one that was not."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            whole = self._run("whole")
            first = self.weights(self.last)
            again = self._run("again")
            repeated = self.weights(self.last)
            stopped = self._build("stopped")
            losses = self._watch(stopped, STOPPED_AFTER)
            try:
                stopped.run_training()
                raise AssertionError("the run was not stopped")
            except SystemExit:
                pass
            resumed = self._build("stopped")
            resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
            losses += self._watch(resumed)
            resumed.run_training()
            losses = [*losses, *self.noted]
        nondeterministic = sorted(
            {str(w.message).split(" does not")[0] for w in caught if "determinis" in str(w.message)}
        )
        second = self.weights(Path(resumed.output_folder))
        found = {
            "repeat_equal": first == repeated,
            "resume_equal": first == second,
            "losses": whole["losses"],
            "losses_repeated": again["losses"],
            "losses_resumed": losses,
            "nondeterministic": nondeterministic,
        }
        if first == repeated and first != second:
            raise AssertionError(f"a resumed run differs: {json.dumps(found)}")
        return found

    def try_compile(self) -> dict[str, Any]:
        """A run with torch.compile: recompilations after its first epoch, and graph breaks."""
        from torch._dynamo.utils import counters

        counters.clear()
        with set_variables({"nnUNet_compile": "1"}):
            trainer = self._build("compiled")
            frames: list[int] = []
            end = trainer.on_epoch_end

            def count() -> None:
                frames.append(counters["stats"].get("unique_graphs", 0))
                end()

            trainer.on_epoch_end = count
            found = self._finish(trainer)
        breaks = {str(k)[:200]: v for k, v in counters["graph_break"].items()}
        return (
            found
            | {"graphs_by_epoch": frames, "graph_breaks": breaks}
            | self._load_stock(self.last)
        )

    def try_validation(self) -> dict[str, Any]:
        """nnU-Net's own final validation of the run in mixed precision."""
        if self.kind == "pretrain":
            return {"skipped": "pre-training predicts no labels"}
        trainer = self._build("float16")
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        trainer.perform_actual_validation()
        return {"summary": (Path(trainer.output_folder) / "validation/summary.json").is_file()}

    # ------------------------------------------------------------------ a run

    def _run(self, label: str, overrides: str = "") -> dict[str, Any]:
        return self._finish(self._build(label, overrides))

    def _finish(self, trainer: Any) -> dict[str, Any]:
        """Trains to the end, and looks at losses, weights and skipped steps."""
        begin = perf_counter()
        losses = self._watch(trainer)
        trainer.run_training()
        self.last = Path(trainer.output_folder)
        if not self.noted:
            raise AssertionError("no step gave a loss")
        if not all(map(_is_finite, self.noted)):
            raise AssertionError(f"losses {self.noted}")
        return {
            "losses": [*losses, *self.noted],
            "skipped_steps": getattr(trainer, "skipped_steps", None),
            "run_seconds": round(perf_counter() - begin, 1),
        }

    def _watch(self, trainer: Any, stop_after: int | None = None) -> list[float]:
        """Notes losses in `self.noted`; stops as a signal would."""
        step, self.noted = trainer.train_step, []
        if stop_after is not None:
            from tests.tiny import stop_after as send

            send(trainer, stop_after)
            step = trainer.train_step
        noted = self.noted

        def noting(batch: Any) -> Any:
            terms = step(batch)
            if terms:
                noted.append(float(terms["loss"]))
            return terms

        trainer.train_step = noting
        return noted if stop_after is not None else []

    def _build(self, label: str, overrides: str = "") -> Any:
        results = self.root / "results" / f"{self.name}_{self.configuration}" / label
        results.mkdir(parents=True, exist_ok=True)
        os.environ |= {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(results),
            "nnssl_configs": "",
        }
        if self.kind in FINDING:
            self._find_weights()
        more = "labels.patients=1" if self.kind == "semi_supervised" else ""
        if self.kind == "pretrain":
            more = "initial_weights=null encoder_lr_scale=1" + (
                "" if label == "float16" else " probe_at_end=false"
            )
        os.environ.update(nnssl_overrides=f"{LENGTH} {more} {overrides}".strip())
        return self._make(self.name)

    def _find_weights(self) -> None:
        """Fine-tuning starts from a short run, which is made once per process."""
        if "nnssl_pretrained_weights" not in os.environ:
            with set_variables({"nnssl_overrides": f"{LENGTH} probe_at_end=false"}):
                source = self._make(FINDING[self.kind])
                source.run_training()
            final = Path(source.output_folder) / "checkpoint_final.pth"
            os.environ.update(nnssl_pretrained_weights=str(final))

    def _make(self, name: str) -> Any:
        read: Callable[[str], Any] = lambda n: json.loads((self.preprocessed / n).read_text())  # noqa: E731
        trainer = find_trainer_class(name)(
            {**read(f"{PLANS}.json"), "continue_training": False},
            self.configuration,
            0,
            read("dataset.json"),
            self.device,
        )
        trainer.logger.plot_progress_png = lambda folder: None
        return trainer

    @staticmethod
    def _begin(trainer: Any) -> None:
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()

    # ------------------------------------------------------------------ checkpoints

    def _load_stock(self, folder: Path) -> dict[str, Any]:
        """The network as nnU-Net builds it takes the weights, and computes on the device."""
        checkpoint = torch.load(folder / "checkpoint_final.pth", "cpu", weights_only=False)
        plans = json.loads((self.preprocessed / f"{PLANS}.json").read_text())
        chosen = plans["configurations"][self.configuration]
        architecture, weights = chosen["architecture"], checkpoint["network_weights"]
        outputs = 3 if self.kind != "pretrain" else _count_outputs(weights)
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            outputs,
            deep_supervision=True,
        )
        network.load_state_dict(weights)
        network.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            answer = network(torch.randn(1, 1, *chosen["patch_size"], device=self.device))[0]
        if not answer.isfinite().all():
            raise AssertionError("the stock network's output is not finite")
        return {"stock_loads": True}

    @staticmethod
    def weights(folder: Path) -> str:
        """Hash of the final weights."""
        stored = torch.load(folder / "checkpoint_final.pth", "cpu", weights_only=False)
        digest = sha256()
        for key, value in sorted(stored["network_weights"].items()):
            digest.update(key.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _count_outputs(weights: dict[str, torch.Tensor]) -> int:
    return next(len(v) for k, v in weights.items() if k.startswith("decoder.seg_layers.0.weight"))


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


if __name__ == "__main__":
    sys.exit(main())
