"""One markdown table from the files in benchmarks/results, for the README."""

from __future__ import annotations

import json
import statistics
from typing import Any

from _measure import RESULTS


def read(name: str) -> dict[str, Any] | None:
    """A result file, if its benchmark has been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def duration(seconds: float) -> str:
    """With the unit that fits."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def of_classifier(form: dict[str, Any]) -> str:
    """Time per classifier, and over how many it is the mean."""
    return f"{duration(form['seconds_per_classifier'])} (mean of {form['classifiers']})"


def inlp_rows(results: dict[str, Any]) -> list[str]:
    """A row for each width, and one for the whole model."""
    rows = [
        f"| one INLP classifier, d = {row['d']}, n = {row['n']} | {of_classifier(row['textbook'])} | "
        f"{of_classifier(row['ours'])} | {row['ratio']:,.0f} × |"
        for row in results["side_by_side"]
    ]
    if "whole_model" in results:
        whole = results["whole_model"]
        rows.append(
            f"| INLP at all {whole['components']} components of an 8B model ({whole['classifiers']} classifiers) | "
            f"dense matrices: {whole['dense_gb']:.1f} GB | {duration(whole['seconds'])}, {whole['peak_gib']:.1f} GiB "
            f"of memory, file of {whole['artifact_mb']:.0f} MB | |"
        )
    return rows


def extraction_rows(results: dict[str, Any]) -> list[str]:
    """A row for each model."""
    return [
        f"| extraction, {row['prompts']} prompts, {row['layers']} layers, d = {row['d']} | "
        f"bare passes {duration(row['seconds']['bare'])} | {duration(row['seconds']['activations'])} | "
        f"{1 / row['ratio']['activations']:.2f} × |"
        for row in results["models"]
    ]


def selection_rows(results: dict[str, Any]) -> list[str]:
    """A row for local and one for global scores."""
    return [
        f"| {row['reach']} selection, {results['shape']} model, {results['components']} components | "
        f"{duration(row['plain_s'])} | {duration(row['ours_s'])} ({row['over_floor']:.2f} × the floor) | "
        f"{row['ratio']:.1f} × |"
        for row in results["rows"]
    ]


def generation_rows(results: dict[str, Any]) -> list[str]:
    """A row for each engine of ours, on the baseline and over all interventions."""
    plain, *ours = results["engines"].items()
    rows = []
    for kind, engine in ours:
        ratios = [rate / plain[1]["tokens_per_s"][name] for name, rate in engine["tokens_per_s"].items()]
        rows.append(
            f"| {results['prompts']} completions of {results['new_tokens']} tokens, {results['shape']} model, "
            f"--engine {kind} | {plain[1]['tokens_per_s']['baseline']:,.0f} tokens/s | "
            f"{engine['tokens_per_s']['baseline']:,.0f} tokens/s | {ratios[0]:.1f} × "
            f"({min(ratios[1:]):.1f}–{max(ratios[1:]):.1f} × under the interventions) |"
        )
    return rows


def evaluation_rows(results: dict[str, Any]) -> list[str]:
    """A row for each kind of work, the medians of its rounds."""
    rows = []
    for work, times in results["seconds"].items():
        alone, together = map(statistics.median, times)
        rows.append(
            f"| evaluate: {work}, {results['plans']} plans, {results['shape']['model']} | {duration(alone)} | "
            f"{duration(together)} | {alone / together:.1f} × |"
        )
    return rows


def shots_rows(results: dict[str, Any]) -> list[str]:
    """A row for each benchmark, beside lm-eval's model of transformers at its best batch size."""
    rows = []
    for one in results["rows"]:
        theirs, ours = min(map(statistics.median, one["theirs"].values())), statistics.median(one["ours"])
        rows.append(
            f"| {one['questions']} questions, {one['task'].partition('/')[0]}, {one['model']} | "
            f"HFLM {duration(theirs)} | {duration(ours)} | {theirs / ours:.1f} × |"
        )
    return rows


def hooks_rows(results: dict[str, Any]) -> list[str]:
    """A row for each plan under vLLM's compiler, beside vLLM as it comes."""
    return [
        f"| vLLM compiled, {results['prompts']} completions of {results['new_tokens']} tokens, {results['shape']} "
        f"model, {way.removeprefix('compiled, ')} | vLLM's own {results['own']:,.0f} tokens/s | "
        f"{statistics.median(shares) * results['own']:,.0f} tokens/s | {statistics.median(shares):.2f} × |"
        for way, shares in results["shares"].items()
        if way.startswith("compiled")
    ]


def gpu_rows(results: dict[str, Any]) -> list[str]:
    """What a GPU told of an 8B shape: plans at once, a study, and prompts that begin alike."""
    card, shape, parts = results["machine"]["gpu"], results["shape"], results["parts"]
    made, study, prefix = (parts.get(name, {}) for name in ("generation", "study", "prefix"))
    rows = []
    if "ratio" in made:
        rows.append(
            f"| 8B shape on {card}: {made['completions']:,} completions of {shape['new_tokens']} tokens, "
            f"{made['plans']} plans | plan after plan {made['one_at_a_time_tokens_per_s']:,.0f} tokens/s | "
            f"{made['at_once_tokens_per_s']:,.0f} tokens/s | {made['ratio']:.1f} × |"
        )
    if "study_s" in study:
        rows.append(
            f"| 8B shape on {card}: extraction of {2 * shape['train']} prompts by diff-in-means and INLP, local "
            f"selection among {study['diff-in-means_components'] + study['inlp_components']} components | | "
            f"{duration(study['study_s'])} | |"
        )
    if "ratio" in prefix:
        rows.append(
            f"| 8B shape on {card}: {prefix['prompts']} prompts of {prefix['tokens_of_a_prompt']:.0f} tokens that "
            f"begin alike | {duration(prefix['plain_s'])} | {duration(prefix['shared_s'])} | {prefix['ratio']:.1f} × |"
        )
    return rows


def main() -> None:
    """Print the table."""
    cards = sorted(path.stem for path in RESULTS.glob("gpu-*.json"))
    forms = [
        (read("inlp"), inlp_rows),
        (read("extraction"), extraction_rows),
        *((read(f"selection-{shape}"), selection_rows) for shape in ("tiny", "135m", "0.5b", "7b")),
        *((read(f"evaluation-{shape}"), evaluation_rows) for shape in ("tiny", "135m")),
        (read("shots"), shots_rows),
        *((read(f"generation-{shape}"), generation_rows) for shape in ("tiny", "0.5b", "7b")),
        (read("hooks-135m"), hooks_rows),
        *((read(card), gpu_rows) for card in cards),
    ]
    print("| work | textbook form | here | faster by | threads |\n|---|---|---|---|--:|")
    there = [(results, rows) for results, rows in forms if results is not None]
    for results, rows in there:
        for row in rows(results):
            print(f"{row} {results['machine']['threads']} |")
    for machine in dict.fromkeys(
        (results["machine"]["processor"], results["machine"]["torch"]) for results, _ in there
    ):
        print("\n{}, torch {}.".format(*machine))


if __name__ == "__main__":
    main()
