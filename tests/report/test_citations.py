"""What a paper takes beside figures: works, the paragraph on the method, captions."""

from __future__ import annotations

import re

import pytest

from refusal_cmp.config import load_config
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.methods import EXTRACTORS
from refusal_cmp.report.citations import bibtex, cited_by, works, works_of
from refusal_cmp.report.latex import tables
from refusal_cmp.report.method_text import method_text


def test_every_published_method_and_intervention_cites_what_it_is_from():
    uncited = {
        name for registry in (EXTRACTORS, INTERVENTIONS) for name in registry if not cited_by(registry.get(name))
    }
    assert uncited <= {"given", "random", "shuffled", "median", "mean-shift-k", "clamp"}, "these are ours"
    assert cited_by(EXTRACTORS.get("inlp"))[0] == "ravfogel2020null"
    assert cited_by(EXTRACTORS.get("pca")) == ["zou2023representation"], "not the other work of that name and year"
    assert cited_by(EXTRACTORS.get("lda")) == ["fisher1936use", "ledoit2004well"]
    assert "rocchetti2026refusal" in cited_by(INTERVENTIONS.get("reflection"))
    assert cited_by(INTERVENTIONS.get("actadd")) == ["arditi2024refusal"]


def test_a_run_cites_its_own_works_and_no_others():
    small = load_config(None, {"methods": "diff-in-means", "interventions": "ablation", "evals": "refusal"})
    assert works_of(small.model_dump(mode="json")) == ["arditi2024refusal"]
    words = {"methods": "inlp", "interventions": "nullspace", "evals": "refusal"}
    assert "arditi2024refusal" in works_of(load_config(None, words).model_dump(mode="json")), "its phrases"
    extended = works_of(load_config(None, words | {"phrases": "extended"}).model_dump(mode="json"))
    assert "arditi2024refusal" not in extended
    large = load_config(None, {"model": "meta-llama/Llama-3-8B", "engine": "vllm"}).model_dump(mode="json")
    judged = {"inan2023llama", "hendrycks2021measuring", "clark2018think", "lin2022truthfulqa", "gao2024framework"}
    read = {"gao2020pile", "taori2023alpaca", "rottger2024xstest", "kwon2023efficient"}
    assert judged | read <= set(works_of(large))
    played = {"harmful": "tiny-harmful", "eval_datasets": "harmful=jailbreakbench,harmless", "contrast": "xstest"}
    of_test_sets = set(works_of(load_config(None, played).model_dump(mode="json")))
    assert "chao2024jailbreakbench" in of_test_sets
    assert "rottger2024xstest" not in of_test_sets, "contrast is no test set there"
    assert "allal2025smollm2" in works_of(load_config(None, {"model": "smol-refuser"}).model_dump(mode="json"))


def test_bibtex_is_whole():
    text = bibtex(works())
    entries = re.findall(r"^@(\w+)\{(\w+),\n(.*?)^\}$", text, re.MULTILINE | re.DOTALL)
    assert [key for _, key, _ in entries] == ["refusalcmp", *works()]
    for kind, key, fields in entries:
        assert kind in ("inproceedings", "misc", "software")
        assert text.count("{") == text.count("}")
        for name in ("author", "title", "year"):
            assert f"  {name} = {{" in fields, key
    assert "author = {Rocchetti and Ferrara}" in text
    assert "and others}" in text


def test_the_paragraph_says_what_the_run_did_and_cites_what_is_in_its_bibliography(data):
    text = method_text(data)
    known = {"refusalcmp", *works_of(data.config)}
    assert r"\texttt{refusal-cmp} \citep{refusalcmp}" in text
    cited = {key for keys in re.findall(r"\\cite[pt]\{([^}]*)\}", text) for key in keys.split(",")}
    assert cited
    assert cited <= known
    for kind in ("harmful", "harmless"):
        assert f"{len(data.prompts['prompts'][f'{kind}_train'])} {kind}" in text
    assert f"KL of at most {data.rule.kl_threshold:g} nats" in text
    assert rf"\texttt{{{data.config['model']}}}" in text
    assert re.search(r"(?<!\\)[%&#_]", re.sub(r"\\cite[pt]\{[^}]*\}", "", text)) is None
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("name", ["plans", "selection", "rankings"])
def test_tables_have_captions_and_labels(data, name):
    source = tables(data)[name]
    assert source.startswith("\\begin{table}\n\\centering\n\\caption{")
    assert f"\\label{{tab:{name}-small}}" in source
    caption = re.search(r"\\caption\{(.*)\}\n", source)
    assert caption is not None
    assert re.search(r"(?<!\\)[%&#_]", caption[1]) is None
