"""A fault campaign: a small run is killed, starved and damaged, and must end as if nothing had happened.

The run calls the stages of the chapters in a world of a few rows: base model, SFT, reward model, two iterations. Each
attempt is a forked child, so that a kill falls into the work and not into imports. ::

    python benchmarks/faults.py --kills 200 --seed 0 --minutes 30

Writes `results/faults/campaign.json` and from it the table in CONTRIBUTING.md. `OUTCOMES` says how a fault may end; the
exit status is 1 where something happened that must not (`failures`).
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
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

import fuzz
import psutil

from rlhflow_utils.__main__ import _explained
from rlhflow_utils.data.mixtures import build_preference_data
from rlhflow_utils.evaluation import policies
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.publishing import replace_block
from rlhflow_utils.guide.run import Run, locked, quiet_libraries
from rlhflow_utils.guide.stage import PROJECT, file_digest, hash_value, provenance, read_json, write_json
from rlhflow_utils.guide.tables import markdown_table
from rlhflow_utils.models.reward_model import score_responses
from rlhflow_utils.online.generation import generate_responses, prompts_of_iteration
from rlhflow_utils.online.pair_building import build_preference_pairs
from rlhflow_utils.simulator.world import build_world
from rlhflow_utils.training import pretraining, stages

TARGET, SHOWN = PROJECT / "results" / "faults" / "campaign.json", PROJECT / "CONTRIBUTING.md"
SHRUNK = str(PROJECT / "tests" / "fixtures" / "shrunk.yaml")
SMALL: dict[str, Any] = {  # with a checkpoint after almost every step, so that few kills meet many of them
    "world.sft.demonstrations": 60, "world.sft.translations": 10, "world.sft.judgements": 10, "world.prompts": 24,
    "world.eval_prompts": 12,
    "base_model.block_size": 64, "base_model.blocks_per_batch": 4, "base_model.tokens": 30_000,
    "sft.global_batch_size": 16, "sft.trainer.per_device_train_batch_size": 8, "sft.trainer.save_steps": 1,
    "reward_model.trainer.per_device_train_batch_size": 8, "reward_model.trainer.save_steps": 2,
    "dpo.global_batch_size": 4, "dpo.trainer.per_device_train_batch_size": 4, "dpo.trainer.save_steps": 1,
    "generation.shard_size": 2, "iterative.iterations": 2, "iterative.prompts_per_iteration": 10,
    "data.evaluation_prompts": 12,
}  # fmt: skip
STEPS_PER_CHECKPOINT, TOKENIZER_DOCUMENTS = 20, 500  # of pretraining
LOADED = ("rlhflow_utils.training.trainers", "rlhflow_utils.online.engines", "trl.trainer.dpo_trainer",
          "trl.trainer.reward_trainer", "trl.trainer.sft_trainer", "datasets", "pandas", "pyarrow.parquet",
          "transformers.models.llama.modeling_llama")  # fmt: skip
LEFT_BEHIND = (".partial/*", "**/*.tmp", "**/*.new", "**/*.old", "**/*.removed", "**/checkpoint*", "**/cache-*.arrow")
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24  # linux/capability.h, linux/prctl.h: root may write into any folder
SMALL_DISK = 2**20  # bytes; a whole run needs half as much again
OUTCOMES = {
    "one_line": "stopped in one line that names the place; went on once mended",
    "unharmed": "ended like the undisturbed run",
    "unnamed": "stopped in one line that does not name the place",  # and these must not be:
    "obscure": "stopped in several lines, or could not go on",
    "silent": "ended otherwise than the undisturbed run, without a word",
}
Overrides = dict[str, Any]
Fault = Callable[[Path], None]  # called in the child, before the run
Result = dict[str, Any]


# --- the run, and what it left --------------------------------------------------------------------------------------


def shrunk_run(folder: Path, overrides: Overrides) -> None:
    """The stages of chapters 00 to 03 and 07 to 10, as the chapters call them."""
    profile = load_profile(SHRUNK, {**SMALL, **overrides}, 0)
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
        contents: dict[str, Any] = {}
        for name in manifest["contents"]:
            file = stage / name
            if file.suffix in (".safetensors", ".jsonl"):
                contents[name] = file_digest(file)
            elif file.name == "dataset_info.json":
                contents[name] = hash_value(repr(load_from_disk(str(file.parent)).to_list()))
            elif file.name == "log.json":
                contents[name] = [entry["loss"] for entry in read_json(file)["history"]]
        metrics = {name: value for name, value in manifest["metrics"].items() if "seconds" not in name}
        # The folder of shards is named after the weights' folder, in which some files tell the time.
        names = [re.sub("^shards-[0-9a-f]+", "shards", name) for name in manifest["contents"]]
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
    folder: Path, fault: Fault | None = None, overrides: Overrides | None = None,
    seconds: float = math.inf, watch: Callable[[int], None] | None = None,
) -> Ended:  # fmt: skip
    """Run in a forked child with a fault, killed after some seconds; `watch` (its process id) may do harm meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    log, until = folder.with_name(f"{folder.name}.log"), time.monotonic() + seconds
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os._exit(run_here(folder, fault, overrides))
    with suppress(OSError):
        os.setpgid(child, child)  # here and in the child: whichever comes first
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            until = math.inf
        if watch:
            watch(child)
        time.sleep(0.002)
    errors = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
    return Ended(os.waitstatus_to_exitcode(ended[1]), errors, outlived(child))


