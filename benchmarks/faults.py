"""A fault campaign: a small run is killed, starved and damaged, and must end as if nothing had happened.

The run calls the stages of the chapters in a world of a few rows: base model, SFT, reward model, two iterations. Each
attempt is a forked child, so that a kill falls into the work and not into imports. ::

    python benchmarks/faults.py --kills 200 --seed 0 --minutes 15

Writes `results/faults/campaign.json`, with the counts that were reached within the minutes. Outcomes of a fault:
`one_line` (the run stops with one line that names the place, and goes on once the fault is mended), `unharmed` (it ends
like the undisturbed run), `unnamed` (as `one_line`, but the line does not say where), and the two that must not be:
`silent` (it ends otherwise) and `obscure` (several lines, or it cannot go on).
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import importlib
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rlhflow_utils.__main__ import _explained
from rlhflow_utils.data.filters import conversation_failure, first_failure, structural_failure
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.data.reading import Candidate, Conversation, SourceError, file_rows
from rlhflow_utils.data.sources import convert
from rlhflow_utils.evaluation import arena_hard, judges, mt_bench, policies
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run, locked, quiet_libraries
from rlhflow_utils.guide.settings import SourceSettings
from rlhflow_utils.guide.stage import PROJECT, hash_value, provenance, read_json, write_json
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import generate_responses
from rlhflow_utils.online.iterative_dpo import prompts_of_iteration
from rlhflow_utils.online.pair_building import build_preference_pairs
from rlhflow_utils.simulator.world import build_world
from rlhflow_utils.training import pretraining, stages

TARGET = PROJECT / "results" / "faults" / "campaign.json"
TINY = load_profile("tiny")
assert TINY.world is not None
SMALL: dict[str, Any] = {
    "world.entities": 4,
    "world.corpus": {"statements": 40, "questions": 40, "proofread": 20, "graded": 20, "comparisons": 20},
    "world.sft.demonstrations": 60,
    "world.sft.translations": 10,
    "world.sft.judgements": 10,
    "world.prompts": 24,
    "world.eval_prompts": 12,
    "world.translation_tests": 6,
    "world.benchmark_rows": 24,
    "model.base": None,
    "base_model.architecture.hidden_size": 32,
    "base_model.architecture.num_hidden_layers": 1,
    "base_model.architecture.intermediate_size": 64,
    "base_model.architecture.num_attention_heads": 2,
    "base_model.vocab_size": 400,
    "base_model.block_size": 64,
    "base_model.blocks_per_batch": 4,
    "base_model.tokens": 30_000,
    "sft.trainer.save_steps": 1,
    "sft.global_batch_size": 16,
    "sft.trainer.per_device_train_batch_size": 8,
    "reward_model.trainer.save_steps": 2,
    "dpo.trainer.save_steps": 1,
    "dpo.global_batch_size": 4,
    "dpo.trainer.per_device_train_batch_size": 4,
    "generation.sampling": {"n": 4, "top_p": 1.0, "max_tokens": 12},
    "generation.shard_size": 2,
    "iterative.iterations": 2,
    "iterative.prompts_per_iteration": 10,
    "data.evaluation_prompts": 12,
    "evaluation.bootstrap_samples": 100,
    **{f"world.preferences.sources.{name}.rows": 12 for name in TINY.world.preferences.sources},
}
STEPS_PER_CHECKPOINT, TOKENIZER_DOCUMENTS = 20, 500  # of pretraining, so small that it is often resumed
LOADED = ("rlhflow_utils.training.trainers", "rlhflow_utils.online.engines", "trl.trainer.dpo_trainer",
          "trl.trainer.reward_trainer", "trl.trainer.sft_trainer", "datasets", "pandas", "pyarrow.parquet",
          "transformers.models.llama.modeling_llama")  # fmt: skip
LEFT_BEHIND = (".partial/*", "**/*.tmp", "**/*.new", "**/*.old", "**/*.removed", "**/checkpoint*", "**/cache-*.arrow")
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24  # linux/capability.h, linux/prctl.h: root may write into any folder
MOUNTED = 2**20  # bytes of the small disk; a whole run needs half as much again
Overrides = dict[str, Any]
Fault = Callable[[Path], None]  # called in the child, before the run


# --- the run, and what it left --------------------------------------------------------------------------------------


def shrunk_run(folder: Path, overrides: Mapping[str, Any] | None = None) -> None:
    """The stages of chapters 00 to 03 and 07 to 10, as the chapters call them."""
    profile = load_profile("tiny", {**SMALL, **(overrides or {})}, 0)
    assert profile.base_model is not None
    assert profile.world is not None
    with locked(folder):
        run, training = Run("faults", profile, folder), (profile.model, profile.seed, profile.launch)
        world = build_world(profile.world, run.seed, into=run / "world")
        base = stages.train_base_model(profile.base_model, profile.world, None, run.seed, into=run / "base_model")
        data = build_preference_data(profile.data, world, base, profile.model, run.seed, into=run / "data")
        sft = policy = stages.train_sft(data, base, profile.sft, *training, into=run / "sft")
        rm = stages.train_reward_model(data, "mix1", sft, profile.reward_model, *training, into=run / "bt")
        reference = policies.answer_held_out(run, "sft", sft, data, rm)
        for k in range(1, profile.iterative.iterations + 1):
            prompts = prompts_of_iteration(data, k, profile.iterative)
            settings, into = profile.generation, run / f"iter{k}_responses"
            answers = generate_responses(policy, prompts, settings, profile.model, run.seed, profile.actors, into=into)
            scores = score_responses(rm, answers, profile.reward_model, profile.model, into=run / f"iter{k}_scores")
            pairs = build_preference_pairs(scores, profile.pair_building, run.seed, into=run / f"iter{k}_pairs")
            policy = stages.train_dpo(policy, sft, [pairs], profile.dpo, *training, into=run / f"iter{k}_dpo")
        held_out = policies.answer_held_out(run, "last", policy, data, rm)
        batch_tokens, cache = profile.reward_model.batch_tokens, run.cache / "judge.jsonl"
        policies.evaluate_policy(
            held_out, reference, profile.evaluation, profile.world, None, batch_tokens, run.seed,
            cache_file=cache, into=run / "evaluation",
        )  # fmt: skip


def end_state(folder: Path) -> dict[str, Any]:
    """What counts of a finished run: each stage's key, rows, metrics but times, names of files, and contents.

    Contents are weights and JSON lines by their bytes, data sets by their rows, training logs by their losses.
    """
    from datasets import load_from_disk

    state: dict[str, Any] = {}
    for manifest_file in sorted(folder.glob("*/manifest.json")):
        stage, manifest = manifest_file.parent, read_json(manifest_file)
        files = sorted(path for path in stage.rglob("*") if path.is_file())
        contents: dict[str, Any] = {}
        for file in files:
            name = file.relative_to(stage).as_posix()
            if file.suffix in (".safetensors", ".jsonl"):
                contents[name] = hash_value(file.read_bytes().hex())
            elif file.name == "dataset_info.json":
                contents[name] = hash_value(repr(load_from_disk(str(file.parent)).to_list()))
            elif file.name == "log.json":
                contents[name] = [entry["loss"] for entry in read_json(file)["history"]]
        metrics = {name: value for name, value in manifest["metrics"].items() if "seconds" not in name}
        # The folder of shards is named after the weights' folder, in which some files tell the time.
        names = [re.sub("^shards-[0-9a-f]+", "shards", file.relative_to(stage).as_posix()) for file in files]
        state[stage.name] = {"key": manifest["key"], "rows": manifest["rows"], "metrics": metrics,
                             "files": names, "contents": contents}  # fmt: skip
    return state


def differences(folder: Path, expected: Mapping[str, Any]) -> list[str]:
    """Where a finished run differs from the undisturbed one; also what it left behind."""
    found = end_state(folder)
    wrong = [f"{name} is missing or new" for name in sorted(found.keys() ^ expected.keys())]
    for name in found.keys() & expected.keys():
        wrong += [f"{name}: {part}" for part in found[name] if found[name][part] != expected[name][part]]
    return wrong + [f"left: {path.relative_to(folder)}" for each in LEFT_BEHIND for path in folder.glob(each)]


# --- a child --------------------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a child ended: exit status (negative: the signal), the error lines, and whether processes outlived it."""

    status: int
    errors: list[str]
    orphans: bool


