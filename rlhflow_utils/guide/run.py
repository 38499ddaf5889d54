"""A run: one profile, one folder, and the stages in it. Also the processes that a run starts."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.settings import Profile
from rlhflow_utils.guide.stage import BY_KEY, PROJECT, Artifact, read_artifact, relative, write_json

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
HUB_SECONDS = 5  # a hub that has not answered by then is out of reach
MADE_BY = {"models/smollm2": "make smollm2", "models/tiny-base": "make base"}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LONGEST_MESSAGE = 1000  # characters
KILLED = "killed, often for want of memory"
FIXES = {  # what a system may refuse
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or write to another disk",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that you may write to"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file is where a folder is needed: choose another name"),
}


class Run:
    """A run's folder, seen from one chapter.

    ``run / "sft"`` is where a stage goes, ``run["sft"]`` is a stage that an earlier chapter has finished. Both are
    remembered: the runner skips a chapter (named by its file) whose stages are still the same. `by_key` names every
    folder after its key, so that equal work under other names is shared (chapter 11).
    """

    def __init__(self, chapter: str, profile: Profile, folder: Path, by_key: bool = False) -> None:
        self.chapter, self.profile, self.folder, self.by_key = chapter, profile, folder, by_key
        self._made: set[str] = set()
        self._read: set[str] = set()
        self._started = time.time()

    @property
    def seed(self) -> int:
        return self.profile.seed

    @property
    def caption(self) -> str:
        """What stands below every table and figure: where the numbers come from."""
        if self.profile.world is None:
            return f"Profile {self.profile.name}: real rows."
        return "Simulated world, model of under one million parameters: evidence about the method, not about LLaMA-3."

    @property
    def cache(self) -> Path:
        """Folder of what may be asked again at a price: replies of a judge behind an endpoint."""
        return self.folder / "cache"

    def __truediv__(self, name: str) -> Path:
        if self.by_key:
            return self.folder / BY_KEY
        self._made.add(name)
        return self.folder / name

    def __getitem__(self, name: str) -> Artifact:
        """A finished stage; FileNotFoundError where it is not there yet."""
        found = read_artifact(self.folder / name)
        if found is None:
            fix = f"run the chapters before {self.chapter} first (make guide, or their notebooks in order)"
            raise FileNotFoundError(f"{relative(self.folder / name)} is missing: {fix}")
        self._read.add(name)
        return found

    def __contains__(self, name: str) -> bool:
        return read_artifact(self.folder / name) is not None

    def data_root(self) -> Artifact | Path | None:
        """Where local data files lie: the simulated world, the folder `data.root`, or None for the hub."""
        root = self.profile.data.root
        if not root:
            return self["world"] if self.profile.world else None
        if not (PROJECT / root).is_dir():
            raise FileNotFoundError(f"data.root {root} is no folder; set it with DATA_ROOT=folder (--data-root)")
        return PROJECT / root

    def base_model(self) -> Artifact | Path | str:
        """The base model: built in chapter 00, a local folder, or a hub id."""
        return _folder_or_id(self.profile.model.base) or self["base_model"]

    def preference_start(self) -> Artifact | Path | str:
        """What the RM and the PM start from: the instruct model (paper 2.2, footnote), or else the run's SFT model."""
        return _folder_or_id(self.profile.model.reward_base) or self["sft"]

    def reward_model(self) -> Artifact | Path | str:
        """The RM that ranks in the loop: the profile's finished one, else chapter 03's of the main mixture."""
        return _folder_or_id(self.profile.reward_model.model) or self[f"bt_{self.profile.data.main_mixture}"]

    def judge_model(self) -> Artifact | Path | str | None:
        """The judge RM: the profile's, else chapter 03's, trained on pairs held apart; None where no RM judges."""
        settings = self.profile.evaluation
        if settings.judge != "reward_model":
            return None
        return _folder_or_id(settings.judge_model) or self["bt_judge"]

    def finish(self) -> None:
        """Record that the chapter ran through, with the stages it used: the runner's ground for skipping it."""
        stages = {name: self[name] for name in sorted(self._made | self._read)}
        made = [each.manifest for name, each in stages.items() if name in self._made]
        saved = sum(each["wall_seconds"] for each in made if each["started"] < self._started)  # of skipped stages
        keys = {name: each.key for name, each in stages.items()}
        record = {"chapter": self.chapter, "stages": keys, "saved_seconds": round(saved, 1)}
        write_json(self.folder / "chapters" / f"{self.chapter}.json", record)
        print(f"chapter {self.chapter} finished: {len(stages)} stages, {time.time() - self._started:.0f} s")


