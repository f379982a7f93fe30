"""Proves nnSSL on a GPU: tests, every trainer, costs; keeps going after failures. See the .sh.

usage: python scripts/gpu_check.py [--minutes M] [--out FOLDER] [--device cuda|cpu]

The most informative comes first: the tests marked `gpu` beside a short run of every trainer in
float16 and bfloat16, on tiny data in parallel processes; then, alone, seconds per step at real
sizes; then resumes; then waiting for data; torch.compile comes last. What has no time left is
reported as not done. The exit code is 1 where something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from on_gpu.data import CONFIGURATIONS, preprocess_tiny

from nnssl.config import find_configs, read_config
from nnssl.estimate.estimate import describe_machine

HERE = Path(__file__).resolve().parent
STOCK = "nnUNetTrainer"
WAITING = (STOCK, "nnSSLFinetuneTrainer", "nnSSLMAETrainer", "nnSSLContrastiveTrainer")


class Check:
    """All that is measured, told as it comes and kept in `results.json`."""

    def __init__(self, out: Path, device: str, minutes: float) -> None:
        self.out, self.device = out, device
        self.began, self.limit = perf_counter(), 60 * minutes
        self.records: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self.processes = max(2, min(12, (os.cpu_count() or 2) - 2))
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.limit - (perf_counter() - self.began)

    def tell(self, record: dict[str, Any]) -> None:
        """Keeps a record and prints its line."""
        with self._lock:
            self.records.append(record)
            clock = f"[{perf_counter() - self.began:5.0f}s]"
            print(clock, describe(record), flush=True)
            if record.get("traceback"):
                print("\n".join(record["traceback"].splitlines()[-6:]), flush=True)
            content = {"machine": self.machine, "records": self.records}
            (self.out / "results.json").write_text(json.dumps(content, indent=1))

    machine: dict[str, Any] = {}  # noqa: RUF012

    def run(self, arguments: Sequence[str], seconds: float, about: dict[str, Any]) -> None:
        """A Python process whose lines of JSON are told; it is ended after `seconds`."""
        if seconds < 10:
            self.tell({**about, "ok": None, "skipped": "no time left"})
            return
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **THREADS}
        name = "_".join(str(v) for v in about.values()).replace(" ", "_")
        log = self.out / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            timer = threading.Timer(seconds, lambda: os.killpg(process.pid, 9))
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("{"):
                        self.tell({**about, **json.loads(line)})
                code = process.wait()
            finally:
                timer.cancel()
        if code < 0 or (code and "pytest" in arguments):
            tail = log.read_text()[-1500:]
            self.tell({**about, "ok": False, "error": f"ended with {code}", "log": tail})

    # ------------------------------------------------------------------ parts

    def try_trainers(
        self, root: Path, names: Sequence[str], parts: Sequence[str], seconds: float
    ) -> list[Any]:
        """A process per trainer and configuration, several at a time, 2D first."""
        jobs = [(name, c) for c in CONFIGURATIONS for name in names]
        end = perf_counter() + seconds
        with ThreadPoolExecutor(self.processes) as pool:
            return list(
                pool.map(
                    lambda job: self.run(
                        ["-m", "on_gpu.trial", str(root), *job, self.device, *parts],
                        min(end - perf_counter(), self.left - 5),
                        {"trainer": job[0], "configuration": job[1], "part": parts[0]},
                    ),
                    jobs,
                )
            )

    def time(self, root: Path, part: str, names: Sequence[str], seconds: float, go: Path) -> None:
        """Timings run alone, in one process; those of steps begin when the file `go` is there."""
        size, both = "real" if self.device == "cuda" else "tiny", ",".join(CONFIGURATIONS)
        told = ["-m", "on_gpu.timings", str(root), self.device, size, f"{seconds - 5:.0f}", str(go)]
        self.run([*told, part, both, *names], seconds, {"part": part})

    def run_tests(self, seconds: float) -> None:
        """The tests marked `gpu`."""
        tests = HERE.parent / "tests"
        files = [str(f) for f in tests.rglob("test_*.py") if "mark.gpu" in f.read_text()]
        if self.device == "cpu" or not files:
            self.tell({"part": "tests", "ok": None, "skipped": "no CUDA device"})
            return
        log = self.out / "gpu_tests.log"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider"]
        command += ["--tb=short", "--durations=5", *files]
        if find_spec("xdist"):
            command += ["-n", str(self.processes), "--dist=load"]
        begin = perf_counter()
        with log.open("w") as out:
            process = subprocess.Popen(command, cwd=HERE.parent, stdout=out, stderr=out)
            try:
                code = process.wait(max(seconds, 10))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # it then tells what has failed so far
                with suppress(subprocess.TimeoutExpired):
                    process.wait(4)
                process.kill()
                code = -9
        text = log.read_text()
        tail = text[-8000:] if code else text[-1500:]
        seconds = round(perf_counter() - begin, 1)
        self.tell({"part": "tests", "ok": code == 0, "seconds": seconds, "log": tail})


THREADS = {
    "OMP_NUM_THREADS": "1",
    "nnUNet_compile": "0",
    "nnUNet_def_n_proc": "2",
    "nnUNet_n_proc_DA": "0",
}


def describe(record: dict[str, Any]) -> str:
    """One line."""
    word = {True: "ok", False: "FAILED", None: "not done"}[record.get("ok")]
    where = f"{record.get('part', ''):9} {record.get('trainer', '')} "
    where += f"{record.get('configuration', '')}"
    kept = {}
    for key, value in record.items():
        if key in ("part", "trainer", "configuration", "ok", "traceback", "losses"):
            continue
        kept[key] = shorten(value)
    if "losses" in record:
        kept["losses"] = shorten([record["losses"][0], record["losses"][-1]])
    return f"{word:8} {where}  " + ", ".join(f"{k} {v}" for k, v in kept.items())


def shorten(value: Any) -> Any:
    """Numbers with four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [shorten(v) for v in value]
    if isinstance(value, dict):
        return {k: shorten(v) for k, v in value.items()}
    return value