def run_here(folder: Path, fault: Fault | None = None, overrides: Overrides | None = None) -> int:
    """The exit status of the run in this process; a failure is the line that the command line shows."""
    status = 0
    try:
        pretraining.STEPS_PER_CHECKPOINT, pretraining.TOKENIZER_DOCUMENTS = STEPS_PER_CHECKPOINT, TOKENIZER_DOCUMENTS
        if fault:
            fault(folder)
        shrunk_run(folder, overrides or {})
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        os.write(2, f"error: {_explained(error)}\n".encode())
        status = 1
    sys.stdout.flush()
    return status


def outlived(group: int) -> bool:
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


def at_file_events(folder: Path, harm: Callable[[bool], None]) -> None:
    """Call `harm` before every file operation of this process below `folder`, with whether it changes something."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
        if (changes or event == "open") and isinstance(arguments[0], (str, os.PathLike)):
            mode = arguments[1] if event == "open" else ""
            changes = changes or (isinstance(mode, str) and bool(set(mode) & set("wax+")))
            if os.fspath(arguments[0]).startswith(str(folder)):
                harm(changes)

    sys.addaudithook(hook)


def kill_at_change(number: int, folder: Path) -> None:
    """Let this process kill itself before its `number`-th change of a file or folder below `folder`."""
    left = count(number - 1, -1)
    at_file_events(folder, lambda changes: os.kill(os.getpid(), signal.SIGKILL) if changes and not next(left) else None)


def place_of(folder: Path) -> str:
    """What a killed run was doing, from what it left: the stage, and the kind of file that it was writing."""
    partials = sorted(folder.glob(".partial/*@*"), key=lambda path: path.stat().st_mtime)
    if not partials or (partials[-1] / "manifest.json").exists():
        return "publishing or between stages"
    partial, stage = partials[-1], re.sub(r"\d|@.*", "", partials[-1].name)
    cut_off = [each for each in partial.glob("checkpoints/checkpoint-*") if not (each / "manifest.json").exists()]
    if cut_off or (partial / "checkpoint.tmp").exists():
        return f"{stage}: writing a checkpoint"
    if list(partial.glob("shards*/*.tmp")):
        return f"{stage}: writing a shard"
    return f"{stage}: writing the result" if (partial / "model").exists() or (partial / "data").exists() else stage


# --- damaged files --------------------------------------------------------------------------------------------------


def truncate(file: Path, draw: random.Random) -> None:
    """Cut the last half off."""
    os.truncate(file, file.stat().st_size // 2)


def flip_bit(file: Path, draw: random.Random) -> None:
    """Flip one bit; size and time of change stay, as where a disk goes bad."""
    content, before = bytearray(file.read_bytes()), file.stat()
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


HARMS = {"truncated": truncate, "bit flipped": flip_bit}
AFTER_SFT = ("bt", "*answers*", "iter*", "evaluation")
# What is damaged: a file of a finished stage, and the stages after it, which are then removed and run again.
FINISHED = {
    "weights": ("sft/model/model.safetensors", AFTER_SFT),
    "config": ("sft/model/config.json", AFTER_SFT),
    "tokenizer": ("sft/model/tokenizer.json", AFTER_SFT),
    "manifest": ("bt/manifest.json", AFTER_SFT[1:]),
    "data set": ("iter2_pairs/data/data-00000-of-00001.arrow", ("iter2_dpo", "last*", "evaluation")),
    "responses": ("iter2_responses/data/data-00000-of-00001.arrow", ("iter2_[spd]*", "last*", "evaluation")),
}
# A file of an unfinished stage, killed as soon as another file is there: the stage, the damaged file, the other one.
CHECKPOINT = "checkpoints/checkpoint-2/"
UNFINISHED = {
    "shard": ("iter2_responses", "shards-*/00001.*.arrow", "shards-*/00001.*.arrow"),
    "scores": ("iter2_scores", "shards/00000.*.json", "shards/00000.*.json"),
    "checkpoint weights": ("sft", f"{CHECKPOINT}model.safetensors", f"{CHECKPOINT}manifest.json"),
    "checkpoint optimiser": ("sft", f"{CHECKPOINT}optimizer.pt", f"{CHECKPOINT}manifest.json"),
    "checkpoint state": ("sft", f"{CHECKPOINT}trainer_state.json", f"{CHECKPOINT}manifest.json"),
    "checkpoint manifest": ("sft", f"{CHECKPOINT}manifest.json", f"{CHECKPOINT}manifest.json"),
    "unfinished checkpoint": ("sft", f"{CHECKPOINT}model.safetensors", f"{CHECKPOINT}trainer_state.json"),
    "base checkpoint": ("base_model", "checkpoint.*.pt", "checkpoint.*.pt"),
}


def remove(folder: Path, *patterns: str) -> None:
    """Remove the stages of these names."""
    for stage in {path for pattern in patterns for path in folder.glob(pattern)}:
        shutil.rmtree(stage)


def kill_beside(stage: str, pattern: str, folder: Path) -> None:
    """Kill this process at the first file operation after a file is there in the working folder of a stage."""

    def harm(changes: bool) -> None:
        if list(folder.glob(f".partial/{stage}@*/{pattern}")):
            os.kill(os.getpid(), signal.SIGKILL)

    at_file_events(folder, harm)


class Campaign:
    """An undisturbed run, and faults of others, which begin in a `folder` of their own or in a copy of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.done, self.folder, self.draw = folder / "undisturbed", folder / "run", random.Random(seed)
        started = time.monotonic()
        if (first := attempt(self.done)).status:
            raise RuntimeError(f"the undisturbed run failed: {first}")
        self.seconds, self.expected = time.monotonic() - started, end_state(self.done)

    def judged(self, ended: Ended, place: str, mend: Callable[[], object] = lambda: None,
               overrides: Overrides | None = None, expected: Mapping[str, Any] | None = None) -> Result:  # fmt: skip
        """The outcome of a fault: how the run ended, and whether it goes on once the fault (at `place`) is mended."""
        expected = expected or self.expected
        if ended.status == 0:
            found = differences(self.folder, expected)
            return {"outcome": "silent" if found else "unharmed", "orphans": ended.orphans, "differs": found[:5]}
        mend()
        again = attempt(self.folder, overrides=overrides)
        wrong = again.errors if again.status else differences(self.folder, expected)
        clear = ended.status == 1 and len(ended.errors) == 1 and len(ended.errors[0]) < 1100
        line = " ".join(ended.errors).replace(os.path.relpath(self.folder, PROJECT), "run")
        line = line.replace(str(self.folder), "run")
        outcome = "silent" if wrong and not again.status else "obscure" if wrong or not clear else "one_line"
        outcome = "unnamed" if outcome == "one_line" and place not in line else outcome
        return {"outcome": outcome, "orphans": ended.orphans or again.orphans, "line": line, "differs": wrong[:5]}

    def damage(self, what: str, harm: Callable[[Path, random.Random], None]) -> Result:
        """Damage a file of a finished stage, or the one that a kill left, and run; mended by removing that stage."""
        shutil.copytree(self.done, self.folder)
        if what in FINISHED:
            file, later = FINISHED[what]
            stage = removed = file.split("/")[0]
            pattern = file
            remove(self.folder, *later)
        else:
            stage, file, beside = UNFINISHED[what]
            pattern, removed = f".partial/{stage}@*/{file}", ".partial"
            remove(self.folder, stage)
            attempt(self.folder, partial(kill_beside, stage, beside))
        [damaged] = self.folder.glob(pattern)
        harm(damaged, self.draw)
        return self.judged(attempt(self.folder), stage, lambda: remove(self.folder, removed))

    # --- what a machine does

    def read_only(self) -> Result:
        """The run folder may not be written."""
        self.folder.mkdir()
        (self.folder / ".lock").touch()
        self.folder.chmod(0o555)
        ended = attempt(self.folder, without_override)
        return self.judged(ended, "Permission denied", lambda: self.folder.chmod(0o755))

    def small_limit(self) -> Result:
        """Files may be no larger than half of the weights."""
        limit = (self.done / "sft" / "model" / "model.safetensors").stat().st_size // 2
        shutil.copytree(self.done, self.folder)
        remove(self.folder, "sft", *AFTER_SFT)
        return self.judged(attempt(self.folder, partial(large_files_fail, limit)), "File too large")

    def full_disk(self) -> Result:
        """The run folder is a small file system, and later a large one. `not run` where none can be mounted."""
        self.folder.mkdir()

        def mount(options: str) -> bool:
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0

        if not mount(f"size={SMALL_DISK}"):
            return {"outcome": "not run", "line": "mounting a file system needs root"}
        try:
            return self.judged(attempt(self.folder), "No space left", lambda: mount("remount,size=1g"))
        finally:
            subprocess.run(["umount", str(self.folder)], check=True)

    def changed_clock(self) -> Result:
        """The clock stands still and is then set back by a day."""
        return self.judged(attempt(self.folder, clock_goes_back), "")

    def dead_worker(self, overrides: Overrides, *words: str) -> Result:
        """One process of several (with these words in its command) is killed while it works, as for want of memory."""
        undisturbed = attempt(self.folder, overrides=overrides)
        expected, killed = end_state(self.folder), list[psutil.Process]()
        shutil.rmtree(self.folder)

        def watch(child: int) -> None:
            time.sleep(0.1)
            with suppress(psutil.Error):
                below = psutil.Process(child).children(recursive=True)
                workers = [each for each in below if all(word in " ".join(each.cmdline()) for word in words)]
                if workers and not killed:
                    time.sleep(0.5)
                    killed.append(workers[-1])
                    workers[-1].kill()

        ended = attempt(self.folder, overrides=overrides, watch=watch)
        if undisturbed.status or not killed:
            return {"outcome": "obscure", "line": f"no process {words} was killed: {undisturbed}, {ended}"}
        return self.judged(ended, "", overrides=overrides, expected=expected)

    def machine(self) -> dict[str, Callable[[], Result]]:
        """Name -> a fault of the machine."""
        two = {"launch": {"num_processes": 2, "use_cpu": True}, "iterative.iterations": 1,
               "dpo.trainer.per_device_train_batch_size": 2}  # fmt: skip
        return {
            "read-only folder": self.read_only, "file size limit": self.small_limit, "full disk": self.full_disk,
            "clock set back": self.changed_clock,
            "dead data worker": partial(self.dead_worker, {"data.workers": 2}, "spawn_main"),
            "dead training process": partial(self.dead_worker, two, "training.trainers", "job.json"),
        }  # fmt: skip

    def kills(self, wanted: int, until: float) -> Result:
        """Kill runs so often, or until it is late; a run that ends is compared, and the next one begins.

        Half of the kills come at a random moment of the first third of a run's time, half before a random change of a
        file.
        """
        counts = Counter(dict.fromkeys(("kills", "runs", "equal", "orphans"), 0))
        places, wrong = Counter[str](), list[str]()
        while counts["kills"] < wanted and time.monotonic() < until:
            counts["runs"] += 1
            for number in count():
                fault, limit = None, math.inf
                if counts["kills"] < wanted and time.monotonic() < until:
                    if number % 2:
                        fault = partial(kill_at_change, self.draw.randint(1, 60))
                    else:
                        limit = self.draw.uniform(0.02, self.seconds / 3)
                ended = attempt(self.folder, fault, seconds=limit)
                counts["orphans"] += ended.orphans
                if ended.status != -signal.SIGKILL:
                    break
                counts["kills"] += 1
                places[place_of(self.folder)] += 1
            found = ended.errors or [f"status {ended.status}"]
            found = found if ended.status else differences(self.folder, self.expected)
            counts["equal"] += not found
            wrong += found
            shutil.rmtree(self.folder)
        return {**counts, "places": dict(sorted(places.items())), "wrong": wrong[:10]}


