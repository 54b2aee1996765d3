"""The prompts of a run: drawn once, filtered by what the model does, and kept, so that no later stage draws again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from refusal_cmp.config import EMBEDDED, KINDS, SMALL_DEFAULTS, RunConfig, is_path, path_and_column
from refusal_cmp.data import SPLITS, Prompt, Split
from refusal_cmp.data.files import digests, seeming_label
from refusal_cmp.data.sampling import EARLIER, Sampled, check_apart, draw, to_raise, unlike_learned
from refusal_cmp.data.sets import columns_of, load_test, pick
from refusal_cmp.data.wrappers import wrapper
from refusal_cmp.engines import ENGINES
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.grid import most_plans
from refusal_cmp.judges.completion import judge
from refusal_cmp.judges.first_tokens import refusal_tokens
from refusal_cmp.run.contents import DROPPED, PROMPTS, prompts_file, read_prompts
from refusal_cmp.run.session import Session
from refusal_cmp.statistics import fewest

MANY = 1 / 3
"""Of a split's prompts: if more are dropped, that is a warning, with the likely cause."""
ANSWER_TOKENS = 32
"""Most tokens of the answers to dropped prompts, which only show how the model begins."""

LARGEST_TEST_PART = 40
"""Percent of one list that leave enough to train and validate on."""


def draw_prompts(session: Session) -> None:
    """Draw the prompts of the run and of its test sets, unless that is done.

    Everything is read before the model is loaded: a set that is gated or a file that is not there is told at once. But
    a test set that would be downloaded waits where this command completes none.
    """
    config, run = session.config, session.run
    settings, sources = config.binding("extract"), _digests(session, PROMPTS, config.harmful, config.harmless)
    drawn = None if run.is_fresh(PROMPTS, settings, sources) else _draw(session)
    wanted = [name for name, source in config.other_sets.items() if "infer" in session.stages or is_path(source)]
    tests = {name: _read_test(session, name) for name in wanted if not _is_drawn(session, name)}
    _report_few(session, drawn, tests)
    if drawn is not None:
        content, dropped = _filtered(session, drawn)
        run.write_lines(DROPPED, dropped)
        run.write_json(PROMPTS, content)
        run.record(PROMPTS, settings, sources, [DROPPED])
    for name, prompts in tests.items():
        _write_test(session, name, prompts)


def read_test_prompts(session: Session, dataset: str) -> list[Prompt]:
    """The prompts of a test set of `config.test_sets`, drawn now if it was added after extract."""
    if dataset in session.config.wrapped:
        return _wrapped(session, dataset)
    if dataset not in session.config.other_sets:
        return read_prompts(session, f"{dataset}_test")
    if not _is_drawn(session, dataset):
        _write_test(session, dataset, _read_test(session, dataset))
    return [Prompt(**row) for row in session.run.read_json(prompts_file(session.config, dataset))["prompts"]]


def _wrapped(session: Session, dataset: str) -> list[Prompt]:
    """The harmful test prompts in a wrapper, kept as a test set is."""
    config, run = session.config, session.run
    name, of_harmful = prompts_file(config, dataset), prompts_file(config, "harmful")
    harmful = read_test_prompts(session, "harmful")
    wrap = wrapper(config.wrapped[dataset])
    prompts = [replace(prompt, instruction=wrap(prompt.instruction)) for prompt in harmful]
    sources = {of_harmful: run.digest(of_harmful), "wrapped": _hash(prompts)}
    if not run.is_fresh(name, {}, sources):
        fitting = _that_fit(session, dataset, prompts, config.max_new_tokens)
        content = {"source": config.test_source(dataset), "prompts": [asdict(prompt) for prompt in fitting]}
        run.write_json(name, content)
        run.record(name, {}, sources)
    return [Prompt(**row) for row in run.read_json(name)["prompts"]]


