"""Command line: `python -m rlhflow_utils COMMAND`; `--help` lists the commands and their options."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlhflow_utils.guide.chapters import Guide
from rlhflow_utils.guide.profile import Profile, load_profile, parse_override, profile_path
from rlhflow_utils.guide.run import Run, fix_of, prepare_hub, quiet_libraries, shortened
from rlhflow_utils.guide.stage import PACKAGE_FOLDER, PROJECT, relative, write_json

FIRST_ANSWERS = "06"  # the chapter that first generates answers


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Key -> value of texts that hold KEY=VALUE once or more: a pair goes up to a space before the next `key=`.

    So a value may hold spaces; where it holds a ` key=` too, it must be quoted.
    """
    found = []
    for text in filter(str.strip, texts):
        words = re.finditer(r"""(?:"[^"]*"|'[^']*'|\S)+""", text)
        starts = [word.start() for word in words if re.match(r"[\w.]+=", word[0])]
        bounds = [0, *starts[1:], len(text)]
        found += [parse_override(text[start:end].strip()) for start, end in pairwise(bounds)]
    return dict(found)


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The values of `--set`, and that of `--data-root` where the command has it, as seen from the project."""
    overrides = _pairs(options.set)
    if getattr(options, "data_root", None):
        overrides["data.root"] = relative(Path(options.data_root))
    return overrides


def _run_dir(options: argparse.Namespace) -> str:
    """The run folder of a command: ``runs/my`` for a profile file ``any/where/my.yaml``."""
    return options.run_dir or f"runs/{profile_path(options.profile).stem}"


def _prepare_hub(profile: Profile) -> None:
    """Look for the models and data of a profile that are neither local nor built by the guide."""
    models = filter(None, (profile.model.base, profile.model.reward_base, profile.reward_model.model))
    prepare_hub(models, data=profile.world is None and not profile.data.root, folder=PROJECT)


def _run(options: argparse.Namespace) -> None:
    guide = Guide(options.profile, _run_dir(options), options.seed, _overrides(options), options.chapters)
    if guide.stale():  # a field that TRL or vLLM does not know fails here, before any chapter has run
        _prepare_hub(guide.profile)
        from rlhflow_utils.training.check import check_configs

        check_configs(guide.profile)
        if any(name >= FIRST_ANSWERS for name in guide.stale()):
            from rlhflow_utils.online.engines import check_backend

            check_backend(guide.profile.generation)
    guide.run()


def _claims(options: argparse.Namespace) -> None:
    from rlhflow_utils.claims.run import run_claims

    only, overrides = options.only.split(",") if options.only else None, _overrides(options)
    _prepare_hub(load_profile(options.profile, overrides))
    run_claims(options.profile, options.seeds, only, overrides, options.run_dir, workers=options.workers)


def _base(options: argparse.Namespace) -> None:
    from rlhflow_utils.evaluation.base_model import make_base_model

    make_base_model(load_profile(options.profile, _overrides(options)), PROJECT / options.out, options.minutes)


def _check(options: argparse.Namespace) -> None:
    from rlhflow_utils.training.check import check_profile

    check_profile(options.profile, _overrides(options), options.machine, options.nodes)


def _data(options: argparse.Namespace) -> None:
    from rlhflow_utils.data.cards import run_data

    overrides = _overrides(options)
    _prepare_hub(load_profile(options.profile, overrides))
    out = Path(options.out).absolute() if options.out else f"runs/{profile_path(options.profile).stem}-data"
    run_data(options.profile, str(out), overrides, options.published)


def _push_data(options: argparse.Namespace) -> None:
    from rlhflow_utils.data.cards import push_mixture
    from rlhflow_utils.guide.settings import HubSettings

    prepare_hub([], data=True)
    settings = HubSettings(push=True, namespace=options.namespace, private=not options.public)
    print(push_mixture(Path(options.folder), options.mixture, settings))


def _pin(_: argparse.Namespace) -> None:
    from rlhflow_utils.data.cards import pin

    prepare_hub([], data=True)
    pin()


def _chat(options: argparse.Namespace) -> None:
    from rlhflow_utils.evaluation.chat_benchmarks import run_benchmark

    profile, out = load_profile(options.profile, _overrides(options)), Path(options.out)
    prepare_hub([options.model])
    results = run_benchmark(options.benchmark, profile, options.model, Path(options.questions), out, options.limit)
    for name in ("score", "win_rate", "length_adjusted_win_rate", "lc_win_rate"):
        if name in results:
            score = results[name]
            print(f"{options.benchmark} {name}: {score['value']:.3f} ({score['ci_low']:.3f} … {score['ci_high']:.3f})")
    print(f"judge: {results['judge_counts']}; everything: {out / 'results.json'}")


def _talk(options: argparse.Namespace) -> None:
    from rlhflow_utils.evaluation.talk import serve

    named = options.models.split(",") if options.models else []
    prepare_hub(named)
    folder = PROJECT / _run_dir(options)
    serve(Run("make chat", load_profile(options.profile, _overrides(options)), folder), named, options.port)


def _academic(options: argparse.Namespace) -> None:
    from rlhflow_utils.evaluation.academic import evaluate_academic

    profile = load_profile(options.profile, _overrides(options))
    if (out := Path(options.out)).is_dir():
        raise ValueError(f"--out {out} is a folder: give the name of a JSON file in it")
    out.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written fails now, not after hours
    prepare_hub([options.model], data=not profile.data.root)
    results = evaluate_academic(options.model, profile, options.limit)
    write_json(out, {"profile": profile.name, "model": options.model, **results})
    for name, task in results["tasks"].items():
        print(f"{name}: {task['value']:.3f} ({task['ci_low']:.3f} … {task['ci_high']:.3f}), n = {task['n']}")
    for name, reason in results["absent"].items():
        print(f"{name}: not run here, {reason}")


def _rewardbench(options: argparse.Namespace) -> None:
    from rlhflow_utils.evaluation.rewardbench import run_benchmark

    profile, model = load_profile(options.profile, _overrides(options)), Path(options.model)
    root = PROJECT / profile.data.root if profile.data.root else None
    prepare_hub([options.model], data=root is None)
    judge, out = model if model.is_dir() else options.model, Path(options.out)
    done = run_benchmark(options.benchmark, judge, options.method, profile, root, out)
    for name, score in done.read_json("results.json")["sections"].items():
        if score:
            print(f"{name}: {score['value']:.3f} ({score['ci_low']:.3f} … {score['ci_high']:.3f}), n = {score['n']}")
    if missing := done.read_json("results.json").get("missing_domains"):
        print(f"no rows of {', '.join(missing)}: overall is the mean of the other domains")
    print(f"{done.rows}; everything: {out}")


def _notebooks(options: argparse.Namespace) -> None:
    from rlhflow_utils.guide.publishing import profile_of, publish, publish_results, sync

    sync()
    if options.run_dir:
        if profile_of(options.run_dir).evaluation.judge == "gold":  # chapters show the simulated world, no real rows
            publish(options.run_dir)
        publish_results(options.run_dir)


Options = dict[str, dict[str, Any]]
PROFILE: Options = {
    "--profile": {"required": True, "help": "name in profiles/ or a YAML file"},
    "--set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "override profile values"},
}
TINY = PROFILE | {"--profile": {"default": "tiny", "help": "name in profiles/ or a YAML file (default: tiny)"}}
ROOT: Options = {"--data-root": {"help": "folder of local data files (sets data.root)"}}
POLICY: Options = {
    "--model": {"required": True, "help": "folder or hub id of the policy"},
    "--limit": {"type": int, "help": "the first so many questions, or rows per task"},
}
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str, Options]] = {
    "run": (_run, "execute the chapters of the guide", TINY | ROOT | {
        "--run-dir": {"help": "run folder relative to the project (default: runs/<profile>)"},
        "--seed": {"type": int, "help": "replaces the profile's seed"},
        "--chapters": {"nargs": "+", "metavar": "NN", "help": "only these chapters"},
    }),
    "claims": (_claims, "measure the paper's claims over seeds; writes results/claims/", TINY | {
        "--seeds": {"type": int, "help": "at most so many test seeds (default: as the design says)"},
        "--only": {"metavar": "A,B", "help": "only these claims, for example a,e"},
        "--workers": {"type": int, "default": 1, "help": "seeds at once, each with its share of the cores"},
        "--run-dir": {"default": "runs/claims", "help": "where the stages go (default: runs/claims)"},
    }),
    "base": (_base, "pretrain the tiny base model on the simulated world", TINY | {
        "--out": {"default": "models/tiny-base", "help": "folder of the model (default: models/tiny-base)"},
        "--minutes": {"type": float, "help": "as many tokens as this machine reads in that time"},
    }),
    "check": (_check, "build every argument of a profile, and plan its memory and hours on a machine", PROFILE | {
        "--machine": {"help": "GPUs of a machine, for example 8xH100-80 (training/machines.yaml)"},
        "--nodes": {"type": int, "default": 1, "help": "how many such machines (default: 1)"},
    }),
    "notebooks": (_notebooks, "rebuild notebooks/*.ipynb from notebooks/source/*.py", {
        "--run-dir": {"help": "also take over the executed cells of this run"},
    }),
    "data": (_data, "build the preference data alone; print the row counts and Table 1", TINY | ROOT | {
        "--out": {"help": "folder to write into (default: runs/<profile>-data)"},
        "--published": {"choices": ("standard", "700k"), "help": "read the authors' filtered sets instead"},
    }),
    "push-data": (_push_data, "upload a finished mixture with its dataset card (online)", {
        "folder": {"help": "finished folder of chapter 01, for example runs/tiny/preference_data"},
        "--mixture": {"required": True},
        "--namespace": {"required": True, "help": "your user or organisation on the hub"},
        "--public": {"action": "store_true"},
    }),
    "pin": (_pin, "write the hub's commits into profiles/revisions.yaml (online)", {}),
    "chat": (_chat, "AlpacaEval-2, MT-Bench or Arena-Hard with a judge behind an endpoint", PROFILE | POLICY | {
        "--benchmark": {"required": True, "choices": ["alpaca_eval", "mt_bench", "arena_hard"]},
        "--questions": {"required": True, "help": "folder with the benchmark's files"},
        "--out": {"required": True, "help": "folder for answers, verdicts and results.json"},
    }),
    "talk": (_talk, "a page to talk to a finished run's models (make chat)", TINY | {
        "--run-dir": {"help": "folder of the finished run, relative to the project (default: runs/<profile>)"},
        "--models": {"metavar": "A,B", "help": "other policies beside them: folders or hub ids"},
        "--port": {"type": int, "default": 7860, "help": "of 127.0.0.1 (default: 7860)"},
    }),
    "rewardbench": (_rewardbench, "RewardBench, RewardBench 2 or RM-Bench for any judge", PROFILE | ROOT | {
        "--model": {"required": True, "help": "folder or hub id of a reward model, or with --method of a causal LM"},
        "--method": {"default": "bt", "choices": ["bt", "pm", "prompting"], "help": "how it judges (default: bt)"},
        "--benchmark": {"required": True, "choices": ["rewardbench", "rewardbench_2", "rm_bench"]},
        "--out": {"required": True, "help": "folder for results.json and what it said of each row"},
    }),
    "academic": (_academic, "GSM8K, MMLU, HumanEval, TruthfulQA, ARC, MBPP through lm-eval", PROFILE | ROOT | POLICY | {
        "--out": {"required": True, "help": "JSON file for the results"},
    }),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run. A failure ends in one line and exit status 1, Ctrl-C in 130."""
    parser = argparse.ArgumentParser(prog="rlhflow_utils", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, (command, text, its_options) in COMMANDS.items():
        subparser = commands.add_parser(name, help=text)
        subparser.set_defaults(command=command)
        for option, settings in its_options.items():
            subparser.add_argument(option, **settings)
        subparser.add_argument("--traceback", action="store_true", help="show where in the code a failure happened")
    options = parser.parse_args(arguments)
    quiet_libraries()
    try:
        options.command(options)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from what is finished", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            traceback.print_exc()
        print(f"error: {_explained(error)}", file=sys.stderr)
        return 1
    return 0


def _explained(error: BaseException) -> str:
    """A failure in one line: what the package raises says what, where and the fix; a library's error is told them."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if PACKAGE_FOLDER in Path(frame.filename).parents]
    if ours[-1] is frames[-1] and (ours[-1].line or "").startswith("raise"):
        return shortened(str(error))
    chain = [error]  # what the system refused may be behind another error: a writer that cannot be closed hides it
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    error = next((each for each in chain if fix_of(str(each))), error)
    where = f"{Path(ours[-1].filename).relative_to(PROJECT)}, line {ours[-1].lineno}"
    fix = fix_of(str(error)) or "add --traceback to see the rest"
    return f"{shortened(f'{type(error).__name__}: {error}')} ({where}; {fix})"


if __name__ == "__main__":
    sys.exit(main())