def attempt(
    folder: Path, fault: Fault | None = None, seconds: float | None = None, overrides: Overrides | None = None,
    watch: Callable[[int], None] | None = None,
) -> Ended:  # fmt: skip
    """Run in a forked child with a fault, killed after some seconds; `watch` (its process id) may do harm meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _child(folder, log, fault, overrides)
    with suppress(OSError):
        os.setpgid(child, child)  # here and in the child: whichever comes first
    until = time.monotonic() + seconds if seconds is not None else math.inf
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            until = math.inf
        if watch:
            watch(child)
        time.sleep(0.002)
    errors = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
    return Ended(os.waitstatus_to_exitcode(status), errors, _outlived(child))


def _child(folder: Path, log: Path, fault: Fault | None, overrides: Overrides | None) -> None:
    """The forked child's whole life: it never returns."""
    os.setpgid(0, 0)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os._exit(run_here(folder, fault, overrides))


def run_here(folder: Path, fault: Fault | None = None, overrides: Overrides | None = None) -> int:
    """The exit status of the run in this process; a failure is the line that the command line shows."""
    status = 0
    try:
        pretraining.STEPS_PER_CHECKPOINT = STEPS_PER_CHECKPOINT
        pretraining.TOKENIZER_DOCUMENTS = TOKENIZER_DOCUMENTS
        if fault:
            fault(folder)
        shrunk_run(folder, overrides)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        os.write(2, f"error: {_explained(error)}\n".encode())
        status = 1
    sys.stdout.flush()
    return status