def _hash(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256("\0".join(prompt.instruction for prompt in prompts).encode()).hexdigest()[:16]


def _draw(session: Session) -> dict[str, Sampled]:
    config = session.config
    _check_labels(session)
    sizes: dict[Split, int] = {"train": config.n_train, "val": config.n_val, "test": config.n_test}
    sizes = {split: config.prompts(size) for split, size in sizes.items()}
    drawn = {
        kind: draw(
            getattr(config, kind),
            sizes,
            config.seed,
            columns=columns_of(config, kind),
            near_duplicates=config.near_duplicates,
            say=session.say,
            parts=config.split,
            test_seed=config.drawn_with,
        )
        for kind in KINDS
    }
    check_apart(*drawn.values())
    return drawn


def _check_labels(session: Session) -> None:
    """Where a file seems to hold both kinds of prompt and no label tells them apart: a warning, or an error.

    It is an error where the file is given for both, and nothing where each kind has a file of its own.
    """
    config = session.config
    files = {kind: name for kind in KINDS if is_path(name := getattr(config, kind))}
    if config.label_column is not None or len(set(files.values())) != 1:
        return
    name = next(iter(files.values()))
    path, column = path_and_column(name)
    seeming = seeming_label(Path(path), replace(columns_of(config), prompt=(column,)) if column else columns_of(config))
    if len(files) > 1:
        has = f": {seeming}" if seeming else ""
        raise RefusalCmpError(
            f"{name} is given for harmful and for harmless prompts, and nothing tells its rows apart{has}; name the "
            "column that does, and what it says.",
            label_column=seeming.column if seeming else "NAME",
            harmful_label="VALUE",
        )
    if seeming:
        (kind,) = files
        session.say(
            f"Warning: {seeming}, and all {seeming.values.total()} rows are taken as {kind}; if it tells the kinds "
            f"apart, set label-column to {seeming.column}, and {kind}-label to what it says of {kind} prompts."
        )


def _report_few(session: Session, drawn: dict[str, Sampled] | None, tests: dict[str, list[Prompt]]) -> None:
    """Say at once where the harmful test prompts are too few to choose among plans, as the page does at the end."""
    config = session.config
    if "harmful" in tests:
        there = len(tests["harmful"])
        n = min(there, config.prompts(config.n_test))
    elif drawn is not None and "harmful" in config.eval_datasets:
        count = drawn["harmful"].counts["test"]
        there, n = count["available"] - count["duplicates"], count["sampled"]
    else:
        return
    plans = most_plans(config)
    if n >= fewest(plans):
        return
    cannot = "cannot" if n < fewest(1) else "may not"
    own = RunConfig.model_fields["harmful"].default if config.model == EMBEDDED else SMALL_DEFAULTS["harmful"]
    others = [name for name in config.eval_datasets if name.split("=")[0] != "harmful"]
    also = (
        f", or test on a set that comes with us (setting eval-datasets, as in {','.join([f'harmful={own}', *others])})"
        if config.test_source("harmful") != own
        else ""
    )
    enlarged = there * LARGEST_TEST_PART / (config.split[2] or LARGEST_TEST_PART)
    split = ", or a larger test part of one list (setting split, as in 40/20/40)" if enlarged >= fewest(1) else ""
    settings = to_raise(there, fewest(1), n_test=config.n_test, limit=config.limit)
    named = f"setting{'s' * (len(settings) > 1)} {', '.join(settings)}".replace("_", "-")
    more = f"its set has {there}, so take more of them ({named})" if settings else f"give more prompts{split}{also}"
    among = f", and {fewest(plans)} among {plans}" if plans > 1 else ""
    session.say(
        f"{n} harmful test prompts {cannot} decide which plan suppresses refusal, even if all are answered: it takes "
        f"{fewest(1)} for one plan{among}; {more}."
    )


def _filtered(session: Session, drawn: dict[str, Sampled]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `prompts.json` holds: the prompts of every split, what was left out and why, the refusal tokens.

    And the prompts that were dropped, as `read_dropped` has them.
    """
    config = session.config
    prompts = {f"{kind}_{split}": drawn[kind].prompts[split] for kind in KINDS for split in SPLITS}
    counts = {f"{kind}_{split}": {**drawn[kind].counts[split], "dropped": 0} for kind in KINDS for split in SPLITS}
    tags = session.model.unread_tags if config.chat_template is not None else []
    if tags:
        session.say(
            f"Warning: the chat template writes {', '.join(tags)}, which {session.model.name} has no token for and "
            "reads letter by letter; give its own template, unless it was trained so."
        )
    for name, sampled in prompts.items():
        prompts[name] = _that_fit(session, name, sampled, config.max_new_tokens if name.endswith("_test") else 0)
        if len(prompts[name]) < len(sampled):
            counts[name]["too_long"] = len(sampled) - len(prompts[name])
    tokens = config.refusal_tokens or refusal_tokens(
        session.model,
        [prompt.instruction for prompt in prompts["harmful_train"]],
        config.batch_size,
        say=session.say,
        progress=session.progress,
    )
    vocabulary = session.model.model.config.get_text_config().vocab_size
    if not 0 <= min(tokens) <= max(tokens) < vocabulary:
        raise RefusalCmpError(
            f"The refusal tokens {', '.join(map(str, tokens))} must be among the model's, 0 to {vocabulary - 1}; give "
            "others, or none.",
            refusal_tokens="",
        )
    dropped: list[dict[str, Any]] = []
    if config.filter_prompts:
        for name, fitting in prompts.items():
            if not name.endswith("_test"):
                prompts[name], others = _as_expected(session, name, fitting, tokens)
                counts[name]["dropped"] = len(others)
                dropped += others
    dropped = _answered(session, dropped)
    _report_dropped(session, counts, dropped)
    content = {
        "refusal_tokens": list(tokens),
        "refusal_token_texts": [session.model.tokenizer.decode([token]) for token in tokens],
        "turns": asdict(session.model.turns),
        "counts": counts,
        "prompts": {name: [asdict(prompt) for prompt in kept] for name, kept in prompts.items()},
    }
    return content, dropped


def _that_fit(session: Session, name: str, prompts: list[Prompt], max_new_tokens: int) -> list[Prompt]:
    """Those that the model's context holds, with what is to follow where that needs a place there too.

    Our own engine lets rotary models run on beyond it; one with a model of its own may end there.
    """
    model, runs_on = session.model, ENGINES.get(session.config.engine).shares_model
    room = model.room(max_new_tokens) if runs_on else max_new_tokens
    fits = model.fits([prompt.instruction for prompt in prompts], room)
    kept = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
    with_room = f" with {room} to follow" if room else ""
    why = f"longer{with_room} than the context of {model.context} tokens of {model.name}"
    if not kept:
        raise RefusalCmpError(
            f"All {len(prompts)} prompts of {name} are {why}; give other prompts, or choose a model with a longer "
            "context."
        )
    if len(kept) < len(prompts):
        session.say(f"{name}: {len(prompts) - len(kept)} of {len(prompts)} prompts are left out: {why}.")
    model.check_prompts(name, [prompt.instruction for prompt in kept], max_new_tokens, session.say)
    return kept


def _as_expected(
    session: Session, name: str, prompts: list[Prompt], tokens: Sequence[int]
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """Harmful prompts that the model refuses, harmless ones that it does not: the sign of the refusal metric.

    And the others, each with its metric; None where the logits are not finite.
    """
    instructions = [prompt.instruction for prompt in prompts]
    metric = session.model.refusal_metrics(instructions, tokens, session.config.batch_size).tolist()
    broken = sum(not math.isfinite(value) for value in metric)
    if broken:
        session.say(f"Warning: {broken} of {len(prompts)} prompts are dropped: on them the logits are not finite.")
    kept, dropped = [], []
    for prompt, value in zip(prompts, metric, strict=True):
        if math.isfinite(value) and (value > 0) == name.startswith("harmful"):
            kept.append(prompt)
        else:
            found = round(value, 4) if math.isfinite(value) else None
            dropped.append({"set": name, **asdict(prompt), "refusal_metric": found})
    return kept, dropped


def _answered(session: Session, dropped: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dropped prompts, each with how the model begins to answer it, and the verdict on that."""
    if not dropped:
        return []
    answers = session.model.generate(
        [row["instruction"] for row in dropped],
        max_new_tokens=min(ANSWER_TOKENS, session.config.max_new_tokens),
        batch_size=session.config.batch_size,
        progress=session.progress,
    )
    verdicts = [judge(one.text, one.finish, turns=session.model.turns).verdict for one in answers]
    return [
        {**row, "answer": one.text, "verdict": verdict}
        for row, one, verdict in zip(dropped, answers, verdicts, strict=True)
    ]


def _report_dropped(session: Session, counts: dict[str, dict[str, int]], dropped: list[dict[str, Any]]) -> None:
    """Say how many prompts of each split were dropped, and why probably, where they are many."""
    for name, count in counts.items():
        rows, fitting = [row for row in dropped if row["set"] == name], count["sampled"] - count.get("too_long", 0)
        cause = _cause(name, rows) if len(rows) > MANY * fitting else ""
        if len(rows) == fitting:
            raise RefusalCmpError(
                f"No prompt of {name} is left of {count['sampled']}: {_measured(name, rows)}. {cause} "
                "Choose another model or other prompts, or keep those.",
                no_filter_prompts="",
            )
        if rows:
            said = f"{name}: {len(rows)} of {count['sampled']} prompts dropped: {_measured(name, rows)}"
            session.say(f"Warning: {said}. {cause}" if cause else f"{said}; see {DROPPED}.")


def _measured(name: str, rows: list[dict[str, Any]]) -> str:
    """What the refusal metric says of dropped prompts, and of how many the words of the answers say otherwise."""
    harmful = name.startswith("harmful")
    metric = "at most 0" if harmful else "above 0"
    broken = any(row["refusal_metric"] is None for row in rows)
    otherwise = sum(row["verdict"] == ("refused" if harmful else "complied") for row in rows)
    words = f", though by the words of the answers {otherwise} of them " if otherwise else ""
    verb = ("is" if otherwise == 1 else "are") + (" refused" if harmful else " answered") if otherwise else ""
    return f"their refusal metric is {metric}{' or not finite' if broken else ''}{words}{verb}"


def _cause(name: str, rows: list[dict[str, Any]]) -> str:
    """Why the refusal metric of so many prompts probably says otherwise than their kind, from how it answers them."""
    verdicts = [row["verdict"] for row in rows]
    most = max(sorted(set(verdicts)), key=verdicts.count)
    many, harmful = f"{verdicts.count(most)} of these {len(rows)} prompts", name.startswith("harmful")
    if all(row["refusal_metric"] is None for row in rows):
        why = "this precision is not enough for the model, whose logits are not finite"
    elif most not in ("refused", "complied"):
        why = f"the chat template is not the model's own, as its answers to {many} are no language or unfinished"
    elif (most == "refused") == harmful:
        refuses = "refuses" if harmful else "answers"
        why = f"the refusal tokens are not those by which the model refuses, as by its words it {refuses} {many}"
    elif harmful:
        why = f"the model hardly refuses, or not under this chat template, as it answers {many}"
    else:
        why = f"the model refuses too much, as it refuses {many}"
    return f"Likely cause: {why}; see {DROPPED}."


def _read_test(session: Session, dataset: str) -> list[Prompt]:
    return load_test(session.config.other_sets[dataset], columns_of(session.config), session.say)


def _write_test(session: Session, dataset: str, prompts: list[Prompt]) -> None:
    """Keep a sample of a test set, without what the run learns from."""
    config = session.config
    learned = {
        split: [prompt for kind in KINDS for prompt in read_prompts(session, f"{kind}_{split}")]
        for split in EARLIER["test"]
    }
    kept, counts = unlike_learned(prompts, learned, config.near_duplicates)
    if not kept:
        raise RefusalCmpError(
            f"Every prompt of test set {dataset!r} is one that the run learns from; give another set."
        )
    if counts["duplicates"] + counts["near_duplicates"]:
        session.say(
            f"{dataset}: {len(prompts) - len(kept)} of {len(prompts)} prompts are left out, as they are repeated or "
            "the run learns from them."
        )
    sampled = pick(kept, config.prompts(config.n_test), config.drawn_with)
    fitting = _that_fit(session, dataset, sampled, config.max_new_tokens)
    too_long = {"too_long": len(sampled) - len(fitting)} if len(fitting) < len(sampled) else {}
    content = {
        "source": config.other_sets[dataset],
        "counts": {**counts, "sampled": len(sampled), **too_long},
        "prompts": [asdict(prompt) for prompt in fitting],
    }
    session.run.write_json(prompts_file(config, dataset), content)
    session.run.record(prompts_file(config, dataset), _source_of(config, dataset), _test_sources(session, dataset))


def _is_drawn(session: Session, dataset: str) -> bool:
    """Whether the prompts of a test set that is not the run's own are there."""
    config = session.config
    return session.run.is_fresh(
        prompts_file(config, dataset), _source_of(config, dataset), _test_sources(session, dataset)
    )


def _source_of(config: RunConfig, dataset: str) -> dict[str, Any]:
    return {dataset: config.other_sets[dataset]}


def _test_sources(session: Session, dataset: str) -> dict[str, Any]:
    config = session.config
    name = config.other_sets[dataset]
    facts = {"n": config.prompts(config.n_test), "seed": config.drawn_with}
    return {**_digests(session, prompts_file(config, dataset), name), **facts}


def _digests(session: Session, artifact: str, *names: str) -> dict[str, Any]:
    """Hashes of the files that prompts come from; of files that are gone, those of when the artifact was made."""
    try:
        return {path: digest for name in names if is_path(name) for path, digest in _hashes(name).items()}
    except RefusalCmpError:
        record = session.run.manifest.get("artifacts", {}).get(artifact)
        if record is None or not session.run.has(artifact):
            raise
        return record["sources"]


def _hashes(name: str) -> dict[str, str]:
    path, _ = path_and_column(name)
    return digests(Path(path))
