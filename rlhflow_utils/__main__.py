"""Command line: `python -m rlhflow_utils run|claims|check|data|push-data|pin|chat|academic|notebooks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rlhflow_utils.guide.chapters import run_guide
from rlhflow_utils.guide.profile import parse_override


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run; errors that a user can mend end in one line and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, RuntimeError, FileNotFoundError) as error:  # of the package's own, each in one line
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    overrides = dict(parse_override(text) for text in options.set)
    if options.data_root:
        overrides["data.root"] = options.data_root
    parameters = dict(parse_override(text) for text in options.parameter)
    run_dir = options.run_dir or f"runs/{options.profile}"
    run_guide(options.profile, run_dir, options.seed, overrides, options.chapters, parameters)


def _claims(options: argparse.Namespace) -> None:
    from rlhflow_utils.claims.run import choose_betas, run_claims

    overrides = dict(parse_override(text) for text in options.set)
    if options.development:
        choose_betas(options.profile, overrides, options.run_dir)
        return
    only = options.only.split(",") if options.only else None
    run_claims(options.profile, options.seeds, only, overrides, options.run_dir, workers=options.workers)


def _check(options: argparse.Namespace) -> None:
    from rlhflow_utils.training.check import check_profile

    check_profile(options.profile, dict(parse_override(text) for text in options.set))


def _chat(options: argparse.Namespace) -> None:
    from rlhflow_utils.evaluation.chat_benchmarks import run_benchmark
    from rlhflow_utils.guide.profile import load_profile

    profile = load_profile(options.profile, dict(parse_override(text) for text in options.set))
    out = Path(options.out)
    results = run_benchmark(options.benchmark, profile, options.model, Path(options.questions), out, options.limit)
    for name in ("score", "win_rate", "lc_win_rate"):
        if name in results:
            score = results[name]
            print(f"{options.benchmark} {name}: {score['value']:.3f} ({score['ci_low']:.3f} … {score['ci_high']:.3f})")
    print(f"judge: {results['judge_counts']}; everything: {out / 'results.json'}")


def _academic(options: argparse.Namespace) -> None:
    from rlhflow_utils.evaluation.academic import evaluate_academic
    from rlhflow_utils.guide.profile import load_profile
    from rlhflow_utils.guide.provenance import PROJECT
    from rlhflow_utils.guide.stage import write_json

    profile = load_profile(options.profile, {"data.root": options.data_root} if options.data_root else None)
    results = evaluate_academic(
        options.model,
        PROJECT / profile.data.root if profile.data.root else None,
        limit=options.limit,
        dtype=profile.model.dtype,
        confidence=profile.evaluation.confidence,
        seed=profile.seed,
    )
    write_json(Path(options.out), {"profile": profile.name, "model": options.model, **results})
    for name, task in results["tasks"].items():
        print(f"{name}: {task['value']:.3f} ({task['ci_low']:.3f} … {task['ci_high']:.3f}), n = {task['n']}")
    for name, reason in results["absent"].items():
        print(f"{name}: not run here, {reason}")


def _data(options: argparse.Namespace) -> None:
    from rlhflow_utils.data.command import run_data

    overrides = dict(parse_override(text) for text in options.set)
    if options.data_root:
        overrides["data.root"] = options.data_root
    run_data(options.profile, options.out, overrides, options.published)


def _push_data(options: argparse.Namespace) -> None:
    from rlhflow_utils.data.cards import push_mixture
    from rlhflow_utils.guide.settings import HubSettings

    settings = HubSettings(push=True, namespace=options.namespace, private=not options.public)
    print(push_mixture(Path(options.folder), options.mixture, settings))


def _pin(options: argparse.Namespace) -> None:
    from rlhflow_utils.data.cards import pin

    pin(options.profile)


def _notebooks(options: argparse.Namespace) -> None:
    from rlhflow_utils.guide.chapters import publish, publish_results, sync

    sync()
    if options.run_dir:
        publish(options.run_dir)
        publish_results(options.run_dir)


def _add_benchmarks(commands: Any) -> None:
    """The paper's benchmarks, on any policy."""
    chat = commands.add_parser("chat", help="AlpacaEval-2, MT-Bench or Arena-Hard with a judge behind an endpoint")
    chat.add_argument("--benchmark", required=True, choices=["alpaca_eval", "mt_bench", "arena_hard"])
    chat.add_argument("--profile", required=True)
    chat.add_argument("--model", required=True, help="folder or hub id of the policy")
    chat.add_argument("--questions", required=True, help="folder with the benchmark's files")
    chat.add_argument("--out", required=True, help="folder for answers, verdicts and results.json")
    chat.add_argument("--limit", type=int, help="the first so many questions")
    chat.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile value")
    chat.set_defaults(command=_chat)
    academic = commands.add_parser("academic", help="GSM8K, MMLU, HumanEval, TruthfulQA, ARC, MBPP through lm-eval")
    academic.add_argument("--profile", required=True)
    academic.add_argument("--model", required=True, help="folder or hub id of the policy")
    academic.add_argument("--out", required=True, help="JSON file for the results")
    academic.add_argument("--data-root", help="folder of local data files (sets data.root)")
    academic.add_argument("--limit", type=int, help="rows per task, for a smoke run")
    academic.set_defaults(command=_academic)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rlhflow_utils", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="execute the chapters of the guide")
    run.add_argument("--profile", default="tiny", help="name in profiles/ or a YAML file (default: tiny)")
    run.add_argument("--run-dir", help="run folder relative to the project (default: runs/<profile>)")
    run.add_argument("--seed", type=int, help="replaces the profile's seed")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile value")
    run.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE", help="a notebook parameter")
    run.add_argument("--data-root", help="folder of local data files (sets data.root)")
    run.add_argument("--chapters", nargs="+", metavar="NN", help="only these chapters")
    run.set_defaults(command=_run)
    claims = commands.add_parser("claims", help="measure the paper's claims over seeds; writes results/claims/")
    claims.add_argument("--profile", default="tiny", help="a profile with a section `claims` (default: tiny)")
    claims.add_argument("--seeds", type=int, help="at most so many test seeds (default: as the profile says)")
    claims.add_argument("--only", metavar="A,B", help="only these claims, for example a,e")
    claims.add_argument("--workers", type=int, default=1, help="seeds at once, each with its share of the cores")
    claims.add_argument("--run-dir", default="runs/claims", help="where the stages go (default: runs/claims)")
    claims.add_argument("--development", action="store_true", help="try the betas of claim o on the development seed")
    claims.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a profile value")
    claims.set_defaults(command=_claims)
    check = commands.add_parser("check", help="build every argument of a profile without running it")
    check.add_argument("--profile", required=True)
    check.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    check.set_defaults(command=_check)
    _add_benchmarks(commands)
    data = commands.add_parser("data", help="build the preference data alone; print the funnel and Table 1")
    data.add_argument("--profile", default="tiny")
    data.add_argument("--data-root", help="folder of local data files (sets data.root)")
    data.add_argument("--out", help="folder to write into (default: runs/<profile>-data)")
    data.add_argument("--published", choices=("standard", "700k"), help="read the authors' filtered sets instead")
    data.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    data.set_defaults(command=_data)
    push = commands.add_parser("push-data", help="upload a finished mixture with its dataset card (online)")
    push.add_argument("folder", help="finished folder of chapter 01, for example runs/tiny/01_preference_data")
    push.add_argument("--mixture", required=True)
    push.add_argument("--namespace", required=True, help="your user or organisation on the hub")
    push.add_argument("--public", action="store_true")
    push.set_defaults(command=_push_data)
    pin = commands.add_parser("pin", help="write the hub's commits into every open revision (online)")
    pin.add_argument("--profile", action="append", default=[], help="only this one (may be repeated)")
    pin.set_defaults(command=_pin)
    notebooks = commands.add_parser("notebooks", help="rebuild notebooks/*.ipynb from notebooks/source/*.py")
    notebooks.add_argument("--run-dir", help="also take over the executed cells of this run")
    notebooks.set_defaults(command=_notebooks)
    return parser


if __name__ == "__main__":
    sys.exit(main())
