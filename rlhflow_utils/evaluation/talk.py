"""A page to talk to a run's models: their answers to one prompt side by side, with their rewards (`make chat`).

Sampled with the run's seed, a held-out prompt gets the very answers that chapter 10 judges. Policies answer through
transformers, also where the profile says vLLM: each policy's engine would want the GPU for itself. What a model wrote
stands in text fields, where it can be neither HTML nor Markdown. Server and page talk to this machine alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rlhflow_utils.data.reading import user_turn
from rlhflow_utils.guide.run import Run
from rlhflow_utils.guide.stage import read_artifact
from rlhflow_utils.models.chat import encode_prompt, load_tokenizer, prompt_key
from rlhflow_utils.models.forward import Model
from rlhflow_utils.models.reward_model import load_scorer
from rlhflow_utils.online.generation import respond
from rlhflow_utils.simulator.gold import World

HOST = "127.0.0.1"
EXAMPLES = 8  # held-out prompts to choose from
Talk = Callable[[str, bool, int], list["Answer"]]


class Answer(NamedTuple):
    """A policy's answer, the RM's reward (None: too long for it) and the true one (None: no prompt of the world)."""

    text: str
    reward: float | None
    gold: float | None


def serve(run: Run, named: Sequence[str], port: int) -> None:
    """Serve the page until Ctrl-C: the run's SFT policy, its last iteration, and stages, folders or hub ids `named`."""
    last = run.profile.iterative.iterations
    policies: dict[str, Model] = {"SFT": run["sft"], f"iteration {last}": run[f"iter{last}_dpo"]}
    policies |= {name: read_artifact(Path(name)) or name for name in named}
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise OSError(f"port {port} is not free ({error.strerror}): choose another with PORT=…") from error
    if find_spec("gradio") is None:
        raise ImportError("gradio is not installed: use `make chat`, or install the extra chat")
    with open_talk(run, policies) as talk:
        page = open_page(run, list(policies), talk, port)
        print(f"Open http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
        page.block_thread()


@contextmanager
def open_talk(run: Run, policies: Mapping[str, Model]) -> Iterator[Talk]:
    """`talk(prompt, sampled, seed)` with all models in memory: an answer of each policy, in order; the run's RM rates.

    Sampled answers have `evaluation.temperature`, others are greedy. ValueError: an empty prompt, or one of more tokens
    than `generation.max_prompt_tokens`.
    """
    from rlhflow_utils.online.engines import open_sampler

    profile = run.profile
    settings = profile.generation.model_copy(update={"backend": "transformers"})
    scoring, gold = profile.reward_model, World(profile.world) if profile.world else None
    scorer = load_scorer(run.reward_model(), scoring.batch_tokens, profile.model, scoring.output)
    with ExitStack() as opened:
        samplers = [opened.enter_context(open_sampler(each, settings, profile.model)) for each in policies.values()]
        tokenizers = [load_tokenizer(each, profile.model) for each in policies.values()]

        def talk(text: str, sampled: bool, seed: int) -> list[Answer]:
            if not text.strip():
                raise ValueError("The prompt is empty: write one, or choose one below.")
            prompt = user_turn(text.strip())
            tokens, most = max(len(encode_prompt(prompt, each)) for each in tokenizers), settings.max_prompt_tokens
            if tokens > most:
                raise ValueError(f"The prompt has {tokens} tokens, at most {most} are allowed: shorten it.")
            rows = [{"prompt_id": prompt_key(prompt), "prompt": prompt}]
            one = settings.variant(1, [profile.evaluation.temperature if sampled else 0.0])
            models = zip(samplers, tokenizers, strict=True)
            texts = [respond(sampler, rows, one, seed, tokenizer)[0]["responses"][0] for sampler, tokenizer in models]
            truths = [gold.reward(text, each) if gold and gold.read_prompt(text) else None for each in texts]
            return list(map(Answer, texts, scorer((prompt, each) for each in texts), truths))

        yield talk


def open_page(run: Run, names: Sequence[str], talk: Talk, port: int) -> Any:
    """The page, served by a thread: a `gradio.Blocks` without telemetry, shared link or fonts of another machine."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    held_out = run["preference_data"].dataset("evaluation_prompts")["prompt"]
    texts = [[prompt[0]["content"]] for prompt in held_out if len(prompt) == 1]
    labels = ["RM reward", "true reward", "characters"] if run.profile.world else ["RM reward", "characters"]

    def show(text: str, sampled: bool, seed: int | None) -> list[Any]:
        shown: list[Any] = [gr.Textbox(visible=False)]
        try:
            for answer in talk(text, sampled, seed or 0):
                rewards = ["–" if each is None else f"{each:.3f}" for each in answer[1 : len(labels)]]
                shown += [answer.text, *rewards, f"{len(answer.text):,}"]
        except ValueError as error:
            return [gr.Textbox(str(error), visible=True), *[""] * (len(outputs) - 1)]
        return shown

    with gr.Blocks(title="Talk to the models", analytics_enabled=False) as page:
        gr.Markdown(f"# Talk to the models\n\n{run.caption}")
        prompt = gr.Textbox(label="Prompt", autofocus=True)
        sampled = gr.Checkbox(label=f"sample at temperature {run.profile.evaluation.temperature}, else greedy")
        seed = gr.Number(run.seed, label="seed of sampling", precision=0)
        button = gr.Button("Answer", variant="primary")
        outputs = [gr.Textbox(label="No answer", visible=False)]
        with gr.Row():
            for name in names:
                with gr.Column(min_width=300):
                    outputs.append(gr.Textbox(label=name, lines=3))
                    with gr.Row():
                        outputs += [gr.Textbox(label=label, min_width=80) for label in labels]
        gr.Examples(texts[:: max(1, len(texts) // EXAMPLES)][:EXAMPLES], prompt, label="Held-out prompts")
        gr.on([button.click, prompt.submit], show, [prompt, sampled, seed], outputs)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True,
        ssr_mode=False, run_history=False, footer_links=[], theme=theme,
    )  # fmt: skip
    return page
