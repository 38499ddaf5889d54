"""The headline numbers, and how far they may differ between two machines (`headlines.yaml`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_GROUPS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BANDS: dict[str, float] = {name: group["band"] for group in _GROUPS.values() for name in group["metrics"]}


def outside_bands(summary: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """A line for each headline number of a run that is further from the published one than its band."""
    return [
        f"{name}: {summary[name]:.3f}, published {published[name]:.3f}, may differ by {band}"
        for name, band in BANDS.items()
        if abs(summary[name] - published[name]) > band
    ]


def machine_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of `results/tiny/machines.json`: headline numbers by machine, and their spread beside the band."""
    columns = {run["name"]: run["metrics"] for run in runs}
    rows = []
    for name, band in BANDS.items():
        values = {machine: metrics[name] for machine, metrics in columns.items()}
        rows.append({"metric": name, **values, "spread": max(values.values()) - min(values.values()), "band": band})
    return rows