def large_files_fail(limit: int, folder: Path) -> None:
    """No file may grow beyond so many bytes: the last one is cut off, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def clock_goes_back(folder: Path) -> None:
    """After a while the clock stands still; later it is a day earlier."""
    real, calls = time.time, count()

    def clock() -> float:
        call = next(calls)
        return real() if call < 40 else 1_700_000_000.0 if call < 400 else real() - 86_400

    time.time = clock


def without_override(folder: Path) -> None:
    """Obey the permissions of folders as root, too: run this program anew without the capability to ignore them."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)
    os.execv(sys.executable, [sys.executable, __file__, "run", "--folder", str(folder)])


# --- the campaign ---------------------------------------------------------------------------------------------------


class Size(NamedTuple):
    """How much of the campaign to run."""

    damages: list[tuple[str, str]]  # of `FINISHED` or `UNFINISHED`, and of `HARMS`
    machine: list[str]  # names of `Campaign.machine`; empty: all
    rows: int
    files: int
    replies: int


EVERYTHING = Size([(what, harm) for what in (*FINISHED, *UNFINISHED) for harm in HARMS], [], 10_000, 2_000, 1_000)
SHORT = Size(
    [(what, "bit flipped") for what in ("weights", "shard", "checkpoint weights")], ["file size limit"], 200, 60, 100
)


