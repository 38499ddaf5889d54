"""The headline numbers of the guide on several kinds of CPU: `make machines` (about an hour on two cores).

Each run is a whole `tiny` guide in a folder of its own, with the instruction sets of torch, oneDNN and MKL limited to
one kind of CPU, and one or two threads. Adds to `results/tiny/machines.json` after every run; a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
from itertools import product
from typing import Any

from rlhflow_utils.guide.stage import PROJECT, provenance, read_json, write_json
from rlhflow_utils.guide.tables import BANDS, machine_rows

TARGET = PROJECT / "results" / "tiny" / "machines.json"
CHAPTERS = ["00", "01", "02", "03", "04", "05", "07", "08", "09", "10"]
CPUS = {  # the names of one kind of CPU: torch's, oneDNN's, MKL's
    "default": ("default", "SSE41", "SSE4_2"),
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
}


def measure(cpu: str, threads: int, python: str) -> dict[str, Any]:
    """One run of the guide; its headline numbers. `python`: an interpreter that uses this environment's packages."""
    torch, onednn, mkl = CPUS[cpu]
    version = subprocess.run(
        [python, "-c", "import platform as p; print(p.python_version())"], capture_output=True, text=True
    )
    version = version.stdout.strip()
    other = f", Python {version}" if version != platform.python_version() else ""
    name = f"{cpu}, {threads} {'thread' if threads == 1 else 'threads'}{other}"
    run_dir = f"runs/machines/{cpu}-{threads}-{version}"
    limits = {
        "ATEN_CPU_CAPABILITY": torch, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
    }  # fmt: skip
    packages = {"PYTHONPATH": sysconfig.get_path("purelib")} if other else {}
    command = [python, "-m", "rlhflow_utils", "run", "--run-dir", run_dir, "--chapters", *CHAPTERS]
    subprocess.run(command, cwd=PROJECT, env={**os.environ, **limits, **packages}, check=True)
    summary = json.loads((PROJECT / run_dir / "summary.json").read_text(encoding="utf-8"))
    made_by = provenance()
    return {
        "name": name, "python": version, "torch": made_by["versions"]["torch"], "commit": made_by["commit"],
        "limits": limits, "metrics": {metric: summary[metric] for metric in BANDS},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpus", nargs="+", choices=CPUS, default=list(CPUS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--python", default=sys.executable, help="another interpreter of the same minor version")
    options = parser.parse_args()
    runs: dict[str, dict[str, Any]] = {}
    for cpu, threads in product(options.cpus, options.threads):
        done = measure(cpu, threads, options.python)
        runs = {run["name"]: run for run in read_json(TARGET)["runs"]} if TARGET.is_file() else {}
        runs[done["name"]] = done
        write_json(TARGET, {"runs": list(runs.values())})
    for row in machine_rows(list(runs.values())):
        print(f"{row['metric']:45} spread {row['spread']:.3f}, band {row['band']}")


if __name__ == "__main__":
    main()