def _folder_or_id(model: str | None) -> Path | str | None:
    return PROJECT / model if model and (PROJECT / model).is_dir() else model


def open_run(chapter: str, profile: str, run_dir: str, seed: int, overrides: Mapping[str, Any]) -> Run:
    """What every chapter calls first: the validated profile and the run folder (relative to the project)."""
    quiet_libraries()
    return Run(chapter, load_profile(profile, overrides, seed), PROJECT / run_dir)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, or raise RuntimeError: two runs at once would overwrite each other's partial stages."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fix = "wait for it, or choose another folder with RUN_DIR=… (--run-dir)"
            raise RuntimeError(f"{relative(folder)} is in use by another run: {fix}") from error
        yield


def quiet_libraries() -> None:
    """Silence progress bars and advice that would clutter the executed notebooks; warnings of our own stay."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TRL_EXPERIMENTAL_SILENCE": "1",
        "TQDM_DISABLE": "1", "HF_HUB_VERBOSITY": "error",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|accelerate|datasets|multiprocess)\..*")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def prepare_hub(models: Iterable[str], data: bool = False, folder: Path = Path()) -> None:
    """Look for models that are not in `folder`, and for `data`, on the hub, before a command starts.

    Where the hub does not answer, the libraries are told to work offline, with what their cache holds: each of them
    would ask again and again, for minutes. FileNotFoundError for a model that is then nowhere.
    """
    names = [name for name in models if not (folder / name).is_dir()]
    for name in names:
        if not HUB_ID.fullmatch(name) or ("/" in name and (folder / name).parent.is_dir()):
            fix = f"run `{MADE_BY[name]}`" if name in MADE_BY else "check the path"
            raise FileNotFoundError(f"model {name}: no such folder, and no hub id (owner/name); {fix}")
    if not (names or data) or _hub_answers():
        for name in names:
            _check_access(name)
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        files = (try_to_load_from_cache(name, file) for file in ("config.json", "adapter_config.json"))
        if not any(isinstance(file, str) for file in files):
            fix = "give a folder, or go online"
            raise FileNotFoundError(f"model {name}: no such folder, not in the cache, and {HUB} is out of reach: {fix}")


def _check_access(name: str) -> None:
    """PermissionError for a model that its owners share on request, where this user has not asked or not logged in."""
    from huggingface_hub import auth_check
    from huggingface_hub.errors import GatedRepoError

    try:
        auth_check(name)
    except OSError as error:  # of any other refusal, whoever loads the model says what is wrong
        if isinstance(error, GatedRepoError):
            raise PermissionError(
                f"model {name} is gated and this user has no access: ask for it at {HUB}/{name}, then `hf auth login`"
            ) from error


def _hub_answers() -> bool:
    """Whether the hub answers in time, if only with a refusal; False where the user has chosen to work offline."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    answers: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(HUB, method="HEAD"), timeout=HUB_SECONDS):
                answers.append(True)
        except OSError as error:  # a certificate that is not trusted is an answer, too: httpx may know it
            answers.append(isinstance(error, HTTPError) or "CERTIFICATE" in str(error))

    asking = Thread(target=ask, daemon=True)  # looking up a name has no timeout of its own
    asking.start()
    asking.join(HUB_SECONDS)
    return any(answers)


def shortened(text: str) -> str:
    """A message as one line. One that is too long keeps the first 80 characters of what it quotes."""
    line = " ".join(text.split())
    if len(line) > LONGEST_MESSAGE:
        line = re.sub(r"""(['"])((?:(?!\1).){80})(?:(?!\1).)+\1""", r"\1\2…\1", line)
    return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 1]}…"


def fix_of(message: str) -> str | None:
    """What to do about a refusal of the system, of which Python's and Rust's messages give the number."""
    if "process pool was terminated abruptly" in message:
        return f"a process was {KILLED}: run again"
    found = re.search(r"\[Errno (\d+)\]|\(os error (\d+)\)", message)
    return FIXES.get(int(found[1] or found[2])) if found else None


def stream_command(command: Sequence[str]) -> None:
    """Run the command of a job's file, copying its output; RuntimeError with the last line that names an error."""
    tail: list[str] = []
    with Popen(command, stdout=PIPE, stderr=STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            tail = [*tail[-50:], line.strip()]
    if child.returncode:
        errors = [line for line in tail if "Error" in line] or tail or ["no output"]
        why = KILLED if child.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL) else errors[-1]
        raise RuntimeError(f"{command[-1]} ended with exit code {child.returncode}, {why}; run again to go on from it")


def end_with_parent() -> None:
    """Called by a child: kill it with its parent, so that it cannot write into a resumed run (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
