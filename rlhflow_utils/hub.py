"""Pushing a trained model or a finished mixture, with a card that says where its numbers come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rlhflow_utils.manifest import StageFolder
from rlhflow_utils.settings import HubSettings
from rlhflow_utils.tables import cell


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
    from rlhflow_utils.data_cards import load_facts, render_run_card

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
