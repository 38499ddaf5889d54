"""The choice of claim o's β, made once on the development seed, before any test seed was run.

`python -m rlhflow_utils claims --development` tries the candidates of each loss for one iteration and writes the win
rates to `results/claims/development.json`. Whoever runs it puts the best into the profile (`claims.losses`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhflow_utils.claims.arm_runs import run_arm
from rlhflow_utils.claims.arms import Arm, claims_settings, loss_arm
from rlhflow_utils.claims.measures import measure_loop
from rlhflow_utils.claims.records import CLAIMS, DEVELOPMENT
from rlhflow_utils.claims.run import profile_arguments, seed_profile
from rlhflow_utils.claims.seed_run import SeedRun
from rlhflow_utils.config import Profile
from rlhflow_utils.manifest import locked, write_json
from rlhflow_utils.provenance import PROJECT, quiet_libraries
from rlhflow_utils.tables import with_interval


def choose_betas(profile_name: str, overrides: Mapping[str, Any], run_dir: str, results: Path | None = None) -> None:
    """Measure every candidate on the development seed and say which is best; the profile is not changed.

    Args:
        profile_name: a profile with a section `claims`.
        overrides: dotted profile keys -> values.
        run_dir: where the stages go, relative to the project.
        results: where the table goes; None: `results/claims/`, or for a changed profile `results/` in `run_dir`.
    """
    quiet_libraries()
    settings = claims_settings(seed_profile(profile_name, overrides, None))
    seed = settings.development_seed
    profile = seed_profile(profile_name, overrides, seed)
    folder = PROJECT / run_dir / f"seed{seed}"
    table: dict[str, dict[str, dict[str, float]]] = {}
    with locked(folder):
        run = SeedRun(profile, folder)
        for arm, loss, beta in candidate_arms(profile):
            run_arm(run, arm)
            rate = measure_loop(run.run, arm)["win_rate@1"]
            estimate = {"value": rate.value, "ci_low": rate.ci_low, "ci_high": rate.ci_high}
            table.setdefault(loss, {})[f"{beta:g}"] = estimate
    best = {loss: max(rates, key=lambda beta: rates[beta]["value"]) for loss, rates in table.items()}
    changed = profile_arguments(profile_name, overrides)
    command = f"python -m rlhflow_utils claims --development{changed}"
    results = results or (PROJECT / run_dir / "results" if changed else CLAIMS)
    write_json(results / DEVELOPMENT, {"seed": seed, "win_rate": table, "best": best, "command": command})
    for loss, choice in settings.losses.items():
        rates = ", ".join(f"{beta}: {with_interval(rate)}" for beta, rate in table[loss].items())
        print(f"{loss}: {rates}; best β {best[loss]}, the profile has {choice.beta:g}")


def candidate_arms(profile: Profile) -> list[tuple[Arm, str, float]]:
    """One arm of one iteration for each loss and each of its candidates."""
    return [
        (loss_arm(loss, beta, f"{loss}_{beta:g}".replace(".", "_")), loss, beta)
        for loss, choice in claims_settings(profile).losses.items()
        for beta in choice.candidates
    ]
