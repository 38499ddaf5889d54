"""`python -m rlhflow_utils claims`: every seed in turn, or two at once; then the verdicts."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rlhflow_utils.claims.designs import Arm, Claim, Measure, build_claims, claims_settings, loss_arm, wanted_arms
from rlhflow_utils.claims.pipeline import SeedRun, measure_loop, run_arm
from rlhflow_utils.claims.verdicts import CLAIMS, DEVELOPMENT
from rlhflow_utils.guide.profile import ConfigError, Profile, load_profile
from rlhflow_utils.guide.provenance import PROJECT, provenance, quiet_libraries
from rlhflow_utils.guide.stage import locked, write_json
from rlhflow_utils.guide.tables import with_interval

DEFAULT_PROFILE = "tiny"
# Setting of the annotators ("" is the world's own) -> arm -> metric.
Measured = dict[str, dict[str, dict[str, Measure]]]


@dataclass(frozen=True)
class Job:
    """One seed's work; plain values, so that another process can do it.

    Attributes:
        profile_name: name or file.
        overrides: from the command line, on top of the claims' own.
        seed: of the world and of all training.
        run_dir: relative to the project.
        claims: identifiers to measure in the world's own setting; empty: none.
        variant_claims: identifiers to measure under the other annotators; empty: none.
    """

    profile_name: str
    overrides: dict[str, Any]
    seed: int
    run_dir: str
    claims: tuple[str, ...]
    variant_claims: tuple[str, ...]


def run_claims(
    profile_name: str = DEFAULT_PROFILE,
    seeds: int | None = None,
    only: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    run_dir: str = "runs/claims",
    results: Path | None = None,
    workers: int = 1,
) -> None:
    """Measure claims over seeds and write one JSON file for each.

    Args:
        profile_name: a profile with a section `claims`.
        seeds: at most so many; None: as the profile says. With one, no other annotators are tried.
        only: identifiers; None: all.
        overrides: dotted profile keys -> values.
        run_dir: where the stages go, one folder a seed, relative to the project.
        results: where the JSON files go; None: `results/claims/`, and the README is rewritten from there. A changed
            profile is another measurement: its files go to `results/` in `run_dir`, in place of those there.
        workers: seeds at once, each in a process of its own with its share of the cores.

    Raises:
        ConfigError: an unknown claim, or a profile without claims.
    """
    from rlhflow_utils.claims.verdicts import CLAIMS, write_records
    from rlhflow_utils.guide.chapters import update_readme

    changed = profile_arguments(profile_name, overrides or {})
    aside = PROJECT / run_dir / "results"
    folder = results or (aside if changed else CLAIMS)
    quiet_libraries()
    profile = seed_profile(profile_name, overrides or {}, None)
    claims = choose_claims(profile, only)
    jobs = plan_jobs(profile_name, profile, claims, seeds, dict(overrides or {}), run_dir)
    started, origin = time.time(), _origin()
    print(
        f"Claims {', '.join(claims)} on profile {profile.name}: seeds {', '.join(str(job.seed) for job in jobs)}",
        flush=True,
    )
    measured: dict[int, Measured] = {}
    for job, found in _results_of(jobs, workers):
        measured.setdefault(job.seed, {}).update(found)
        records = {
            name: {**record, "command": record["command"] + changed, **origin}
            for name, record in _records(profile, claims, measured, jobs).items()
        }
        write_records(records, folder, aside)
        where = "" if job.claims else ", other annotators,"
        print(f"seed {job.seed}{where} measured after {time.time() - started:.0f} s", flush=True)
    print(f"Finished in {time.time() - started:.0f} s", flush=True)
    if folder == CLAIMS:
        update_readme()


def profile_arguments(profile_name: str, overrides: Mapping[str, Any]) -> str:
    """What a record's command needs beside claim and seeds; empty for the profile as it is committed."""
    named = "" if profile_name == DEFAULT_PROFILE else f" --profile {shlex.quote(profile_name)}"
    values = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items())
    return named + "".join(f" --set {shlex.quote(value)}" for value in values)


def seed_profile(profile_name: str, overrides: Mapping[str, Any], seed: int | None) -> Profile:
    """The profile of one seed: the claims' own overrides, the given ones, and the seed in both places.

    Raises:
        ConfigError: the profile has no section `claims`.
    """
    plain = load_profile(profile_name, dict(overrides))
    if plain.claims is None:
        raise ConfigError(
            f"profile {plain.name} has no section `claims`: they are measured in a simulated world (tiny)"
        )
    if plain.evaluation.judge != "gold":
        raise ConfigError("the claims are about the true reward: they need evaluation.judge=gold")
    changed = {**plain.claims.overrides, **overrides}
    return load_profile(profile_name, changed if seed is None else {**changed, "world.seed": seed}, seed)


