"""The audit of the filters: which kept and dropped rows a person reads, and what was found.

For every source, 100 kept pairs (drawn by a seed from the kept row ids) and every dropped pair with its reason. The
sheets hold the texts and stay on the machine; ``data_cards/audit.json`` names the rows, ``data_cards/audit.yaml`` says
what the reader found. ::

    python -m rlhflow_utils.data_audit slices --data-root folder --out sheets
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from rlhflow_utils.config import Profile, load_profile
from rlhflow_utils.funnel import Funnel
from rlhflow_utils.manifest import write_json
from rlhflow_utils.pair_table import Measuring, SourcePairs, filter_source
from rlhflow_utils.prompt_data import seeded_order
from rlhflow_utils.settings import SourceSettings
from rlhflow_utils.sources import read_candidates

FOLDER = Path(__file__).resolve().parent.parent / "data_cards"
SEED, KEPT = 0, 100
Sheet = dict[str, Any]


def audit_rows(profile: Profile, root: Path, sheets: Path | None = None) -> Sheet:
    """Draw the audit of every preference source of a profile.

    Args:
        profile: names the sources and the rules' numbers.
        root: folder of the local rows.
        sheets: folder for one ``<source>.jsonl`` each with the texts; None: none are written.

    Returns:
        ``{seed, sources: {name: {kept: [row ids], dropped: {reason: [row ids]}}}}``.
    """
    record: Sheet = {"profile": profile.name, "seed": SEED, "sources": {}}
    for source in profile.data.preference_sources:
        with tempfile.TemporaryDirectory() as folder:
            funnel = Funnel()
            path = Path(folder) / "pairs.arrow"
            pairs = filter_source(source, root, profile.data.filters, Measuring(None), path, funnel)
            kept = draw_kept(pairs.row_ids)
            record["sources"][source.name] = {"kept": kept, "dropped": _by_reason(funnel)}
            if sheets is not None:
                _write_sheet(sheets / f"{source.name}.jsonl", source, root, pairs, kept, funnel)
    return record


def draw_kept(row_ids: list[str]) -> list[str]:
    """At most `KEPT` row ids, drawn by `SEED` and the ids alone, in the order of the file."""
    return [row_ids[i] for i in sorted(seeded_order(row_ids, SEED)[:KEPT])]


def _by_reason(funnel: Funnel) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for _, row_id, reason in funnel.dropped_rows:
        found[reason].append(row_id)
    return dict(sorted(found.items()))


def _write_sheet(
    path: Path, source: SourceSettings, root: Path, pairs: SourcePairs, kept: list[str], funnel: Funnel
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = {row_id: reason for _, row_id, reason in funnel.dropped_rows}
    wanted = dict.fromkeys(kept, "kept") | reasons
    with path.open("w", encoding="utf-8") as file:
        for pair in read_candidates(source, root):
            if pair.row_id in wanted:
                line: dict[str, Any] = {"row_id": pair.row_id, "fate": wanted[pair.row_id], "prompt": pair.prompt}
                line |= {"chosen": pair.chosen, "rejected": pair.rejected, "chosen_score": pair.chosen_score,
                         "rejected_score": pair.rejected_score, "evidence": pair.evidence}  # fmt: skip
                file.write(json.dumps(line, ensure_ascii=True) + "\n")


def main() -> None:
    """Write the sheets and the committed list of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    options = parser.parse_args()
    write_json(FOLDER / "audit.json", audit_rows(load_profile(options.profile), options.data_root, options.out))


if __name__ == "__main__":
    main()