def _outlived(group: int) -> bool:
    """Whether a process of a dead child's group is alive two seconds later; it is then ended."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    return True


# --- kills ----------------------------------------------------------------------------------------------------------


def kill_at_file(number: int, folder: Path) -> None:
    """Let this process kill itself before its `number`-th change of a file (or folder) below `folder`."""
    seen, root = 0, str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
        if event == "open" and isinstance(arguments[1], str):
            changes = any(mode in arguments[1] for mode in "wax+")
        if changes and isinstance(arguments[0], (str, os.PathLike)) and os.fspath(arguments[0]).startswith(root):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def place_of(folder: Path) -> str:
    """What a killed run was doing, from what it left: the stage, and the kind of file that it was writing."""
    partials = sorted(folder.glob(".partial/*@*"), key=lambda path: path.stat().st_mtime)
    if not partials:
        return "publishing or between stages"
    partial = partials[-1]
    stage = "".join(letter for letter in partial.name.split("@")[0] if not letter.isdigit())
    if (partial / "manifest.json").exists():
        return "publishing or between stages"
    if any(not (each / "trainer_state.json").exists() for each in partial.glob("checkpoints/checkpoint-*")):
        return f"{stage}: writing a checkpoint"
    if (partial / "checkpoint.new").exists():
        return f"{stage}: writing a checkpoint"
    if list(partial.glob("shards*/*.tmp")):
        return f"{stage}: writing a shard"
    if (partial / "model").exists() or (partial / "data").exists():
        return f"{stage}: writing the result"
    return stage


def kill_campaign(folder: Path, kills: int, draw: random.Random, until: float, expected: Mapping[str, Any],
                  seconds: float) -> dict[str, Any]:  # fmt: skip
    """Kill runs until there were so many kills, or until it is late; a finished run is compared, and the next begins.

    Half of the kills come at a random moment of the first third of a run's time, half before a random change of a file.
    """
    counts: Counter[str] = Counter()
    places: Counter[str] = Counter()
    wrong: list[str] = []
    while counts["kills"] < kills and time.monotonic() < until:
        counts["runs"] += 1
        for number in count():
            last = counts["kills"] >= kills or time.monotonic() > until
            fault, limit = None, None
            if not last and number % 2:
                fault = partial(kill_at_file, draw.randint(1, 60))
            elif not last:
                limit = draw.uniform(0.02, seconds / 3)
            ended = attempt(folder, fault, limit)
            counts["orphans"] += ended.orphans
            if ended.status == -signal.SIGKILL:
                counts["kills"] += 1
                places[place_of(folder)] += 1
                continue
            found = differences(folder, expected) if ended.status == 0 else ended.errors or [f"status {ended.status}"]
            counts["equal"] += not found
            wrong += found
            break
        shutil.rmtree(folder)
    return {**{name: counts[name] for name in ("kills", "runs", "equal", "orphans")}, "places": dict(sorted(
        places.items())), "wrong": wrong[:10]}  # fmt: skip


# --- damaged files --------------------------------------------------------------------------------------------------


def truncate(file: Path, draw: random.Random) -> None:
    """Cut the last half off."""
    os.truncate(file, file.stat().st_size // 2)


def flip_bit(file: Path, draw: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


# What is damaged: a file of a finished stage, and the stages after it, which are then removed and run again.
FINISHED = {
    "weights": ("sft/model/model.safetensors", ("bt", "*answers*", "iter*", "evaluation")),
    "config": ("sft/model/config.json", ("bt", "*answers*", "iter*", "evaluation")),
    "tokenizer": ("sft/model/tokenizer.json", ("bt", "*answers*", "iter*", "evaluation")),
    "manifest": ("bt/manifest.json", ("*answers*", "iter*", "evaluation")),
    "data set": ("iter2_pairs/data/data-00000-of-00001.arrow", ("iter2_dpo", "last*", "evaluation")),
    "responses": ("iter2_responses/data/data-00000-of-00001.arrow", ("iter2_[spd]*", "last*", "evaluation")),
}
# A file of an unfinished stage, which a kill has left: the stage, and a pattern in its working folder.
UNFINISHED = {
    "shard": ("iter2_responses", "shards-*/00001.arrow"),
    "checkpoint weights": ("sft", "checkpoints/checkpoint-*/model.safetensors"),
    "checkpoint optimiser": ("sft", "checkpoints/checkpoint-*/optimizer.pt"),
    "checkpoint state": ("sft", "checkpoints/checkpoint-*/trainer_state.json"),
    "base checkpoint": ("base_model", "checkpoint.pt"),
}


def judged(folder: Path, ended: Ended, mend: Callable[[], None], expected: Mapping[str, Any],
           place: str = "") -> dict[str, Any]:  # fmt: skip
    """The outcome of a fault: how the run ended, and whether it goes on once the fault (at `place`) is mended."""
    if ended.status == 0:
        found = differences(folder, expected)
        return {"outcome": "silent" if found else "unharmed", "differs": found[:5]}
    mend()
    again = attempt(folder)
    resumed = again.status == 0 and not differences(folder, expected)
    clear = ended.status == 1 and len(ended.errors) == 1 and len(ended.errors[0]) < 1100 and resumed
    more = {} if resumed else {"then": again.errors or differences(folder, expected)[:5]}
    line = " ".join(ended.errors).replace(str(folder), "run")
    return {"outcome": "obscure" if not clear else "one_line" if place in line else "unnamed", "line": line, **more}


def damage_finished(folder: Path, done: Path, what: str, harm: Callable[..., None], draw: random.Random,
                    expected: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """Damage a file of a finished stage and run what comes after it; mended by removing the damaged stage."""
    place, later = FINISHED[what]
    shutil.copytree(done, folder)
    for stage in {path for pattern in later for path in folder.glob(pattern)}:
        shutil.rmtree(stage)
    harm(folder / place, draw)
    ended = attempt(folder)
    stage_name = place.split("/")[0]
    result = judged(folder, ended, lambda: shutil.rmtree(folder / stage_name), expected, stage_name)
    shutil.rmtree(folder)
    return result


def kill_beside(name: str, pattern: str, folder: Path) -> None:
    """Kill this process as soon as a stage's working folder holds two files of a pattern (or one, of a single one)."""
    wanted = 2 if "*" in pattern else 1
    if "shards" in pattern:
        pattern = "shards-*/*.arrow"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename") and str(folder) in str(arguments[0]):
            found = list(folder.glob(f".partial/{name}@*/{pattern}"))
            whole = [each for each in found if each.parent.parent.name != "checkpoints"
                     or (each.parent / "trainer_state.json").exists()]  # fmt: skip
            if len(whole) >= wanted:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def damage_unfinished(folder: Path, done: Path, what: str, harm: Callable[..., None], draw: random.Random,
                      expected: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """Kill a run inside a stage, damage the newest file that this left, and go on; mended by removing the rest."""
    name, pattern = UNFINISHED[what]
    shutil.copytree(done, folder)
    shutil.rmtree(folder / name)
    killed = attempt(folder, partial(kill_beside, name, pattern))
    files = sorted(folder.glob(f".partial/{name}@*/{pattern}"))
    if killed.status != -signal.SIGKILL or not files:
        raise RuntimeError(f"{what}: the run was not killed in {name}: {killed}")
    harm(files[-1], draw)
    ended = attempt(folder)
    result = judged(folder, ended, lambda: shutil.rmtree(folder / ".partial"), expected, name)
    shutil.rmtree(folder)
    return result


# --- what a machine does --------------------------------------------------------------------------------------------


def large_files_fail(limit: int, folder: Path) -> None:
    """No file may grow beyond so many bytes: the last one is cut off, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def clock_goes_back(folder: Path) -> None:
    """After a while the clock stands still; later it is a day earlier."""
    real, calls = time.time, 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        return real() if calls < 40 else 1_700_000_000.0 if calls < 400 else real() - 86_400

    time.time = clock


def without_override(folder: Path) -> None:
    """Obey the permissions of folders as root, too: run this program anew without the capability to ignore them."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)
    os.execv(sys.executable, [sys.executable, __file__, "run", "--folder", str(folder)])


def read_only(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The run folder may not be written."""
    folder.mkdir()
    (folder / ".lock").touch()
    folder.chmod(0o555)
    ended = attempt(folder, without_override)
    result = judged(folder, ended, lambda: folder.chmod(0o755), expected, "Permission denied")
    shutil.rmtree(folder)
    return result


def small_limit(folder: Path, done: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Files may be no larger than half of the weights."""
    limit = (done / "sft" / "model" / "model.safetensors").stat().st_size // 2
    shutil.copytree(done, folder)
    for pattern in ("sft", "bt", "*answers*", "iter*", "evaluation"):
        for stage in list(folder.glob(pattern)):
            shutil.rmtree(stage)
    result = judged(folder, attempt(folder, partial(large_files_fail, limit)), lambda: None, expected, "File too large")
    shutil.rmtree(folder)
    return result


def full_disk(folder: Path, size: int, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The run folder is a file system of so many bytes; later of many more. `not run` where none can be mounted."""
    folder.mkdir()

    def mount(*options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def grow() -> None:
        mount("remount", "size=1g")

    if mount(f"size={size}"):
        return {"outcome": "not run", "line": "mounting a file system needs root"}
    try:
        result = judged(folder, attempt(folder), grow, expected, "No space left")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
    return result


def changed_clock(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The clock stands still and is then set back by a day."""
    result = judged(folder, attempt(folder, clock_goes_back), lambda: None, expected)
    shutil.rmtree(folder)
    return result


def descendants(root: int) -> dict[int, str]:
    """Process id -> command line of all processes below one."""
    parents, commands = dict[int, int](), dict[int, str]()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")

    def below(process: int) -> bool:
        while process in parents and parents[process] != process:
            process = parents[process]
            if process == root:
                return True
        return False

    return {process: commands[process] for process in parents if below(process) and process in commands}


def dead_worker(folder: Path, overrides: Overrides, words: tuple[str, ...]) -> dict[str, Any]:
    """One process of several is killed while it works, as for want of memory; the run goes on in a second attempt."""
    killed: list[int] = []

    def watch(child: int) -> None:
        time.sleep(0.1)
        workers = [each for each, command in descendants(child).items() if all(word in command for word in words)]
        if workers and not killed:
            time.sleep(0.5)
            killed.append(workers[-1])
            with suppress(ProcessLookupError):
                os.kill(workers[-1], signal.SIGKILL)

    ended = attempt(folder, overrides=overrides, watch=watch)
    again = attempt(folder, overrides=overrides)
    clear = bool(killed) and ended.status == 1 and len(ended.errors) == 1 and again.status == 0
    shutil.rmtree(folder)
    orphans = ended.orphans or again.orphans
    outcome = "one_line" if clear and not orphans else "obscure"
    return {"outcome": outcome, "line": "".join(ended.errors), "orphans": orphans, "then": again.errors}


# --- fuzzed rows, files and replies ---------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, 0, -1, 10**400, 1e308, math.nan, math.inf, "", " ", "\u200b", "\ud800", "\u202e", "\x00", "<|end|>",
    "\n\nHuman: a\n\nAssistant: b", [], {}, [None], [[]], {"role": "tool", "content": "x"}, [{"role": 1}], "x" * 5000,
]  # fmt: skip


def mutate(value: Any, draw: random.Random) -> Any:
    """A row with one place of it changed: removed, repeated, renamed, or replaced by something odd."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        others = {name: item for name, item in value.items() if name != key}
        kind = draw.random()
        if kind < 0.12:
            return others
        return {**others, f"{key}_" if kind < 0.18 else key: mutate(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        kind = draw.random()
        if kind < 0.12:
            return value[:place] + value[place + 1 :]
        if kind < 0.2:
            return [*value[:place], value[place], *value[place:]]
        return [*value[:place], mutate(value[place], draw), *value[place + 1 :]]
    if isinstance(value, str) and value and draw.random() < 0.5:
        place = draw.randrange(len(value))
        return value[:place] + str(draw.choice(ODD)) + value[place:]
    return draw.choice(ODD)


def fuzz_rows(world: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Native rows of every source of the world, changed once to three times, through converters and filters."""
    sources = [*TINY.data.preference_sources, *TINY.data.sft_sources, *TINY.data.prompt_sources]
    sources += [TINY.data.offline_source] if TINY.data.offline_source else []
    natives = [(source, row) for source in sources for file in source.files or [] for row in file_rows(world / file)]
    outcomes: Counter[str] = Counter()
    crashes: list[str] = []
    for number in range(count):
        source, row = draw.choice(natives)
        for _ in range(draw.randint(1, 3)):
            row = mutate(row, draw)
        if not isinstance(row, dict):
            row = {"row": row}
        try:
            records = convert(source, f"fuzz:{number}", row)
            outcomes.update({fate_of(record, source) for record in records} or {"no_record"})
        except SourceError as error:
            outcomes["refused in one line" if "\n" not in str(error) else "refused in several lines"] += 1
        except Exception as error:
            outcomes["crashed"] += 1
            crashes.append(f"{source.schema_name}: {type(error).__name__}: {error}"[:200])
    return {"rows": count, "outcomes": dict(outcomes.most_common()), "crashes": crashes[:5]}


def fate_of(record: Any, source: SourceSettings) -> str:
    """`kept`, or the reason for which the filters drop a record."""
    if isinstance(record, Candidate):
        reason = first_failure(record, TINY.data.filters, source.name)
    elif isinstance(record, Conversation):
        reason = conversation_failure(record)
    else:
        reason = structural_failure([record.prompt])
    return f"dropped: {reason}" if reason else "kept"


def file_bytes(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """The rows (of text fields) as a file of that name."""
    import pandas as pd

    frame, name = pd.DataFrame(rows), suffix.removesuffix(".gz")
    if name == ".parquet":
        return frame.to_parquet()
    text = {".jsonl": lambda: "".join(f"{json.dumps(row)}\n" for row in rows), ".json": lambda: json.dumps(rows),
            ".csv": lambda: frame.to_csv(index=False)}[name]()  # fmt: skip
    return gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode()


def fuzz_files(folder: Path, count: int, draw: random.Random) -> dict[str, Any]:
    """Files of every kind with bytes cut off, changed, put in or taken out: read, or refused in one line."""
    rows = [{"prompt": f"question {i}, \u00e4", "answer": f"line\n{i}"} for i in range(20)]
    kinds = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz")
    whole = {suffix: file_bytes(rows, suffix) for suffix in kinds}
    outcomes: Counter[str] = Counter()
    crashes: list[str] = []
    folder.mkdir(exist_ok=True)
    for _ in range(count):
        suffix = draw.choice(list(whole))
        content, place = whole[suffix], draw.randrange(len(whole[suffix]))
        noise = draw.randbytes(draw.randint(1, 4))
        content = draw.choice([
            content[:place], content[:place] + noise + content[place + len(noise) :],
            content[:place] + noise + content[place:], content[:place] + content[place + 3 :], noise * 5,
            b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content * 2,
        ])  # fmt: skip
        file = folder / f"rows{suffix}"
        file.write_bytes(content)
        try:
            found = list(file_rows(file))
            outcomes["read as it was" if found == rows else "read otherwise"] += 1
        except SourceError as error:
            outcomes["refused in one line" if "\n" not in str(error) else "refused in several lines"] += 1
        except Exception as error:
            outcomes["crashed"] += 1
            crashes.append(f"{suffix}: {type(error).__name__}: {error}"[:200])
    shutil.rmtree(folder)
    return {"files": count, "outcomes": dict(outcomes.most_common()), "crashes": crashes[:5]}


NOISE = [
    "I think ", "[", "]", "[[", "]]", "A", "B", "tie", "7", "10", ".5", "\n", "**", " is better: ", "rating: ", ">",
    ">>", "=", "\u00e9\u4e2d", "\ud800", "[1]", "0", "\x00", "{", "}", "%s", "((", " ",
]  # fmt: skip
VERDICTS: dict[str, tuple[Callable[[str], Any], dict[str, Any]]] = {
    "pair": (judges.parse_verdict, {"[[A]]": "A", "[[B]]": "B", "[[tie]]": "tie"}),
    "grade": (mt_bench.parse_grade, {"[[7]]": 7.0, "[[9.5]]": 9.5, "[[11]]": None}),
    "arena": (arena_hard.parse_verdict, {f"[[{each}]]": each for each in ("A>>B", "A>B", "A=B", "B>A", "B>>A")}),
}


def fuzz_replies(count: int, draw: random.Random) -> dict[str, Any]:
    """Judge replies: noise alone (a verdict or none, never a crash), and a verdict among words, which must be read."""
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        name = draw.choice(list(VERDICTS))
        parse, known = VERDICTS[name]
        noise = [draw.choice(NOISE) for _ in range(draw.randint(0, 25))]
        try:
            if draw.random() < 0.5:
                text = draw.choice(list(known))
                words = "".join(piece for piece in noise if not set(piece) & set("[]"))
                outcomes["verdict read" if parse(f"{words} {text} {words}") == known[text] else "misread"] += 1
            else:
                found = parse("".join(noise))
                valid = found is None or found in known.values() or (name == "grade" and 1 <= found <= 10)
                outcomes["noise: no verdict" if found is None else "noise: a verdict" if valid else "misread"] += 1
        except Exception as error:
            outcomes[f"crashed: {type(error).__name__}"] += 1
    return {"replies": count, "outcomes": dict(outcomes.most_common())}


# --- the campaign ---------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    """How much of the campaign to run."""

    kills: int
    damages: list[str]  # names of `FINISHED` and `UNFINISHED`
    machine: list[str]  # names of `machine_faults`
    rows: int
    files: int
    replies: int


def machine_faults(folder: Path, done: Path, expected: Mapping[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> a fault of the machine."""
    two = {"num_processes": 2, "use_cpu": True}
    return {
        "read-only folder": lambda: read_only(folder, expected),
        "file size limit": lambda: small_limit(folder, done, expected),
        "full disk": lambda: full_disk(folder, MOUNTED, expected),
        "clock set back": lambda: changed_clock(folder, expected),
        "dead data worker": lambda: dead_worker(folder, {"data.workers": 2}, ("spawn_main",)),
        "dead training process": lambda: dead_worker(
            folder, {"launch": two, "iterative.iterations": 1}, ("training.trainers", "job.json")
        ),
    }


def campaign(folder: Path, size: Size, seed: int, minutes: float) -> dict[str, Any]:
    """Everything, cheap parts first; what the minutes do not hold is left out and shows in the counts."""
    for module in LOADED:  # once, before the forks
        importlib.import_module(module)
    until, draw = time.monotonic() + 60 * minutes, random.Random(seed)
    done, broken = folder / "undisturbed", folder / "run"
    started = time.monotonic()
    first = attempt(done)
    seconds = time.monotonic() - started
    if first.status:
        raise RuntimeError(f"the undisturbed run failed: {first}")
    expected = end_state(done)
    print(f"the undisturbed run took {seconds:.0f} s, {len(expected)} stages", flush=True)
    result: dict[str, Any] = {
        "seed": seed, "undisturbed_seconds": round(seconds, 1), "stages": len(expected),
        "rows": fuzz_rows(done / "world", size.rows, draw), "files": fuzz_files(folder / "files", size.files, draw),
        "replies": fuzz_replies(size.replies, draw),
    }  # fmt: skip
    damages: dict[str, Callable[[], dict[str, Any]]] = {}
    for what in size.damages:
        damage = damage_finished if what in FINISHED else damage_unfinished
        for name, harm in (("truncated", truncate), ("bit flipped", flip_bit)):
            damages[f"{what} {name}"] = partial(damage, broken, done, what, harm, draw, expected)
    machine = {name: run for name, run in machine_faults(broken, done, expected).items() if name in size.machine}
    for title, faults in (("damages", damages), ("machine", machine)):
        found = result[title] = {}
        for name, run in faults.items():
            if time.monotonic() < until:
                found[name] = run()
                print(f"{name}: {found[name]}", flush=True)
    result["kills"] = kill_campaign(broken, size.kills, draw, until, expected, seconds)
    print(f"kills: {result['kills']}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("campaign", "run"), default="campaign", help="run: once")
    parser.add_argument("--folder", type=Path, help="run: where to")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="no new fault begins after so many minutes")
    parser.add_argument("--short", action="store_true", help="a few faults of each kind")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    quiet_libraries()
    if options.command == "run":
        return run_here(options.folder.resolve())
    everything = Size(options.kills, [*FINISHED, *UNFINISHED], [*MACHINE], 10_000, 2_000, 1_000)
    size = Size(options.kills, *SHORT) if options.short else everything
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        result = campaign(Path(folder), size, options.seed, options.minutes)
    command = f"python benchmarks/faults.py --kills {options.kills} --seed {options.seed} --minutes {options.minutes:g}"
    write_json(options.out, {**result, "command": command, "provenance": provenance()})
    return 0


MACHINE = ("read-only folder", "file size limit", "full disk", "clock set back", "dead data worker",
           "dead training process")  # fmt: skip
SHORT: tuple[list[str], list[str], int, int, int] = (["weights", "shard"], ["file size limit"], 200, 60, 100)

if __name__ == "__main__":
    sys.exit(main())