def choose_claims(profile: Profile, only: Sequence[str] | None) -> dict[str, Claim]:
    """The wanted claims, in the report's order.

    Raises:
        ConfigError: an identifier that does not exist.
    """
    claims = build_claims(profile)
    unknown = sorted(set(only or []) - set(claims))
    if unknown:
        raise ConfigError(f"no claim {', '.join(unknown)}; known: {', '.join(claims)}")
    return {name: claim for name, claim in claims.items() if only is None or name in only}


def plan_jobs(
    profile_name: str,
    profile: Profile,
    claims: Mapping[str, Claim],
    seeds: int | None,
    overrides: dict[str, Any],
    run_dir: str,
) -> list[Job]:
    """Which seed measures which claims: every seed in the world's own setting, then some under other annotators."""
    settings = claims_settings(profile)
    limit = settings.seeds if seeds is None else min(seeds, settings.seeds)
    own, elsewhere = [], []
    for index in range(limit):
        job = Job(profile_name, overrides, settings.first_seed + index, run_dir, (), ())
        names = tuple(name for name, claim in claims.items() if claim.all_seeds or index < settings.fewer_seeds)
        if names:
            own.append(replace(job, claims=names))
        varied = tuple(name for name, claim in claims.items() if claim.in_variants)
        if varied and index < settings.variant_seeds <= limit:
            elsewhere.append(replace(job, variant_claims=varied))
    return own + elsewhere


def run_job(job: Job) -> Measured:
    """All stages and measures of one seed."""
    from rlhflow_utils.claims.pipeline import SeedRun, variant_overrides

    quiet_libraries()
    profile = seed_profile(job.profile_name, job.overrides, job.seed)
    claims = build_claims(profile)
    folder = PROJECT / job.run_dir / f"seed{job.seed}"
    with locked(folder):
        own = SeedRun(profile, folder)
        measured = {"": measure_claims(own, [claims[name] for name in job.claims])} if job.claims else {}
        for variant in claims_settings(profile).variants if job.variant_claims else []:
            changed = own.run.with_overrides(variant_overrides(profile, variant)).profile
            other = SeedRun(changed, folder.with_name(f"{folder.name}-{variant.name}"), models_from=own)
            measured[variant.name] = measure_claims(other, [claims[name] for name in job.variant_claims])
    return measured


def measure_claims(seed: Any, claims: Sequence[Claim]) -> dict[str, dict[str, Measure]]:
    """Run the arms of some claims and read their measures: arm -> metric -> measure."""
    from rlhflow_utils.claims.pipeline import measure_arm, prepare

    arms = wanted_arms(claims)
    for arm in arms:
        prepare(seed, arm)
    return {arm: measure_arm(seed.run, arm) for arm in arms}


def _origin() -> dict[str, Any]:
    """Commit and versions, asked before the records are written: they change the working tree."""
    kept = ("python", "versions", "commit", "dirty")
    found = provenance()
    return {"provenance": {key: found[key] for key in kept}}


def _results_of(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Measured]]:
    """Each job with its measures as it ends; in this process where one worker does.

    A seed's other annotators wait for its own job: both use its folder.

    Raises:
        RuntimeError: some jobs failed. With several workers each is told as it fails, and the others go on first.
    """
    if workers <= 1 or len(jobs) == 1:
        yield from ((job, run_job(job)) for job in jobs)
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))  # read by the children's torch
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_job, job): job for job in jobs if job.claims}
        waiting = [job for job in jobs if not job.claims]
        failed = []
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                ended = running.pop(future)
                error = future.exception()
                if error is not None:
                    failed.append(f"seed {ended.seed}: {error}")
                    print(f"failed, the others go on: {failed[-1]}", flush=True)
                    continue
                yield ended, future.result()
                following = [job for job in waiting if job.seed == ended.seed and ended.claims]
                running |= {pool.submit(run_job, job): job for job in following}
    if failed:
        raise RuntimeError(f"{'; '.join(failed)}. Mend it and run the command again: finished stages are kept")


def _records(
    profile: Profile, claims: Mapping[str, Claim], measured: Mapping[int, Measured], jobs: Sequence[Job]
) -> dict[str, dict[str, Any]]:
    """The record of every claim that at least one finished seed has measured."""
    from rlhflow_utils.claims.verdicts import claim_record

    def found(wanted: Sequence[Job], setting: str) -> dict[str, dict[str, dict[str, Measure]]]:
        return {str(job.seed): measured[job.seed][setting] for job in wanted if setting in measured.get(job.seed, {})}

    records = {}
    for name, claim in claims.items():
        seeds = found([job for job in jobs if name in job.claims], "")
        elsewhere = [job for job in jobs if name in job.variant_claims]
        variants = {variant.name: found(elsewhere, variant.name) for variant in claims_settings(profile).variants}
        if seeds:
            command = f"python -m rlhflow_utils claims --only {name} --seeds {len(seeds)}"
            records[name] = claim_record(claim, seeds, variants, profile.evaluation, command)
    return records


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
