"""Pairs that evaluate reward models: RewardBench's own schema, and the local sources of some of its subsets."""

from __future__ import annotations

from collections.abc import Iterator

from rlhflow_utils.sources.records import Candidate, FieldError, Row, get, get_list, get_one_of, get_text, user_turn

LLMBAR_SUBSETS = {
    "natural": "llmbar-natural",
    "adversarial_neighbor": "llmbar-adver-neighbor",
    "adversarial_gptinst": "llmbar-adver-GPTInst",
    "adversarial_gptout": "llmbar-adver-GPTOut",
    "adversarial_manual": "llmbar-adver-manual",
}
FULL_COMPLIANCE, FULL_REFUSAL = "1_full_compliance", "2_full_refusal"


def reward_bench(row_id: str, row: Row) -> list[Candidate]:
    """allenai/reward-bench: ``extra`` carries the subset and the benchmark's id."""
    extra = {"subset": get_text(row, "subset"), "id": get(row, "id")}
    return [Candidate(row_id, user_turn(get(row, "prompt")), get(row, "chosen"), get(row, "rejected"), extra=extra)]


def llmbar(row_id: str, row: Row) -> list[Candidate]:
    """princeton-nlp/LLMBar: ``label`` names the better output; the subset is the file's name."""
    winner = get_one_of(row, "label", (1, 2))
    stem = row_id.rpartition(":")[0]
    texts = get(row, f"output_{winner}"), get(row, f"output_{3 - winner}")
    return [Candidate(row_id, user_turn(get(row, "input")), *texts, extra={"subset": LLMBAR_SUBSETS.get(stem, stem)})]


def humanevalpack(row_id: str, row: Row) -> list[Candidate]:
    """bigcode/humanevalpack: the canonical solution against the buggy one; the subset is the file's name (language)."""
    prompt = get_text(row, "prompt")
    texts = get_text(row, "canonical_solution"), get_text(row, "buggy_solution")
    chosen, rejected = (f"{prompt}{text}" for text in texts)  # RewardBench's answers repeat the declaration
    extra = {"subset": f"hep-{row_id.rpartition(':')[0]}", "id": get(row, "task_id")}
    return [Candidate(row_id, user_turn(get(row, "instruction")), chosen, rejected, extra=extra)]


def join_xstest(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    """Join XSTest's prompts with the completions of two models, by id (``1`` in one file is ``v2-1`` in the others).

    The prompt text is the completions' own: the one with id 195 differs between the files.
    """
    labels: dict[str, str] = {}
    completions: dict[str, list[Row]] = {}
    for _, row in rows:
        key = get_text(row, "id").removeprefix("v2-")
        if "completion" in row:
            completions.setdefault(key, []).append(row)
        else:
            labels[key] = get_one_of(row, "label", ("safe", "unsafe"))
    for key, answers in completions.items():
        if key not in labels:
            raise FieldError(f"id {key!r} of the completions is not in the prompts file; name both kinds in `files`")
        yield f"xstest:{key}", {"label": labels[key], "answers": answers}


def xstest(row_id: str, row: Row) -> list[Candidate]:
    """XSTest, joined: a full compliance against a full refusal, whichever model gave it; others are no pair.

    A safe prompt should be answered (subset xstest-should-respond), an unsafe one refused (xstest-should-refuse).
    """
    answers = get_list(row, "answers")
    if not answers:
        raise FieldError("field 'answers' is empty; `join_xstest` makes these rows")
    prompt = user_turn(get(answers[0], "prompt"))
    by_label = {get_text(a, "final_label"): get(a, "completion") for a in answers}
    safe = get(row, "label") == "safe"
    extra = {"subset": "xstest-should-respond" if safe else "xstest-should-refuse", "id": row_id}
    if FULL_COMPLIANCE not in by_label or FULL_REFUSAL not in by_label:
        return [Candidate(row_id, prompt, "", "", evidence="no_pair", extra=extra)]
    comply, refuse = by_label[FULL_COMPLIANCE], by_label[FULL_REFUSAL]
    return [Candidate(row_id, prompt, *((comply, refuse) if safe else (refuse, comply)), extra=extra)]