def run_campaign(folder: Path, size: Size, kills: int, seed: int, minutes: float) -> Result:
    """Everything, cheap parts first; what the minutes do not hold is left out and shows in the counts."""
    for module in LOADED:  # once, before the forks
        importlib.import_module(module)
    until, campaign = time.monotonic() + 60 * minutes, Campaign(folder, seed)
    draw, done = campaign.draw, campaign.done
    print(f"the undisturbed run took {campaign.seconds:.0f} s, {len(campaign.expected)} stages", flush=True)
    result: Result = {
        "seed": seed, "undisturbed_seconds": round(campaign.seconds, 1), "stages": len(campaign.expected),
        "rows": fuzz.rows(done / "world", size.rows, draw), "files": fuzz.files(folder / "files", size.files, draw),
        "replies": fuzz.replies(size.replies, draw),
    }  # fmt: skip
    chosen = {f"{what} {harm}": partial(campaign.damage, what, HARMS[harm]) for what, harm in size.damages}
    machine = {name: fault for name, fault in campaign.machine().items() if name in (size.machine or [name])}
    kinds = {
        "published": {name: fault for name, fault in chosen.items() if name.startswith(tuple(FINISHED))},
        "unfinished": {name: fault for name, fault in chosen.items() if name.startswith(tuple(UNFINISHED))},
        "machine": machine,
    }
    for kind, faults in kinds.items():
        result[kind] = {}
        for name, fault in faults.items():
            if time.monotonic() < until:
                result[kind][name] = fault()
                shutil.rmtree(campaign.folder)
                print(f"{name}: {result[kind][name]}", flush=True)
    result["kills"] = campaign.kills(kills, until)
    print(f"kills: {result['kills']}", flush=True)
    return result


