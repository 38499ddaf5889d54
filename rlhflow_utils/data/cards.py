"""Hugging Face dataset cards, one per source and mixture, rendered from facts and counts.

``data_cards/facts.yaml`` holds what is known about each source, ``data_cards/counts.json`` what a run counted. To count
anew and render the cards::

    python -m rlhflow_utils.data.cards runs/slices/01_preference_data
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhflow_utils.data import filters
from rlhflow_utils.data.mixtures import Funnel, Measuring, SourcePairs, filter_source, seeded_order
from rlhflow_utils.data.overview import PAPER_TABLE1, side_by_side
from rlhflow_utils.data.sources import read_candidates
from rlhflow_utils.guide.profile import PROFILES_FOLDER, Profile, load_profile, profile_path
from rlhflow_utils.guide.settings import HubSettings, SourceSettings
from rlhflow_utils.guide.stage import StageFolder, write_json
from rlhflow_utils.guide.tables import cell, markdown_table

Counts = Mapping[str, Any]
SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
STANDARD_ROW = (
    "Rows are in the standard preference format: `prompt` (turns, ending with the user), `chosen`, `rejected` (the "
    "answer as one assistant turn), `chosen_score`, `rejected_score` (native scores or null), `source`, `row_id`."
)
OTHER_REASONS = {
    "too_long": filters.is_too_long.__doc__ or "",
    "duplicate_pair": "The prompt and both answers were kept before. Reconstructed.",
    "swapped_duplicate": "The pair was kept before with the opposite label. Reconstructed.",
    "too_many_pairs": "The prompt has its number of pairs. Sourced for SHP (at most 5, its card).",
    "evaluation_overlap": "The prompt opens like an evaluation prompt. Reconstructed.",
    "ngram_overlap": "The prompt shares long runs of words with an evaluation prompt. Reconstructed.",
}


def header(title: str, licences: Sequence[str], pairs: int | None) -> str:
    """YAML front matter, as the hub reads it; `pairs` sets the size category."""
    different = sorted(set(licences))
    licence = different[0] if len(different) == 1 else "other"
    front: dict[str, Any] = {"pretty_name": title, "language": ["en"], "license": licence}
    if licence == "other":  # the hub asks for a name beside "other"
        front["license_name"] = "mixed" if len(different) > 1 else "see-the-source"
    front["tags"] = ["preference", "rlhf", "reward-model"]
    front["size_categories"] = [_size(pairs)] if pairs is not None else ["unknown"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n"


def _size(pairs: int) -> str:
    return next(label for limit, label in SIZES if pairs < limit)


def hub_link(hub_id: str | None) -> str:
    """A link to a dataset, or the words for none."""
    return f"[{hub_id}](https://huggingface.co/datasets/{hub_id})" if hub_id else "local files"


def revision_text(hub_id: str | None, revision: str | None) -> str:
    """The commit that is read, or how to pin one."""
    if hub_id is None:
        return "no hub revision"
    return f"revision: `{revision}`" if revision else "revision: not pinned (`python -m rlhflow_utils pin` writes it)"


def rule_text(reason: str) -> tuple[str, str]:
    """What a drop reason means, and its basis (sourced, reconstructed), from the rule's docstring."""
    document = OTHER_REASONS.get(reason) or (filters.RULES[reason].__doc__ or "")
    text = " ".join(document.split())
    meaning = text.removeprefix("Reason ``too_long``: ").split(". ")[0].removesuffix(".")
    words = [word for word in ("sourced", "reconstructed") if word in text.lower()]
    return meaning, " in part, else ".join(words)


