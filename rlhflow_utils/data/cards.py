"""Cards of what a run made, the hub, and the commands `data`, `push-data` and `pin`.

A card is a Jinja template (``data_cards/templates/``) over counts and facts (``facts.yaml``). The committed cards of
the sources are rendered by ``data_cards/render.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhflow_utils.data import filters
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.data.overview import explain_table1, funnel, side_by_side
from rlhflow_utils.data.reading import one_line
from rlhflow_utils.guide.profile import PROFILES, REVISIONS, ConfigError, hub_ids, load_profile, read_revisions, variant
from rlhflow_utils.guide.run import Run, locked, quiet_libraries
from rlhflow_utils.guide.settings import HubSettings, Profile
from rlhflow_utils.guide.stage import PROJECT, Artifact, read_artifact, relative
from rlhflow_utils.guide.tables import Formatted, markdown_table
from rlhflow_utils.simulator.world import build_world

if TYPE_CHECKING:
    import pandas as pd

FOLDER = PROJECT / "data_cards"
SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


# --- what the cards say -------------------------------------------------------------------------------------------


@lru_cache
def load_facts() -> dict[str, dict[str, Any]]:
    """``{"sources": {name: facts}, "mixtures": ..., "published": ..., "reasons": {reason: its meaning}}``."""
    return dict(yaml.safe_load((FOLDER / "facts.yaml").read_text(encoding="utf-8")))


def read_pairs(data: Path) -> pd.DataFrame:
    """The candidate pairs of the preference sources in a finished folder, without excerpts."""
    from datasets import load_from_disk

    columns = ["source", "row_id", "fate", "offline"]
    frame: pd.DataFrame = load_from_disk(str(data / "pairs")).select_columns(columns).to_pandas()
    return frame[~frame.offline]


def rule_text(reason: str) -> tuple[str, str]:
    """What a drop reason means, and its basis: sourced, reconstructed, or both."""
    text = {**filters.RULES, **load_facts()["reasons"]}[reason]
    words = [word for word in ("sourced", "reconstructed") if word in text.lower()]
    return text.split(". ")[0].removesuffix("."), " in part, else ".join(words)


def rules_table(counts: Sequence[Mapping[str, Any]], where: str) -> str:
    """Every rule in its order, with its basis, and the pairs of some sources that it took."""
    dropped: Counter[str] = sum((Counter(row["dropped"]) for row in counts), Counter())
    native, pairs, kept = (sum(row[key] for row in counts) for key in ("native_rows", "rows_in", "rows_out"))
    text = "No run over these rows has been recorded here yet."
    if counts:
        text = (f"Counted {where}: {native:,} native rows gave {pairs:,} candidate pairs, of which {kept:,} were kept. "
                "The first rule that a pair fails takes it.")  # fmt: skip
    rows = []
    for reason in [*filters.RULES, *load_facts()["reasons"]]:
        meaning, basis = rule_text(reason)
        number = {"pairs dropped": dropped[reason]} if counts else {}
        rows.append({"reason": Formatted(f"`{reason}`"), **number, "meaning": Formatted(meaning), "basis": basis})
    return f"{text}\n\n{markdown_table(rows)}"


def render(template: str, title: str, licences: Sequence[str], pairs: int | None, **values: Any) -> str:
    """A dataset card: front matter as the hub reads it (`pairs` sets the size category), and the template's text."""
    from huggingface_hub import DatasetCard, DatasetCardData

    different = sorted(set(licences))
    licence = different[0] if len(different) == 1 else "other"
    name = "mixed" if len(different) > 1 else "see-the-source"  # which the hub asks for beside "other"
    named: dict[str, Any] = {"license_name": name} if licence == "other" else {}
    size = "unknown" if pairs is None else next(label for limit, label in SIZES.items() if pairs < limit)
    front = DatasetCardData(pretty_name=title, language=["en"], license=licence, size_categories=[size],
                            tags=["preference", "rlhf", "reward-model"], **named)  # fmt: skip
    path = str(FOLDER / "templates" / f"{template}.md")
    return str(DatasetCard.from_template(front, path, link=hub_link, **values)).rstrip() + "\n"


def hub_link(hub_id: str | None) -> str:
    """A link to a dataset and the commit that is read."""
    if hub_id is None:
        return "local files; no hub revision"
    commit = read_revisions().get(hub_id)
    pinned = f"revision: `{commit}`" if commit else "revision: not pinned (`python -m rlhflow_utils pin` writes it)"
    return Formatted(f"[{hub_id}](https://huggingface.co/datasets/{hub_id}); {pinned}")