def failures(result: Mapping[str, Any]) -> list[str]:
    """What happened that must not."""
    found = [f"after kills: {each}" for each in result["kills"]["wrong"]]
    found += ["processes outlived a kill"] * result["kills"]["orphans"]
    for kind in ("published", "unfinished", "machine"):
        for name, fault in result[kind].items():
            wrong = fault["outcome"] in ("unnamed", "obscure", "silent")
            found += [f"{name}: {fault}"] if wrong or fault.get("orphans") else []
    for kind in ("rows", "files", "replies"):
        bad = {"crashed", "misread", "refused in several lines"} & result[kind]["outcomes"].keys()
        found += [f"{kind}: {sorted(bad)}, {result[kind]['crashes']}"] if bad else []
    return found


def table(result: Mapping[str, Any]) -> str:
    """The block of CONTRIBUTING.md: each kind of fault, how often it was tried, and how that ended."""
    kills, rows = result["kills"], list[dict[str, Any]]()

    def add(fault: str, outcomes: Counter[str], times: int = 0) -> None:
        ended = "; ".join(f"{OUTCOMES.get(name, name)}: {number:,}" for name, number in outcomes.most_common())
        rows.extend([{"fault": fault, "times": times or outcomes.total(), "how it ended": ended}] if outcomes else [])

    for kind, what in (("published", "a published file"), ("unfinished", "a file of an unfinished stage")):
        for harm in HARMS:
            ended = [fault["outcome"] for name, fault in result[kind].items() if name.endswith(harm)]
            add(f"{what} {harm}", Counter(ended))
    for name, fault in result["machine"].items():
        add(name, Counter([fault["outcome"]]))
    for kind, what in (("rows", "a native row"), ("files", "a data file"), ("replies", "a judge's reply")):
        outcomes = Counter[str]()
        for name, number in result[kind]["outcomes"].items():
            outcomes[name.partition(":")[0]] += number
        add(f"{what}, changed at random", outcomes, result[kind][kind])
    ended = f"ended like the undisturbed run: {kills['equal']} of {kills['runs']} runs; orphans: {kills['orphans']}"
    rows.insert(0, {"fault": "SIGKILL, then the run again", "times": kills["kills"], "how it ended": ended})
    return f"{markdown_table(rows)}\n\n`{result['command']}`, commit {str(result['provenance']['commit'])[:12]}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("campaign", "run"), default="campaign", help="run: once")
    parser.add_argument("--folder", type=Path, help="run: where to")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="no new fault begins after so many minutes")
    parser.add_argument("--short", action="store_true", help="a few faults of each kind")
    parser.add_argument("--out", type=Path, default=TARGET, help="another file than this leaves the table as it is")
    options = parser.parse_args()
    quiet_libraries()
    if options.command == "run":
        return run_here(options.folder.resolve())
    size = SHORT if options.short else EVERYTHING
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        result = run_campaign(Path(folder), size, options.kills, options.seed, options.minutes)
    command = f"python benchmarks/faults.py --kills {options.kills} --seed {options.seed} --minutes {options.minutes:g}"
    result |= {"command": command + " --short" * options.short, "provenance": provenance()}
    write_json(options.out, result)
    if options.out == TARGET:
        replace_block("faults", table(result), SHOWN)
    print("\n".join(failures(result)) or "nothing happened that must not", flush=True)
    return bool(failures(result))


if __name__ == "__main__":
    sys.exit(main())
