"""Markdown tables of results: paper / ours / n / interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhflow_utils.config import Profile
from rlhflow_utils.manifest import Run
from rlhflow_utils.provenance import provenance

MISSING = "–"


def markdown_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> str:
    """A Markdown table whose columns are the keys of the first row."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join([":---", *["---:"] * (len(columns) - 1)]) + " |"]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + (f"\n\n*{caption}*" if caption else "")


def cell(value: Any) -> str:
    """One cell: a dash for what is missing; a float with three decimals below 1, two below 10, else one."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:,.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def interval(estimate: Mapping[str, Any] | None) -> str:
    """The confidence interval of an estimate (keys `ci_low` and `ci_high`), or a dash."""
    if not estimate:
        return MISSING
    return f"{cell(float(estimate['ci_low']))} … {cell(float(estimate['ci_high']))}"


def with_interval(estimate: Mapping[str, Any] | None) -> str:
    """An estimate and its interval in one cell, or a dash."""
    return f"{cell(float(estimate['value']))} ({interval(estimate)})" if estimate else MISSING


def world_caption(profile: Profile) -> str:
    """What kind of number stands in a table or figure of this run, and the command that makes it."""
    command = f"make guide PROFILE={profile.name}"
    if profile.world is not None:
        where = f"Profile {profile.name}: measured in the simulated world."
        return f"{where} Evidence about the method there, not about LLaMA-3. {command}"
    return f"Profile {profile.name}, judge: {profile.evaluation.judge}. {command}"


def run_line(run: Run) -> str:
    """Where a chapter's numbers come from: profile, seed, commit, device, main versions, and what its stages took.

    The stages of a run that was repeated keep the time and the commit of the run that made them.
    """
    manifests = [run.folder(name).manifest for name in sorted(run.used)]
    own = [manifest for manifest in manifests if manifest["chapter"] == run.chapter]
    facts = own or manifests or [provenance()]
    commits = sorted({f"{str(m['commit'])[:7]}{' + local changes' if m['dirty'] else ''}" for m in facts})
    versions = facts[0]["versions"]
    packages = [f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions]
    seconds = sum(manifest["wall_seconds"] for manifest in own)
    parts = [f"profile {run.profile.name}, seed {run.profile.seed}", f"commit {', '.join(commits)}", facts[0]["device"]]
    return "; ".join([*parts, *packages, f"stages made in this chapter: {len(own)}, in {seconds:.0f} s"])