def mixture_card(data: Path, mixture: str) -> str:
    """The dataset card of a finished mixture, with its run's counts and provenance (FileNotFoundError: no such one)."""
    from datasets import load_from_disk

    found = read_artifact(data)
    if found is None or not (data / mixture).is_dir():
        raise FileNotFoundError(f"no mixture {mixture!r} in {data}: build it with `python -m rlhflow_utils data`")
    sources, counts = load_facts()["sources"], funnel(read_pairs(data))
    here = Counter(load_from_disk(str(data / mixture))["source"])
    members = {name: counts[name] for name in here}
    licences = {name: sources.get(name, {}).get("licence", "unknown") for name in members}
    rows = [
        {"source": name, "read from": hub_link(sources.get(name, {}).get("hub_id")), "licence": licences[name],
         "candidate pairs": row["rows_in"], "pairs here": here[name]} for name, row in members.items()
    ]  # fmt: skip
    table = [row for row in found.read_json("table1.json") if row["source"] in members]
    return render(
        "run", f"{mixture}, preference mixture", list(licences.values()), here.total(), name=mixture,
        total=here.total(), members=markdown_table(rows), rules=rules_table(list(members.values()), "in this run"),
        lengths=markdown_table(side_by_side(table)), manifest=found.manifest,
    )  # fmt: skip


def model_card(name: str, base: str, stage: Artifact, metrics: Mapping[str, Any], caption: str) -> str:
    """The card of a trained model: recipe, provenance, and metrics with what they are evidence of (`caption`)."""
    from huggingface_hub import ModelCard, ModelCardData

    front = ModelCardData(library_name="transformers", tags=["trl", "dpo", "rlhf"], pipeline_tag="text-generation")
    measured = markdown_table([{"metric": name, "value": value} for name, value in sorted(metrics.items())], caption)
    return str(ModelCard.from_template(
        front, str(FOLDER / "templates" / "model.md"), name=name, base=base, metrics=measured,
        manifest=stage.manifest, folder=stage.path.name,
    ))  # fmt: skip


# --- the hub ------------------------------------------------------------------------------------------------------


@contextmanager
def hub_problems(action: str, advice: str) -> Iterator[None]:
    """Raise RuntimeError in one line where the network, the login or the repository fails."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    # A name that cannot be resolved surfaces as the HTTP library's own error, the base of HfHubHTTPError.
    errors: tuple[Any, ...] = (OSError, LocalTokenNotFoundError, *HfHubHTTPError.__bases__)
    try:
        yield
    except errors as error:
        raise RuntimeError(f"{action} ({type(error).__name__}: {one_line(error)}); {advice}") from error


@contextmanager
def pushing(name: str, settings: HubSettings) -> Iterator[str]:
    """``namespace/name``, to push to; RuntimeError where the hub cannot be reached, or refuses."""
    if not settings.namespace:
        raise ValueError("pushing needs hub.namespace: your user or organisation on the hub")
    target = f"{settings.namespace}/{name}"
    with hub_problems(f"pushing {target} failed", "go online, and log in with `hf auth login`"):
        yield target


def push_mixture(data: Path, mixture: str, settings: HubSettings) -> str:
    """Push a finished mixture (split `train`), the held-out pairs (`test`) and the card; returns the address."""
    from datasets import DatasetDict, load_from_disk
    from huggingface_hub import DatasetCard

    card = mixture_card(data, mixture)
    splits = DatasetDict(train=load_from_disk(str(data / mixture)), test=load_from_disk(str(data / "test")))
    with pushing(f"rlhf-workflow-{mixture}", settings) as target:
        splits.push_to_hub(target, private=settings.private)
        DatasetCard(card).push_to_hub(target, repo_type="dataset")
    return f"https://huggingface.co/datasets/{target}"


def push_model(stage: Artifact, name: str, card: str, settings: HubSettings) -> str:
    """Upload a stage's folder `model` and its card; returns the address."""
    from huggingface_hub import HfApi, ModelCard

    with pushing(name, settings) as target:
        HfApi().create_repo(target, private=settings.private, exist_ok=True)
        HfApi().upload_folder(repo_id=target, folder_path=stage.path / "model")
        ModelCard(card).push_to_hub(target)
    return f"https://huggingface.co/{target}"