def rules_section(
    counts: Counts | None, where: str = "on the rows at hand (profile `slices`), not on the whole set"
) -> list[str]:
    """Every rule in its order, with its basis, and the pairs that it took from the rows at hand."""
    reasons = [*filters.RULES, *OTHER_REASONS]
    lines = ["## Filters", ""]
    if counts is None:
        lines += [
            "No run over these rows has been recorded here yet.",
            "",
            "| reason | meaning | basis |",
            "|---|---|---|",
        ]
    else:
        lines += [
            f"Counted {where}: {counts['native_rows']:,} native rows gave {counts['rows_in']:,} candidate pairs, of "
            f"which {counts['rows_out']:,} were kept. The first rule that a pair fails takes it.", "",
            "| reason | pairs dropped | meaning | basis |", "|---|---:|---|---|",
        ]  # fmt: skip
    for reason in reasons:
        meaning, basis = rule_text(reason)
        number = "" if counts is None else f" {counts['dropped'].get(reason, 0):,} |"
        lines.append(f"| `{reason}` |{number} {meaning} | {basis} |")
    return [*lines, ""]


def summed(counts: Mapping[str, Counts]) -> Counts | None:
    """The counts of several sources together; None where there is none."""
    if not counts:
        return None
    dropped: Counter[str] = sum((Counter(row["dropped"]) for row in counts.values()), Counter())
    totals = {key: sum(row[key] for row in counts.values()) for key in ("native_rows", "rows_in", "rows_out")}
    return totals | {"dropped": dict(dropped)}


def lengths_section(name: str, counts: Counts | None, difference: str | None) -> list[str]:
    """Table 1, the paper's line and ours, and why they differ."""
    paper = PAPER_TABLE1.get(name)
    ours = counts["lengths"] if counts else None
    if not paper and not ours:
        return []
    unit = f"ours in {ours['unit']}; the paper's unit is not stated" if ours else "the paper does not state the unit"
    lines = ["## Size and lengths", "", f"Mean lengths: {unit}. Measured before held-out prompts are taken out.", ""]
    lines += ["| | prompts | prompt | chosen | rejected | pairs |", "|---|---:|---:|---:|---:|---:|"]
    if paper:
        lines.append(f"| paper, Table 1 | {paper[0]:,} | {paper[1]} | {paper[2]} | {paper[3]} | {paper[6]:,} |")
    if ours:
        lengths = " | ".join(str(ours[f"{part}_length"]) for part in ("prompt", "chosen", "rejected"))
        lines.append(f"| rows at hand | {ours['prompts']:,} | {lengths} | {ours['pairs']:,} |")
        lines += ["", f"The chosen answer has more characters in {ours['length_agreement']:.1%} of the pairs kept."]
    if difference:
        lines += ["", f"On the paper's count: {difference}."]
    return [*lines, ""]


def audit_section(audit: Mapping[str, Any] | None) -> list[str]:
    """What a reader found in the rows."""
    if audit is None:
        return []
    drawn = f"{audit['kept']} kept pairs drawn by a seed and all {audit['dropped']} dropped ones were gone through"
    lines = ["## Audit", "", f"{drawn} (`audit.json` names the rows).", ""]
    lines += [f"- {' '.join(finding.split())}" for finding in audit["findings"]]
    if audit["doubtful"]:
        lines.append(f"- Kept but doubtful: {', '.join(f'`{row}`' for row in audit['doubtful'])}.")
    if audit["lost"]:
        lines.append(f"- Dropped although sound: {', '.join(f'`{row}`' for row in audit['lost'])}.")
    return [*lines, ""]


def members_table(
    members: Sequence[str], sources: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Counts]
) -> list[str]:
    """The sources of a mixture: licence, the paper's pairs, and the pairs kept of the rows at hand."""
    lines = ["| source | licence | pairs in the paper's Table 1 | kept of the rows at hand |", "|---|---|---:|---:|"]
    for member in members:
        pairs = f"{PAPER_TABLE1[member][6]:,}" if member in PAPER_TABLE1 else "not stated"
        kept = (
            f"{counts[member]['rows_out']:,} of {counts[member]['rows_in']:,}" if member in counts else "none at hand"
        )
        lines.append(f"| [{member}]({sources[member]['file']}.md) | {sources[member]['licence']} | {pairs} | {kept} |")
    return [*lines, ""]


