"""The page of `make chat`: the package's own answers and rewards, in a real browser, without a network."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from browser import Browser, open_browser
from tiny_models import save_policy, save_reward_model, score

from rlhflow_utils import __main__ as command_line
from rlhflow_utils.data.reading import user_turn
from rlhflow_utils.evaluation.policies import answer_held_out
from rlhflow_utils.evaluation.talk import Answer, open_page, open_talk
from rlhflow_utils.guide.profile import load_profile
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.stage import PROJECT, Summary, stage
from rlhflow_utils.models.chat import prompt_key
from rlhflow_utils.online.generation import generate
from rlhflow_utils.simulator.gold import World

OF_THE_WORLD = "Please help me. Compute 1+4."
HOSTILE = "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\"> a | b **c** $d$ &lt;"
LONG_WORD = "x" * 90
PROMPTS = [OF_THE_WORLD, HOSTILE, LONG_WORD]
SETTINGS = {"generation.max_prompt_tokens": 150, "generation.sampling.max_tokens": 20, "seed": 3}
PHONE, LAPTOP = 390, 1280
FIELDS = "[...document.querySelectorAll('textarea')].map(each => [each.closest('label').innerText, each.value])"
EXAMPLES = "[...document.querySelectorAll('.gallery-item')].map(each => each.innerText)"
RIGHTMOST = """Math.max(document.documentElement.scrollWidth,
  ...[...document.querySelectorAll("*")].map(each => each.getBoundingClientRect().right))"""


@stage
def keep_policy(seed: int, *, into: Path) -> Summary:
    save_policy(into / "model", seed)
    return Summary()


@stage
def keep_reward_model(policy: Path, *, into: Path) -> Summary:
    save_reward_model(into / "model", policy)
    return Summary()


@stage
def keep_prompts(texts: Sequence[str], *, into: Path) -> Summary:
    from datasets import Dataset

    rows = [{"prompt_id": prompt_key(user_turn(text)), "prompt": user_turn(text), "source": ""} for text in texts]
    Dataset.from_list(rows).save_to_disk(str(into / "evaluation_prompts"))
    return Summary()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the page needs of a finished run, with tiny models, and another policy in the folder `other`."""
    run = Run("make chat", load_profile("tiny", SETTINGS), tmp_path_factory.mktemp("run"))
    policies = [keep_policy(seed, into=run / name) for seed, name in enumerate(("sft", "iter3_dpo", "other"))]
    keep_reward_model(policies[0].path / "model", into=run / "bt_mix2")
    keep_prompts(PROMPTS, into=run / "preference_data")
    return run


def _policies(run: Run) -> dict[str, Any]:
    return {"SFT": run["sft"], "iteration 3": run["iter3_dpo"], str(run.folder / "other"): run["other"]}


def test_a_sampled_answer_and_its_rewards_are_those_of_chapter_10(run: Run) -> None:
    gold, policies, data, judge = World(run.profile.world), _policies(run), run["preference_data"], run["bt_mix2"]
    held_out = [
        answer_held_out(run, f"held_out_{i}", policy, data, judge) for i, policy in enumerate(policies.values())
    ]
    rows = [{row["prompt_id"]: row for row in answers.dataset()} for answers in held_out]
    with open_talk(run, policies) as talk:
        for text in PROMPTS:
            found = [row[prompt_key(user_turn(text))] for row in rows]
            said = talk(f" {text}\n", True, run.seed)
            assert [answer.text for answer in said] == [row["responses"][0] for row in found]
            assert [answer.reward for answer in said] == pytest.approx([row["rewards"][0] for row in found], abs=1e-4)
            truths = [gold.reward(text, answer.text) if text == OF_THE_WORLD else None for answer in said]
            assert [answer.gold for answer in said] == truths
        assert len({answer.text for answer in said}) == 3, "three policies"
        assert talk(HOSTILE, True, run.seed) != talk(HOSTILE, True, run.seed + 1)
        assert talk(HOSTILE, False, run.seed) == talk(HOSTILE, False, run.seed + 1), "greedy"