def pin() -> int:
    """Write ``profiles/revisions.yaml`` anew: the commit of every dataset and model that a profile or a card names.

    Returns how many there are. Where one cannot be resolved, RuntimeError names it and nothing is written.
    """
    from huggingface_hub import HfApi

    profiles = [load_profile(path.stem) for path in sorted(PROFILES.glob("*.yaml")) if path.name != REVISIONS.name]
    published = [hub_id for fact in load_facts()["published"].values() for hub_id in fact["sets"]]
    names = [(p.model.base, p.model.reward_base, p.reward_model.model, p.evaluation.judge_model) for p in profiles]
    models = {name for each in names for name in each if name}
    named = (name for each in profiles for name in hub_ids(each))
    kinds = dict.fromkeys([*published, *standard_sets().values(), *named], "dataset")
    kinds |= {name: "model" for name in models if name.count("/") == 1 and not (PROJECT / name).is_dir()}
    found, advice = {}, "nothing was written: go online, and log in where it is gated"
    for name, kind in sorted(kinds.items()):
        with hub_problems(f"cannot resolve the {kind} {name}", advice):
            found[name] = str(HfApi().repo_info(name, repo_type=kind).sha)
            print(f"{kind} {name}: {found[name]}")
    text = "# Commits of the hub repositories that the profiles name; `python -m rlhflow_utils pin` writes this file."
    REVISIONS.write_text(f"{text}\n" + yaml.safe_dump(found), encoding="utf-8")
    return len(found)


# --- the command `data` -------------------------------------------------------------------------------------------


def run_data(name: str, out: str, overrides: Mapping[str, Any], published: str | None) -> Path:
    """Chapter 01 without a notebook: build a profile's preference data, print the funnel and Table 1.

    Returns the stage's folder in the run folder `out` (relative to the project). `published`: see
    `with_published_sets`; None reads the raw sources. Raises ConfigError where local rows need `data.root`.
    """
    quiet_libraries()
    profile = load_profile(name, overrides)
    profile = with_published_sets(profile, published) if published else profile
    run = Run("data", profile, PROJECT / out)
    with locked(run.folder):
        if profile.world and not profile.data.root:
            build_world(profile.world, run.seed, into=run / "world")
        root, tokenizer = run.data_root(), run.base_model() if profile.model.base else None
        if root is None and not any(source.hub_id for source in profile.data.preference_sources):
            raise ConfigError(f"profile {profile.name} reads local rows: give their folder with --data-root")
        folder = run / "preference_data"
        data = build_preference_data(profile.data, root, tokenizer, profile.model, run.seed, into=folder)
    rows, origin = data.read_json("table1.json"), "hub" if root is None else "files" if profile.data.root else "world"
    known = {source: fact.get("difference", "") for source, fact in load_facts()["sources"].items()}
    counts = [
        {"source": name, "native rows": row["native_rows"], "pairs in": row["rows_in"], "kept": row["rows_out"],
         "for": ", ".join(f"{split} {n}" for split, n in row["splits"].items()),
         "dropped": sum(row["dropped"].values()),
         "reasons": ", ".join(f"{reason} {n}" for reason, n in row["dropped"].items())}
        for name, row in funnel(read_pairs(data.path)).items()
    ]  # fmt: skip
    print("", markdown_table(counts), "", markdown_table(side_by_side(rows)), "",
          *explain_table1(rows, origin, known), "", sep="\n")  # fmt: skip
    print(
        f"written to {relative(data.path)}; `datasets.load_from_disk` of its folder `pairs` has the fate of every pair"
    )
    return data.path


def standard_sets() -> dict[str, str]:
    """Source -> the authors' filtered copy of it on the hub, where there is one."""
    return {name: fact["standard"] for name, fact in load_facts()["sources"].items() if "standard" in fact}


def with_published_sets(profile: Profile, which: str) -> Profile:
    """The profile with its preference sources replaced by the authors' published sets, the reference for our filters.

    ``standard``: RLHFlow's ``*-standard`` sets, under our names; ``700k``: ``hendrydong/preference_700K``.
    """
    sets = {"preference_700K": "hendrydong/preference_700K"} if which == "700k" else standard_sets()
    sources = [
        {"name": name, "schema": "rlhflow_standard", "hub_id": hub_id, "split": "train",
         "files": [f"{hub_id.partition('/')[2]}/*"] if profile.data.root else None} for name, hub_id in sets.items()
    ]  # fmt: skip
    return variant(profile, {
        "data.preference_sources": sources, "data.mixtures": {which: list(sets)}, "data.main_mixture": which,
        "data.filters.min_score_margin": {}, "data.filters.max_pairs_per_prompt": {},
    })  # fmt: skip