def run_members(
    made: Mapping[str, Any], members: Mapping[str, Counts], sources: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The sources of a finished mixture: where each is from, its licence, candidate pairs, and pairs in the mixture."""
    lines = ["| source | read from | licence | candidate pairs | pairs here |", "|---|---|---|---:|---:|"]
    for name, row in members.items():
        facts = sources.get(name, {})
        link, licence = hub_link(facts.get("hub_id")), facts.get("licence", "unknown")
        lines.append(f"| {name} | {link} | {licence} | {row['rows_in']:,} | {made['sources'][name]:,} |")
    return [*lines, ""]


def provenance_section(manifest: Mapping[str, Any]) -> list[str]:
    """Which run made the rows; nothing where there is no manifest."""
    if not manifest:
        return []
    known = {key: manifest.get(key) for key in ("profile", "stage", "key", "seed", "commit")}
    return ["## Provenance", "", ", ".join(f"{key} `{value}`" for key, value in known.items()) + ".", ""]


FOLDER = Path(__file__).resolve().parents[2] / "data_cards"
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


def audit() -> None:
    """Write the sheets and the committed list of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    options = parser.parse_args()
    write_json(FOLDER / "audit.json", audit_rows(load_profile(options.profile), options.data_root, options.out))


Facts = Mapping[str, Any]


def load_facts(folder: Path = FOLDER) -> dict[str, dict[str, Facts]]:
    """``{"sources": {name: facts}, "mixtures": {name: facts}}``."""
    facts: dict[str, dict[str, Facts]] = yaml.safe_load((folder / "facts.yaml").read_text(encoding="utf-8"))
    return facts


def load_counts(folder: Path = FOLDER) -> dict[str, Any]:
    """What `collect_counts` found in the committed run."""
    counts: dict[str, Any] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return counts


def collect_counts(stage_folder: Path) -> dict[str, Any]:
    """``{source: {native_rows, rows_in, dropped, rows_out, lengths}}`` of a finished chapter 01."""
    pairs = json.loads((stage_folder / "funnel.json").read_text(encoding="utf-8"))["pairs"]
    table = json.loads((stage_folder / "table1.json").read_text(encoding="utf-8"))
    wanted = ("native_rows", "rows_in", "dropped", "rows_out")
    counts = {source: {key: row[key] for key in wanted} for source, row in pairs.items()}
    for row in table:
        keep = {k: v for k, v in row.items() if k not in ("source", "paper", "completion", "annotator")}
        counts[row["source"]]["lengths"] = keep
    return counts


def load_audit(folder: Path = FOLDER) -> dict[str, Any]:
    """Source -> what a reader found in its rows (``audit.yaml``) and how many rows that were (``audit.json``)."""
    findings = yaml.safe_load((folder / "audit.yaml").read_text(encoding="utf-8"))
    rows = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["sources"]
    return {
        name: found | {"kept": len(rows[name]["kept"]), "dropped": sum(map(len, rows[name]["dropped"].values()))}
        for name, found in findings.items()
    }


def pinned_revisions(profile: str = "llama3-8b") -> dict[str, str | None]:
    """Hub id -> revision of the data sources of a profile; None: not pinned."""
    data = load_profile(profile).data
    sources = [*data.preference_sources, *data.sft_sources, *data.prompt_sources]
    sources += [data.offline_source] if data.offline_source else []
    return {source.hub_id: source.revision for source in sources if source.hub_id}


def render_source_card(
    name: str, facts: Facts, counts: Counts | None, audit: Facts | None = None, revision: str | None = None
) -> str:
    """The card of one source.

    Args:
        name: of the source.
        facts: its entry of ``facts.yaml``.
        counts: its entry of ``counts.json``; None where no run has counted it.
        audit: its entry of `load_audit`; None where no rows were at hand to read.
        revision: the hub commit that the profiles read; None: not pinned.
    """
    paper = PAPER_TABLE1.get(name)
    pairs = counts["rows_out"] if counts else paper[6] if paper else None
    parts = [
        header(f"{name}, filtered preference pairs", [facts["licence"]], pairs),
        f"# {name}", "", facts["origin"], "",
        f"- Read from: {hub_link(facts['hub_id'])}; "
        f"{revision_text(facts['hub_id'], revision)}",
        f"- Licence: {facts['licence']}",
        f"- Native schema: {facts['fields']}; converter: `{facts['schema']}`",
        f"- Pairs: {facts['pairs']}", "",
        STANDARD_ROW, "",
        *rules_section(counts), *lengths_section(name, counts, facts.get("difference")),
        *audit_section(audit),
        "## Known problems", "", *([f"- {problem}" for problem in facts["problems"]] or ["None known."]), "",
    ]  # fmt: skip
    return "\n".join(parts)


def render_mixture_card(name: str, facts: Facts, sources: Mapping[str, Facts], counts: Mapping[str, Counts]) -> str:
    """The card of a mixture: its sources, the paper's counts, and what the rows at hand gave."""
    members = facts["sources"]
    known = [PAPER_TABLE1[member][6] for member in members if member in PAPER_TABLE1]
    at_hand = {member: counts[member] for member in members if member in counts}
    parts = [
        header(f"{name}, preference mixture", [sources[m]["licence"] for m in members], sum(known)),
        f"# {name}", "", facts["text"], "",
        *members_table(members, sources, counts),
        f"Together {sum(known):,} pairs in Table 1.", "",
        STANDARD_ROW, "",
        "Added to the paper's recipe: held-out pairs are split off by a hash of the first user turn, and training "
        "pairs that repeat an evaluation prompt are dropped (`evaluation_overlap`, `ngram_overlap`).", "",
        *rules_section(summed(at_hand)),
        "## Known problems", "",
        *[f"- {member}: {problem}" for member in members for problem in sources[member]["problems"]], "",
        "Each licence above applies to its rows. `unknown` means that none was established here: look it up first.", "",
    ]  # fmt: skip
    return "\n".join(parts)


def render_run_card(
    mixture: str,
    sources: Mapping[str, Facts],
    funnel: Mapping[str, Any],
    table: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> str:
    """The card that goes to the hub with a finished mixture.

    Args:
        mixture: name of the mixture.
        sources: facts of the sources (``facts.yaml``); a source without an entry has the licence ``unknown``.
        funnel: the run's ``funnel.json``.
        table: the run's ``table1.json``.
        provenance: the stage's manifest; empty where the command `data` made the rows.
    """
    made, pairs = funnel["mixtures"][mixture], funnel["pairs"]
    members = {name: pairs[name] for name in made["sources"]}
    licences = [sources.get(name, {}).get("licence", "unknown") for name in members]
    lengths = [row for row in table if row["source"] in members]
    parts = [
        header(f"{mixture}, preference mixture", licences, made["rows_out"]),
        f"# {mixture}", "",
        f"{made['rows_out']:,} preference pairs to train reward models (recipe of arXiv 2405.07863).",
        "", *run_members(made, members, sources), STANDARD_ROW, "",
        *rules_section(summed(members), "in this run"),
        "## Lengths", "", markdown_table(side_by_side(lengths)), "", *provenance_section(provenance),
    ]  # fmt: skip
    return "\n".join(parts)


def render_published_card(name: str, facts: Facts, sets: Sequence[Mapping[str, str | None]]) -> str:
    """The card of sets (`hub_id`, `revision`) that the paper's authors published and this guide reads as they are."""
    links = [f"- {hub_link(found['hub_id'])}; {revision_text(found['hub_id'], found['revision'])}" for found in sets]
    parts = [
        header(f"{name}, {facts['kind']}", [facts["licence"]], None),
        f"# {name}", "", facts["origin"], "", *links,
        f"- Licence: {facts['licence']}", f"- Native schema: {facts['fields']}; converter: `{facts['schema']}`",
        f"- Use: {facts['use']}", "",
        "No rows of it are at hand here, so nothing is counted.", "",
        "## Known problems", "", *[f"- {problem}" for problem in facts["problems"]], "",
    ]  # fmt: skip
    return "\n".join(parts)


def render_all(folder: Path = FOLDER) -> dict[str, str]:
    """File name -> card, for every source, mixture and published set in the facts."""
    facts, counts, audit, revisions = load_facts(folder), load_counts(folder), load_audit(folder), pinned_revisions()
    cards = {
        f"{fact['file']}.md": render_source_card(
            name, fact, counts.get(name), audit.get(name), revisions.get(fact["hub_id"])
        )
        for name, fact in facts["sources"].items()
    }
    cards |= {
        f"{name}.md": render_mixture_card(name, fact, facts["sources"], counts)
        for name, fact in facts["mixtures"].items()
    }
    standard = [fact["standard"] for fact in facts["sources"].values() if "standard" in fact]
    return cards | {
        f"{fact['file']}.md": render_published_card(name, fact, fact["sets"] or standard)
        for name, fact in facts["published"].items()
    }


def write_cards(folder: Path = FOLDER) -> list[Path]:
    """Render every card into the folder."""
    paths = []
    for name, card in render_all(folder).items():
        (folder / name).write_text(card, encoding="utf-8")
        paths.append(folder / name)
    return paths


def model_card(name: str, base: str, stage: StageFolder, metrics: dict[str, Any], caption: str) -> str:
    """Markdown model card with YAML front matter: recipe, provenance and measured metrics.

    Args:
        name: of the model.
        base: what it was trained from.
        stage: that trained it.
        metrics: name -> value.
        caption: what the metrics are evidence of.
    """
    from huggingface_hub import ModelCard, ModelCardData

    manifest = stage.manifest
    data = ModelCardData(library_name="transformers", tags=["trl", "dpo", "rlhf"], pipeline_tag="text-generation")
    measured = "\n".join(f"| {key} | {cell(value)} |" for key, value in sorted(metrics.items()))
    text = f"""---
{data.to_yaml()}
---
# {name}

Trained with the RLHF Workflow guidebook (recipe of arXiv 2405.07863), profile `{manifest["profile"]}`, from {base}.

| metric | value |
|:--|--:|
{measured}

{caption}

Stage `{manifest["stage"]}`, key `{manifest["key"]}`, seed {manifest["seed"]}, commit `{manifest["commit"]}`,
{manifest["device"]}.
"""
    return str(ModelCard(text))


def push_model(stage: StageFolder, name: str, card: str, settings: HubSettings) -> str:
    """Upload `<stage>/model` and its card; returns the repository's address.

    Raises:
        ValueError: `hub.namespace` is missing.
        RuntimeError: the hub cannot be reached, or refuses (no token, no right to the namespace).
    """
    if not settings.namespace:
        raise ValueError("hub.push needs hub.namespace: your user or organisation on the hub")
    folder = stage.path / "model"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return _upload(folder, f"{settings.namespace}/{name}", "model", settings.private)


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the network, the login or the repository fails.

    A name that cannot be resolved surfaces as its HTTP library's own error, the base of `HfHubHTTPError`.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    return (OSError, LocalTokenNotFoundError, *HfHubHTTPError.__bases__)


def _upload(folder: Path, repository: str, kind: str, is_private: bool) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type=kind, private=is_private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, repo_type=kind, folder_path=folder))
    except hub_errors() as error:
        reason = " ".join(str(error).split())[:200]
        raise RuntimeError(
            f"pushing {repository} failed: {type(error).__name__}: {reason}; go online, and log in with `hf auth login`"
        ) from error