def test_a_prompt_that_cannot_be_answered_is_one_line(run: Run) -> None:
    with open_talk(run, {"SFT": run["sft"]}) as talk:
        for empty in ("", " \n"):
            with pytest.raises(ValueError, match=r"^The prompt is empty: write one"):
                talk(empty, False, 0)
        with pytest.raises(ValueError, match=r"^The prompt has \d{3} tokens, at most 150 are allowed: shorten it\.$"):
            talk("x1" * 150, False, 0)


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command_line.main(["talk", *arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_a_failing_command_ends_in_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = _error(capsys, "--run-dir", str(tmp_path))
    fix = "run the chapters before make chat first (make guide, or their notebooks in order)"
    assert line.endswith(f"/sft is missing: {fix}")
    assert "model no/such/folder: no such folder" in _error(capsys, "--models", "no/such/folder")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = _error(capsys, "--run-dir", str(run.folder), "--port", str(port))
    assert line.startswith(f"error: port {port} is not free (")
    assert line.endswith("choose another with PORT=…")
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = _error(capsys, "--run-dir", str(run.folder), "--port", str(_free_port()))
    assert line == "error: gradio is not installed: use `make chat`, or install the extra chat"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed (make chat, or make test EXTRAS=dev,chat)")
    with open_browser() as opened:
        yield opened


@pytest.mark.timeout(600)
def test_the_browser_ends_with_its_block() -> None:
    """Where `chromium` is a shell script that starts the browser, too."""
    before = psutil.Process().children(recursive=True)
    with open_browser() as opened:
        opened.open("about:blank")
        started = [each for each in psutil.Process().children(recursive=True) if each not in before]
        browsers = [each for each in started if "chrom" in each.name()]
        assert browsers
    psutil.wait_procs(browsers, timeout=60)
    assert [each.name() for each in browsers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def site(run: Run, browser: Browser) -> Iterator[str]:
    """The page, served by the command. Every proxy is a socket on which nobody may ever call."""
    port, other = _free_port(), str(run.folder / "other")
    values = " ".join(f"{key}={value}" for key, value in SETTINGS.items())
    command = [sys.executable, "-m", "rlhflow_utils", "talk", "--run-dir", str(run.folder), "--set", values]
    with socket.create_server(("127.0.0.1", 0)) as outside:
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        proxies = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "ALL_PROXY": proxy, "NO_PROXY": "127.0.0.1"}
        environment = {**os.environ, **proxies} | {name.lower(): value for name, value in proxies.items()}
        environment.pop("HF_HUB_OFFLINE", None)
        with subprocess.Popen(
            [*command, "--models", other, "--port", str(port)], cwd=PROJECT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line == f"Open http://127.0.0.1:{port} (Ctrl-C ends it)\n", line + child.stdout.read()
            yield f"http://127.0.0.1:{port}/"
            child.terminate()
        outside.setblocking(False)
        with pytest.raises(BlockingIOError):
            outside.accept()


def _open(browser: Browser, site: str) -> None:
    browser.errors.clear()
    browser.requests.clear()
    browser.open(site)
    browser.wait(f"{EXAMPLES}.length > 0 && {EXAMPLES}.every(Boolean)")


def _ask(browser: Browser, site: str, text: str, sampled: bool = False) -> list[tuple[str, str]]:
    """Open the page, type a prompt, ask for answers (sampled: by Enter), and read the fields below the prompt."""
    _open(browser, site)
    if sampled:
        browser.run("document.querySelector('input[type=checkbox]').click()")
    browser.run("document.querySelector('textarea').focus()")
    browser.call("Input.insertText", text=text)
    if sampled:
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r")
    else:
        browser.run("document.querySelector('button.primary').click()")
    browser.wait(f"{FIELDS}.some(([label, value]) => value && ['characters', 'No answer'].includes(label))")
    (label, shown), *fields = browser.run(FIELDS)
    assert (label, shown) == ("Prompt", text)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith((site, "data:"))] == []
    return [(label, value) for label, value in fields]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("text", "sampled"), [(OF_THE_WORLD, False), (OF_THE_WORLD, True), (HOSTILE, False)])
def test_the_page_shows_what_the_package_computes(
    run: Run, site: str, browser: Browser, tmp_path: Path, text: str, sampled: bool
) -> None:
    browser.resize(LAPTOP)
    fields = _ask(browser, site, text, sampled)
    one = run.profile.generation.variant(1, [run.profile.evaluation.temperature if sampled else 0.0])
    rows = [{"prompt_id": prompt_key(user_turn(text)), "prompt": user_turn(text)}]
    for place, (name, policy) in enumerate(_policies(run).items()):
        [answer] = generate(policy, rows, one, run.profile.model, tmp_path / str(place), run.seed)[0][0]["responses"]
        [reward] = score(run["bt_mix2"], [(user_turn(text), answer)], 1000)
        truth = f"{World(run.profile.world).reward(text, answer):.3f}" if text == OF_THE_WORLD else "–"
        shown = fields[4 * place : 4 * place + 4]
        assert shown[0] == (name, answer.replace("\r\n", "\n").replace("\r", "\n"))
        assert shown[1] == ("RM reward", f"{reward:.3f}")
        assert shown[2:] == [("true reward", truth), ("characters", str(len(answer)))]
    assert len(fields) == 12
    assert browser.run("document.title") == "Talk to the models"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_says_why_there_is_no_answer(site: str, browser: Browser) -> None:
    [problem, *fields] = _ask(browser, site, "x1" * 150)
    assert problem[0] == "No answer"
    assert problem[1].endswith("tokens, at most 150 are allowed: shorten it.")
    assert {value for _, value in fields} == {""}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("width", [PHONE, LAPTOP])
def test_nothing_is_wider_than_the_window(site: str, browser: Browser, width: int) -> None:
    browser.resize(width)
    _ask(browser, site, LONG_WORD)
    assert browser.run(RIGHTMOST) <= width + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_held_out_prompt_is_chosen_by_a_click(site: str, browser: Browser) -> None:
    _open(browser, site)
    shown = browser.run(f"{EXAMPLES}.map(each => each.slice(0, 40))")
    assert shown == [text[:40] for text in PROMPTS]
    browser.run("document.querySelectorAll('.gallery-item')[1].click()")
    browser.wait("document.querySelector('textarea').value")
    assert browser.run("document.querySelector('textarea').value") == HOSTILE
    assert browser.run("document.title") == "Talk to the models"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_model_writes_stays_text(run: Run, browser: Browser) -> None:
    """Also its name, a message about it, and an answer that has no rewards; without a simulated world."""

    def talk(text: str, sampled: bool, seed: int) -> list[Answer]:
        if text == "fail":
            raise ValueError(HOSTILE)
        return [Answer(HOSTILE, None, None), Answer(f"{HOSTILE}\n# {HOSTILE}", -1.5, None)]

    real = Run("make chat", run.profile.model_copy(update={"world": None}), run.folder)
    port = _free_port()
    page = open_page(real, ["SFT", HOSTILE], talk, port)
    try:
        fields = _ask(browser, f"http://127.0.0.1:{port}/", "answer")
        assert fields[:3] == [("SFT", HOSTILE), ("RM reward", "–"), ("characters", str(len(HOSTILE)))]
        assert fields[3:5] == [(HOSTILE, f"{HOSTILE}\n# {HOSTILE}"), ("RM reward", "-1.500")]
        assert len(fields) == 6
        assert browser.run("[document.title, document.querySelectorAll('img').length]") == ["Talk to the models", 0]
        fields = _ask(browser, f"http://127.0.0.1:{port}/", "fail")
        assert fields[0] == ("No answer", HOSTILE)
        assert browser.run("[document.title, document.querySelectorAll('img').length]") == ["Talk to the models", 0]
    finally:
        page.close()