def tabulate(records: Sequence[dict[str, Any]]) -> str:
    """A line per trainer and configuration: what passed, and what its step costs."""
    trials = ("float16", "bfloat16", "syncs", "validation", "resume", "compile")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        if "trainer" in record:
            key = record.get("configuration", ""), record["trainer"]
            rows.setdefault(key, {})[record["part"]] = record
    head = ["trainer", *trials, "step s", "x bare", "x stock", "views %", "peak MiB", "bare MiB"]
    lines = [head]
    for (configuration, name), found in sorted(rows.items()):
        line = [f"{configuration[:2]} {name}"]
        for part in trials:
            record = found.get(part, {})
            if part == "syncs" and "count" in record:
                line.append(str(record["count"]))
            elif part == "resume" and "resume_equal" in record:
                line.append("equal" if record["resume_equal"] else "differs")
            else:
                line.append({True: "ok", False: "FAILED", None: "-"}[record.get("ok")])
        cost = found.get("steps", {})
        if "step_s" in cost:
            line += [f"{cost['step_s']:.4f}", f"{cost['x_bare']:.2f}"]
            line += [f"{cost['x_stock_per_voxel']:.2f}"]
            line += [f"{100 * cost['phases'].get('views', 0):.1f}"]
            line += [str(cost["peak_mib"]), str(cost["bare_peak_mib"])]
        lines.append(line + ["-"] * (len(head) - len(line)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(li, widths, strict=True)) for li in lines)


def list_trainers() -> tuple[list[str], list[str]]:
    """Names of all trainers of this package, and of those that are no variant of another."""
    os.environ.update(nnssl_configs="")
    names = list(find_configs())
    return names, [name for name in names if len(read_config(name).layers) == 1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("nnssl_work/gpu_check"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--trainers", nargs="+", help="these alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device; --device cpu is a dry run", file=sys.stderr)
        return 2
    quick = options.minutes < 2  # the tests, and what a step of a few trainers costs
    parts = options.parts or (["tests", "steps"] if quick else list(PARTS))
    names, methods = list_trainers()
    if options.trainers:
        names = methods = options.trainers
    check = Check(options.out.resolve(), options.device, options.minutes)
    check.machine = {**describe_machine(torch.device(options.device)), "host": platform.platform()}
    print(json.dumps(check.machine), flush=True)
    with tempfile.TemporaryDirectory(prefix="nnssl_gpu_", ignore_cleanup_errors=True) as folder:
        run_parts(check, Path(folder), parts, names, methods)
    print(tabulate(check.records), flush=True)
    failed = [r for r in check.records if r.get("ok") is False]
    print(f"{len(check.records)} records, {len(failed)} failed; {check.out / 'results.json'}")
    return bool(failed)


PARTS = ("tests", "start", "steps", "resume", "waiting", "compile")
QUICK = (STOCK, "nnSSLContrastiveTrainer", "nnSSLPixelClusteringTrainer", "nnSSLMAETrainer",
         "nnSSLModelsGenesisTrainer", "nnSSLPCRLv2Trainer")  # fmt: skip


def run_parts(
    check: Check, root: Path, parts: Sequence[str], names: Sequence[str], methods: Sequence[str]
) -> None:
    """The parts in the order of what they tell."""
    (root / "results").mkdir()
    tests = threading.Thread(target=check.run_tests, args=(0.45 * check.left,))
    if "tests" in parts:
        tests.start()
    if {"start", "resume", "compile"} & {*parts}:
        preprocess_tiny(root, check.processes)
        print(f"[{perf_counter() - check.began:5.0f}s] the tiny data set is made", flush=True)
    if "start" in parts:
        checks = ["float16", "bfloat16", "syncs", "validation"]
        check.try_trainers(root, names, checks, 0.4 * check.left)
    if "steps" in parts:
        seconds = check.left - 2 if parts[-1] == "steps" else 0.6 * check.left
        chosen = list(dict.fromkeys([STOCK, *(methods if "start" in parts else QUICK)]))
        steps = threading.Thread(
            target=check.time, args=(root, "steps", chosen, seconds, root / "go")
        )
        steps.start()
        if tests.ident:
            tests.join()
        (root / "go").touch()
        steps.join()
    if tests.ident:
        tests.join()
    if "resume" in parts:
        check.try_trainers(root, names, ["resume"], 0.4 * check.left)
    if "waiting" in parts:
        check.time(root, "waiting", WAITING, 0.5 * check.left, root / "go")
    if "compile" in parts:
        check.try_trainers(root, methods, ["compile"], check.left - 10)


if __name__ == "__main__":
    sys.exit(main())
