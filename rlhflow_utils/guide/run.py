"""Where a run's files and starting models come from: built by the run, a local folder, or the hub.

Each function returns a mapping to be unpacked into the `inputs` of a stage; it is empty where the profile names the
thing by an id, which the stage then reads from its own section.
"""

from __future__ import annotations

from pathlib import Path

from rlhflow_utils.guide.provenance import PROJECT
from rlhflow_utils.guide.stage import Run, StageFolder

Inputs = dict[str, StageFolder | Path | str]


def local_files(run: Run) -> Inputs:
    """`root`: the simulated world, or the folder `data.root`; nothing where all data comes from the hub.

    Raises:
        FileNotFoundError: the folder `data.root` does not exist.
    """
    if run.profile.data.root:
        root = PROJECT / run.profile.data.root
        if not root.is_dir():
            raise FileNotFoundError(f"data.root {run.profile.data.root} is no folder; set it with DATA_ROOT=folder")
        return {"root": root}
    return {"root": run.folder("00_world")} if run.profile.world else {}


def base_model(run: Run) -> Inputs:
    """`base`: the base model that chapter 00 built; nothing where `model.base` names one."""
    return {} if run.profile.model.base else {"base": run.folder("00_base_model")}


def judge_model(run: Run) -> Inputs:
    """`judge_model`: the judge RM that chapter 03 trained on pairs held apart; nothing where another judge decides."""
    settings = run.profile.evaluation
    if settings.judge != "reward_model" or settings.judge_model:
        return {}
    return {"judge_model": run.folder("03_bt_judge")}