def export_mixture(data: Path, mixture: str, card: str, target: Path, rows_per_file: int = 200_000) -> Path:
    """Lay a finished mixture out as a dataset repository: ``README.md`` and ``data/train-*.parquet``.

    Args:
        data: finished folder of chapter 01 (`01_preference_data`, or what the command `data` wrote).
        mixture: folder in it, for example ``mix2``; the held-out pairs (`test`) go along as a split of their own.
        card: text of its dataset card (`mixture_card`).
        target: folder to write, emptied first; `datasets.load_dataset` reads it like the hub's copy.
        rows_per_file: rows of one Parquet file.

    Raises:
        FileNotFoundError: the folder holds no such mixture.
    """
    import datasets

    _check_mixture(data, mixture)
    shutil.rmtree(target, ignore_errors=True)
    (target / "data").mkdir(parents=True)
    (target / "README.md").write_text(card, encoding="utf-8")
    for split, folder in (("train", mixture), ("test", "test")):
        rows = datasets.load_from_disk(str(data / folder))
        files = max(1, -(-len(rows) // rows_per_file))
        for number in range(files):
            shard = rows.shard(files, number, contiguous=True)
            shard.to_parquet(str(target / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"))
    return target


def mixture_card(data: Path, mixture: str) -> str:
    """The dataset card of a finished mixture, with the counts, lengths and provenance of the run that made it.

    Raises:
        FileNotFoundError: the folder holds no such mixture.
    """

    _check_mixture(data, mixture)
    funnel = json.loads((data / "funnel.json").read_text(encoding="utf-8"))
    table = json.loads((data / "table1.json").read_text(encoding="utf-8"))
    manifest = data / "manifest.json"
    provenance = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    return render_run_card(mixture, load_facts()["sources"], funnel, table, provenance)


def _check_mixture(data: Path, mixture: str) -> None:
    if not (data / mixture).is_dir():
        raise FileNotFoundError(f"no mixture {mixture!r} in {data}: build it with `python -m rlhflow_utils data`")


def push_mixture(data: Path, mixture: str, settings: HubSettings) -> str:
    """Export a finished mixture beside it and upload it with its card; returns the repository's address.

    Raises:
        ValueError: `hub.namespace` is missing.
        FileNotFoundError: there is no such mixture.
        RuntimeError: the hub cannot be reached, or refuses (no token, no right to the namespace).
    """
    if not settings.namespace:
        raise ValueError("pushing needs hub.namespace: your user or organisation on the hub")
    target = export_mixture(data, mixture, mixture_card(data, mixture), data / f"{mixture}-hub")
    return _upload(target, f"{settings.namespace}/rlhf-workflow-{mixture}", "dataset", settings.private)


Kind = Literal["dataset", "model"]
FACTS = PROFILES_FOLDER.parent / "data_cards" / "facts.yaml"


@dataclass(frozen=True, order=True)
class Repository:
    """A repository on the hub."""

    kind: Kind
    hub_id: str


@dataclass(frozen=True)
class OpenRevision:
    """A ``revision: null`` in a file: whose it is, and the characters that hold the null."""

    repository: Repository
    start: int
    end: int


def open_revisions(text: str) -> list[OpenRevision]:
    """Every unpinned revision of a profile, in the order of the file.

    Datasets are mappings with `hub_id` and `revision`; the model is the one with `base` and `revision` (chapter 00's
    `model` section). `reward_base` shares the revision of `base` only where both are one repository, and is left open
    otherwise.
    """
    found: list[OpenRevision] = []
    for mapping in _mappings(yaml.compose(text)):
        fields = {key.value: value for key, value in mapping.value if isinstance(key, yaml.ScalarNode)}
        revision, repository = fields.get("revision"), _repository(fields)
        if revision is not None and repository is not None and revision.tag == "tag:yaml.org,2002:null":
            found.append(OpenRevision(repository, revision.start_mark.index, revision.end_mark.index))
    return found


def _mappings(node: yaml.Node | None) -> Iterable[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _mappings(item)


def _repository(fields: Mapping[str, yaml.Node]) -> Repository | None:
    base, reward_base = _text(fields.get("base")), _text(fields.get("reward_base"))
    if base is not None and base.count("/") == 1 and not Path(base).is_dir() and reward_base in (None, base):
        return Repository("model", base)
    hub_id = _text(fields.get("hub_id"))
    return Repository("dataset", hub_id) if hub_id is not None else None


def _text(node: yaml.Node | None) -> str | None:
    is_text = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
    return node.value if isinstance(node, yaml.ScalarNode) and is_text else None


def pin_text(text: str, revisions: Mapping[Repository, str]) -> str:
    """The profile's text with the given commits in place of its nulls; revisions that are set stay as they are."""
    for place in reversed(open_revisions(text)):
        commit = revisions.get(place.repository)
        if commit is not None:
            text = text[: place.start] + commit + text[place.end :]
    return text


def resolve(repositories: Iterable[Repository]) -> dict[Repository, str]:
    """Ask the hub for the commit of each repository's default branch.

    Raises:
        RuntimeError: the hub cannot be reached, or a repository is missing or gated; the message names it.
    """
    from huggingface_hub import HfApi

    api, found = HfApi(), dict[Repository, str]()
    for repository in repositories:
        ask: Any = api.dataset_info if repository.kind == "dataset" else api.model_info
        try:
            found[repository] = str(ask(repository.hub_id).sha)
        except hub_errors() as error:
            reason = " ".join(str(error).split())[:160]
            raise RuntimeError(
                f"cannot resolve the {repository.kind} {repository.hub_id} ({type(error).__name__}: {reason}); "
                "nothing was written: go online (unset HF_HUB_OFFLINE), and log in where it is gated"
            ) from error
    return found


def pin_files(paths: Sequence[Path]) -> int:
    """Resolve every open revision of some YAML files and write the commits into them; returns how many repositories.

    All are resolved before anything is written, so that the files are pinned together or not at all.

    Raises:
        RuntimeError: a repository cannot be resolved.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    places = [place.repository for text in texts.values() for place in open_revisions(text)]
    revisions = resolve(dict.fromkeys(places))
    for path, text in texts.items():
        path.write_text(pin_text(text, revisions), encoding="utf-8")
        left = [line for line in (_shared_revision(text),) if line]
        print(f"{path.name}: {len(open_revisions(text))} revisions pinned", *left, sep="; ")
    for repository, commit in revisions.items():
        print(f"  {repository.kind} {repository.hub_id}: {commit}")
    return len(revisions)


def _shared_revision(text: str) -> str | None:
    model = (yaml.safe_load(text) or {}).get("model")
    if not model or model["revision"] is not None or model["base"] in (None, model["reward_base"]):
        return None
    return "model.revision stays open: base and reward_base are two repositories and share this one key"


def pin(names: Sequence[str]) -> int:
    """Pin the named profiles; without names, every profile and the published sets of ``data_cards/facts.yaml``.

    Raises:
        ConfigError: a profile is not valid.
        RuntimeError: a repository cannot be resolved.
    """
    paths = [profile_path(name) for name in names] or [*sorted(PROFILES_FOLDER.glob("*.yaml")), FACTS]
    for path in paths:
        if path != FACTS:
            load_profile(str(path))
    return pin_files(paths)


if __name__ == "__main__":
    if "--data-root" in sys.argv:
        audit()
        sys.exit()
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rlhflow_utils.data.cards runs/<run>/01_preference_data")
    found = json.dumps(collect_counts(Path(sys.argv[1])), indent=1, ensure_ascii=False)
    (FOLDER / "counts.json").write_text(found + "\n", encoding="utf-8")
    print("\n".join(path.name for path in write_cards()))
