"""Chapter 01: native rows become preference pairs, split by prompt and mixed; SFT rows and prompts beside them.

Everything is read off one table of candidate pairs with the column `fate`: a split (`train`, `test`, ...) or
`dropped: <reason>`. Added to the paper's recipe (2.1): held-out pairs, and that no prompt crosses from one split into
another. A pair's split is a hash of its first user turn, so it is the same in every run, seed and source.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhflow_utils.data import filters
from rlhflow_utils.data.filters import DROPPED, Deduplicator, HeldOut, first_turn_key
from rlhflow_utils.data.overview import TokenLength, funnel, prompt_map, table1, token_length
from rlhflow_utils.data.reading import Candidate, Conversation, Prompt, Root, Row, SourceError
from rlhflow_utils.data.sources import convert, native_rows, read
from rlhflow_utils.guide.settings import DataSettings, FilterSettings, ModelSettings, PartitionSettings, SourceSettings
from rlhflow_utils.guide.stage import Rows, Summary, seed_for, stage, write_json
from rlhflow_utils.models.chat import normal_text, prompt_key
from rlhflow_utils.models.forward import Model

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

SPLITS = ("test", "sft", "prompts", "judge", "train")
TRAINS = ("sft", "judge", "train")  # their texts enter a loss: no evaluation prompt may be among them
STANDARD = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score", "source", "row_id")
CHUNK = 500  # native rows
EXCERPT = 120  # characters
MAP_PROMPTS = 1500  # points of the prompt map
TURNS, TEXT, COUNT, SCORE, FLAG = "turns", "string", "int32", "float64", "bool"  # kinds of columns
PAIRS = {
    "source": TEXT, "row_id": TEXT, "offline": FLAG, "fate": TEXT, "chosen_score": SCORE, "rejected_score": SCORE,
    "prompt_length": COUNT, "chosen_length": COUNT, "rejected_length": COUNT, "chosen_longer": FLAG,
    "prompt_id": TEXT, "first_turn": TEXT, "prompt_excerpt": TEXT, "chosen_excerpt": TEXT, "rejected_excerpt": TEXT,
}  # fmt: skip
PROMPTS = {"prompt_id": TEXT, "prompt": TURNS, "source": TEXT, "row_id": TEXT, "first_turn": TEXT, "fate": TEXT}
SFT = {"messages": TURNS, "source": TEXT, "row_id": TEXT, "fate": TEXT}


@stage
def build_preference_data(
    settings: DataSettings, root: Root, tokenizer: Model | None, model: ModelSettings, seed: int, *, into: Path
) -> Summary:
    """Everything that chapter 01 leaves for the others.

    Datasets: one per mixture, `test`, `judge` (where its share is above 0), `sft`, `prompts`, `evaluation_prompts`,
    `offline` (where there is an offline source) and `pairs`, the table of all candidate pairs. Files: `table1.json`,
    `decontamination.json`, `prompt_map.json`, and `dropped.jsonl`, every dropped row with its reason. Without a
    tokenizer lengths are words, and `max_tokens` is not enforced. ValueError where a source cannot be read, or a
    mixture or the prompts come out empty.
    """
    import pandas as pd

    shutil.rmtree(into)  # a killed run starts anew: it takes seconds to minutes
    into.mkdir()
    work = into / "work"
    turns = {"prompt": TURNS, "chosen": TURNS, "rejected": TURNS}
    pairs = write_table(candidates(settings, root, tokenizer, model), {**PAIRS, **turns}, work / "pairs")
    frame = pairs.select_columns([name for name in PAIRS if not name.endswith("excerpt")]).to_pandas()
    prompts, evaluation, held_out = _write_prompts(settings, root, pairs, frame, seed, into)
    _drop_contaminated(pairs, frame, frame.fate.isin(TRAINS), "pairs", held_out)
    _drop_contaminated(pairs, frame, frame.fate == "offline", "offline", held_out)
    wanted = {"test": True, "judge": settings.partition.judge > 0, "offline": settings.offline_source is not None}
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        _rows_of(pairs, frame, name).save_to_disk(into / name)
    sft = write_table(sft_rows(settings, root, _rows_of(pairs, frame, "sft"), held_out), SFT, work / "sft")
    tables = {
        "pairs": frame[~frame.offline], "offline": frame[frame.offline],
        "sft": sft.remove_columns("messages").to_pandas(), "prompts": prompts, "evaluation_prompts": evaluation,
    }  # fmt: skip
    sft.remove_columns("fate").select(tables["sft"].index[tables["sft"].fate == "sft"]).save_to_disk(into / "sft")
    mixed = _write_mixtures(settings, pairs, frame, seed, into)
    columns = [name for name in PAIRS if name != "fate"]
    pairs.select_columns(columns).add_column("fate", frame.fate.tolist()).save_to_disk(into / "pairs")
    names = [source.name for source in settings.preference_sources]
    tokenizer_name = tokenizer if isinstance(tokenizer, str) else "this run's base model" if tokenizer else None
    write_json(into / "table1.json", table1(tables["pairs"], names, tokenizer_name))
    write_json(into / "decontamination.json", held_out.matches)
    write_json(into / "prompt_map.json", _map_of(pairs, frame, seed))
    columns = ["flow", "source", "row_id", "fate"]
    dropped = pd.concat([table.assign(flow=name)[columns] for name, table in tables.items()])
    dropped[dropped.fate.str.startswith(DROPPED)].to_json(into / "dropped.jsonl", orient="records", lines=True)
    shutil.rmtree(work)
    rows = {
        f"{name} {source}": Rows(row["rows_in"], row["rows_out"], row["dropped"])
        for name, table in tables.items() for source, row in funnel(table).items()
    }  # fmt: skip
    splits = {f"{name}_pairs": int((tables["pairs"].fate == name).sum()) for name in SPLITS}
    return Summary({**rows, **mixed.rows}, {**splits, **mixed.metrics})


# --- the table of candidate pairs ---------------------------------------------------------------------------------


def candidates(settings: DataSettings, root: Root, tokenizer: Model | None, model: ModelSettings) -> Iterator[Row]:
    """One row for each candidate pair of the preference sources and the offline source, in the order of the files."""
    for source in [*settings.preference_sources, *filter(None, [settings.offline_source])]:
        is_offline = source is settings.offline_source
        deduplicator = Deduplicator(settings.filters.max_pairs_per_prompt.get(source.name))
        for row in judged_rows(source, root, settings.filters, (tokenizer, model), settings.workers):
            reason, hashes = row.pop("reason"), row.pop("hashes")
            reason = reason or deduplicator.failure(row["prompt_id"], hashes)
            if reason:
                row |= {"prompt": [], "chosen": [], "rejected": []}  # what a dropped row holds may fit no column
            split = "offline" if is_offline else None if reason else split_of(row["first_turn"], settings.partition)
            yield row | {"offline": is_offline, "fate": f"{DROPPED}{reason}" if reason else split}


def judged_rows(
    source: SourceSettings, root: Root, settings: FilterSettings, measure: tuple[Any, ...], workers: int
) -> Iterator[Row]:
    """Candidates of a source with the verdict of every rule that looks at one pair alone (`reason`; None: passed)."""
    rows = native_rows(source, root)
    chunks = iter(lambda: list(itertools.islice(rows, CHUNK)), [])
    if workers == 1:
        length = token_length(*measure)
        for chunk in chunks:
            yield from judge(chunk, source, settings, length)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _set_up_worker, (source, settings, measure)) as pool:
        while some := list(itertools.islice(chunks, 4 * workers)):  # a pool's own map would read the whole source ahead
            yield from itertools.chain.from_iterable(pool.map(_judge_in_worker, some))


_WORKER: list[Any] = []  # of a worker process: source, settings, and the function that measures


def _set_up_worker(source: SourceSettings, settings: FilterSettings, measure: tuple[Any, ...]) -> None:
    _WORKER[:] = [source, settings, token_length(*measure)]


def _judge_in_worker(rows: list[tuple[str, Row]]) -> list[Row]:
    return judge(rows, *_WORKER)


def judge(
    native: Iterable[tuple[str, Row]], source: SourceSettings, settings: FilterSettings, length: TokenLength | None
) -> list[Row]:
    """Convert native rows, apply every rule that looks at one pair alone, and measure what passed."""
    strategy = settings.kwise_pairs.get(source.name, "all_pairs")
    pairs = [pair for row_id, row in native for pair in convert(source, row_id, row, strategy)]
    rows = [_pair_row(pair, source, settings) for pair in pairs]
    passed = [row for row in rows if row["reason"] is None]
    texts: list[str] = []
    for row in passed:
        prompt = "\n".join(turn["content"] for turn in row["prompt"])
        texts += [prompt, row["chosen"][0]["content"], row["rejected"][0]["content"]]
    lengths = iter(length(texts) if length else [len(text.split()) for text in texts])
    for row, three in zip(passed, zip(lengths, lengths, lengths, strict=True), strict=True):
        row["prompt_length"], row["chosen_length"], row["rejected_length"] = three
        # Reconstructed: the paper trains with `max_length` (2.2) and does not say what becomes of longer pairs.
        if length and three[0] + max(three[1:]) > settings.max_tokens:
            row["reason"] = "too_long"
    return rows


def _pair_row(pair: Any, source: SourceSettings, settings: FilterSettings) -> Row:
    if not isinstance(pair, Candidate):
        raise SourceError(f"source {source.name!r}: schema {source.schema_name!r} holds no preference pairs")
    last = pair.prompt[-1]["content"] if pair.prompt else ""
    row: Row = dict.fromkeys((*PAIRS, "hashes")) | {
        "source": source.name, "row_id": pair.row_id, "reason": filters.first_failure(pair, settings, source.name),
        "chosen_score": pair.chosen_score, "rejected_score": pair.rejected_score, "prompt_excerpt": _excerpt(last),
        "chosen_excerpt": _excerpt(pair.chosen), "rejected_excerpt": _excerpt(pair.rejected),
    }  # fmt: skip
    if row["reason"] is None:
        key = prompt_key(pair.prompt)
        row |= {
            "prompt": pair.prompt, "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "chosen_longer": len(pair.chosen) > len(pair.rejected), "prompt_id": key,
            "first_turn": key if len(pair.prompt) == 1 else first_turn_key(pair.prompt),
            "hashes": filters.pair_hashes(key, pair.chosen, pair.rejected),
        }  # fmt: skip
    return row


def _excerpt(content: Any) -> str:
    # As JSON, so that an empty string, a zero-width space and the boolean true can be told apart.
    text = json.dumps(content[:EXCERPT] if isinstance(content, str) else content, default=str)  # Parquet has dates
    return text if len(text) <= EXCERPT else text[: EXCERPT - 2] + '…"'


def split_of(first_turn: str, shares: PartitionSettings) -> str:
    """The split of a pair, from the key of its first user turn (16 hex digits, read as a number in [0, 1))."""
    position, edge = int(first_turn, 16) / 16 ** len(first_turn), 0.0
    for name in SPLITS[:-1]:
        edge += float(getattr(shares, name))
        if position < edge:
            return name
    return "train"


# --- what is written ----------------------------------------------------------------------------------------------


def write_table(rows: Iterable[Row], columns: dict[str, str], folder: Path) -> Dataset:
    """The rows as a dataset on disk, memory-mapped."""
    from datasets import Dataset, Features, List, Value
    from datasets.exceptions import DatasetGenerationError

    turns = List({"role": Value("string"), "content": Value("string")})
    features = Features({name: turns if kind == TURNS else Value(kind) for name, kind in columns.items()})
    iterator = iter(rows)
    if (first := next(iterator, None)) is None:
        return Dataset.from_dict({name: [] for name in columns}, features)
    whole = itertools.chain([first], iterator)
    try:
        return Dataset.from_generator(lambda: whole, features, cache_dir=str(folder), fingerprint=folder.name)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _rows_of(pairs: Dataset, frame: pd.DataFrame, split: str) -> Dataset:
    return pairs.select_columns(list(STANDARD)).select(frame.index[frame.fate == split])


def seeded_order(keys: Sequence[str], seed: int) -> list[int]:
    """Positions of keys in an order that depends on the seed and the keys alone, not on their number or order."""
    return sorted(range(len(keys)), key=lambda i: (hashlib.sha256(f"{seed}:{keys[i]}".encode()).digest(), i))


def prompts_of_sources(sources: Iterable[SourceSettings], root: Root) -> Iterator[tuple[str, Prompt]]:
    """(source name, prompt) of every prompt of several sources."""
    return ((source.name, prompt) for source in sources for prompt in read(source, root, Prompt))


def prompt_rows(prompts: Iterable[tuple[str, Prompt]]) -> Iterator[Row]:
    """Rows of prompts; dropped are the structural reasons of `filters` and ``repeated_prompt``."""
    seen: set[str] = set()
    for source, record in prompts:
        reason = filters.structural_failure([record.prompt])
        key = "" if reason else prompt_key(record.prompt)
        reason = reason or ("repeated_prompt" if key in seen else None)
        seen.add(key)
        yield {"prompt_id": key, "prompt": [] if reason else record.prompt, "source": source, "row_id": record.row_id,
               "first_turn": None if reason else first_turn_key(record.prompt),
               "fate": f"{DROPPED}{reason}" if reason else "prompts"}  # fmt: skip


def _write_prompts(
    settings: DataSettings, root: Root, pairs: Dataset, frame: pd.DataFrame, seed: int, into: Path
) -> tuple[pd.DataFrame, pd.DataFrame, HeldOut]:
    """Write `prompts` and `evaluation_prompts`; returns the fates of both, and what is held out."""
    of_pairs = ((row["source"], Prompt(row["row_id"], row["prompt"])) for row in _rows_of(pairs, frame, "prompts"))
    found = itertools.chain(prompts_of_sources(settings.prompt_sources, root), of_pairs)
    table = held = write_table(prompt_rows(found), PROMPTS, into / "work" / "prompts")
    prompts = evaluation = table.remove_columns("prompt").to_pandas()
    if settings.evaluation_prompt_sources:
        of_sources = prompts_of_sources(settings.evaluation_prompt_sources, root)
        held = write_table(prompt_rows(of_sources), PROMPTS, into / "work" / "evaluation_prompts")
        evaluation = held.remove_columns("prompt").to_pandas()
    usable = evaluation[evaluation.fate == "prompts"]
    chosen = sorted(usable.index[seeded_order(usable.first_turn.tolist(), seed)[: settings.evaluation_prompts]])
    held_out = HeldOut(settings.decontamination)
    held_out.add((f"evaluation_prompts:{i}", row["prompt"]) for i, row in enumerate(held.select(chosen)))
    benchmarks = prompts_of_sources(settings.decontamination.sources, root)
    held_out.add((f"{name}:{prompt.row_id}", prompt.prompt) for name, prompt in benchmarks)
    if settings.evaluation_prompt_sources:
        evaluation.loc[usable.index.difference(chosen), "fate"] = f"{DROPPED}subsample"
    else:
        prompts.loc[chosen, "fate"] = f"{DROPPED}used_for_evaluation"
        evaluation = prompts.iloc[:0]
    _drop_contaminated(table, prompts, prompts.fate == "prompts", "prompts", held_out)
    written = {"prompts": (table, prompts.index[prompts.fate == "prompts"]), "evaluation_prompts": (held, chosen)}
    advice = "raise data.partition.prompts, add prompt_sources, or lower data.evaluation_prompts"
    for name, (rows, positions) in written.items():
        if not len(positions):
            raise ValueError(f"{name} is empty: {len(rows)} prompts were read; {advice}")
        rows.select_columns(["prompt_id", "prompt", "source"]).select(positions).save_to_disk(into / name)
    return prompts, evaluation, held_out


def _drop_contaminated(table: Dataset, frame: pd.DataFrame, mask: Any, flow: str, held_out: HeldOut) -> None:
    """Change the fate of the rows under `mask` that repeat an evaluation prompt."""
    positions = frame.index[mask]
    for i, row in zip(positions, table.select_columns(["source", "row_id", "prompt"]).select(positions), strict=True):
        if reason := held_out.contamination(flow, row["source"], row["row_id"], row["prompt"]):
            frame.loc[i, "fate"] = f"{DROPPED}{reason}"


def sft_rows(settings: DataSettings, root: Root, pairs: Iterable[Row], held_out: HeldOut) -> Iterator[Row]:
    """Rows to imitate: the conversations of `sft_sources`, as often as they occur, then the chosen answers of `pairs`.

    Of the pairs of one prompt that share their chosen answer all but the first are dropped as ``repeated_answer``.
    """
    of_sources = ((source.name, record, False) for source in settings.sft_sources
                  for record in read(source, root, Conversation))  # fmt: skip
    of_pairs = ((row["source"], Conversation(row["row_id"], [*row["prompt"], *row["chosen"]]), True) for row in pairs)
    seen: set[tuple[str, str]] = set()
    for source, record, is_pair in itertools.chain(of_sources, of_pairs):
        messages = record.messages
        reason = filters.conversation_failure(record)
        if reason is None:
            reason = held_out.contamination("sft", source, record.row_id, messages[:-1])
        if reason is None and is_pair:
            identity = (prompt_key(messages[:-1]), normal_text(messages[-1]["content"]))
            reason = "repeated_answer" if identity in seen else None
            seen.add(identity)
        yield {"messages": [] if reason else messages, "source": source, "row_id": record.row_id,
               "fate": f"{DROPPED}{reason}" if reason else "sft"}  # fmt: skip


def _write_mixtures(settings: DataSettings, pairs: Dataset, frame: pd.DataFrame, seed: int, into: Path) -> Summary:
    rows: dict[str, Rows] = {}
    metrics: dict[str, float] = {}
    for mixture, members in settings.mixtures.items():
        members_rows = frame[(frame.fate == "train") & frame.source.isin(members)]
        most, total = settings.max_pairs_per_mixture, len(members_rows)
        if most is not None and total > most:
            members_rows = members_rows.sample(most, random_state=seed_for(seed, mixture)).sort_index()
        if members_rows.empty:
            found = frame[frame.source.isin(members)].fate.value_counts().to_dict()
            raise ValueError(f"mixture {mixture!r} is empty: no pair of {members} is left to train on; fates: {found}")
        pairs.select_columns(list(STANDARD)).select(members_rows.index).save_to_disk(into / mixture)
        kept = len(members_rows)
        rows[f"mixture {mixture}"] = Rows(total, kept, {"subsample": total - kept} if total > kept else {})
        metrics[f"{mixture}_pairs"] = kept
        metrics[f"{mixture}_chosen_longer_rate"] = round(float(members_rows.chosen_longer.astype(bool).mean()), 4)
    return Summary(rows, metrics)


def _map_of(pairs: Dataset, frame: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Fig. 7 over at most `MAP_PROMPTS` training prompts, as many from each source, each first turn once."""
    train = frame[frame.fate == "train"].sample(frac=1, random_state=seed_for(seed, "prompt map"))
    train = train.drop_duplicates(["source", "first_turn"])
    drawn = train.groupby("source").head(MAP_PROMPTS // train.source.nunique()).sort_index() if len(train) else train
    rows = pairs.select_columns(["source", "prompt"]).select(drawn.index)
    return prompt_map([(row["source"], row["prompt"][-1]["content"]) for row in rows], seed)
