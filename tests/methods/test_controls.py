"""The control extractors: what an edit of the same size does that knows nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refusal_cmp.api import extract, plan_intervention
from refusal_cmp.config import RunConfig
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.judges.completion import judge
from refusal_cmp.methods import EXTRACTORS, configured
from refusal_cmp.model.reading import collect
from refusal_cmp.registry import parse_spec

from support.models import instructions


@pytest.fixture(scope="module")
def fields(tiny):
    prompts = instructions("tiny-harmful", "train", 48), instructions("tiny-harmless", "train", 48)
    return {name: extract(tiny, *prompts, method=name) for name in ("diff-in-means", "inlp", "random", "shuffled")}


def test_random_subspaces_have_inlps_rank_and_point_to_harmful(fields):
    assert set(fields["random"]) == set(fields["inlp"])
    for component in fields["inlp"]:
        found = fields["random"][component]
        assert found.k == fields["inlp"][component].k
        assert torch.allclose(found.basis @ found.basis.mT, torch.eye(found.k, dtype=torch.float64))
        harmful, harmless = fields["random"].means.at(component)
        assert (found.basis @ (harmful - harmless) >= 0).all()


def test_random_has_the_rank_that_the_runs_own_inlp_finds(tiny):
    activations = collect(tiny, instructions("tiny-harmful", "train", 20), instructions("tiny-harmless", "train", 20))
    ranks = []
    for config in (RunConfig(device="cpu", inlp_stop="0.99"), RunConfig(device="cpu")):
        found = [configured(config, name).fit_field(activations, name) for name in ("random", "inlp")]
        ranks.append([{component: one.k for component, one in field.subspaces.items()} for field in found])
        assert ranks[-1][0] == ranks[-1][1]
    assert ranks[0] != ranks[1]


def test_seeds_draw_anew_and_the_same_seed_the_same(tiny):
    prompts = instructions("tiny-harmful", "train", 20), instructions("tiny-harmless", "train", 20)
    one, again, other = (extract(tiny, *prompts, method=name) for name in ("random", "random", "random[seed=1]"))
    component = next(iter(one))
    assert torch.equal(one[component].basis, again[component].basis)
    assert (one[component].direction @ other[component].direction).abs() < 0.9
    assert other.method == "random[seed=1]"


def test_controls_do_not_remove_refusal(tiny, fields):
    def refusals(method):
        plan = plan_intervention("ablation", fields[method], layer=7, position=-1, scope="all")
        with tiny.edited(plan):
            completions = tiny.generate(instructions("tiny-harmful", "test", 16), max_new_tokens=16)
        return sum(judge(one.text, one.finish).verdict == "refused" for one in completions)

    assert refusals("diff-in-means") <= 2
    assert refusals("random") >= 14
    assert refusals("shuffled") >= 14


def test_a_spec_names_a_method_and_its_options():
    assert parse_spec("inlp[c=1.0,max-k=5]") == ("inlp", {"c": 1.0, "max_k": 5})
    assert parse_spec("inlp") == ("inlp", {})
    for broken in ("inlp[c]", "inlp[c=1", "[c=1]"):
        with pytest.raises(RefusalCmpError, match="is not understood; write a name"):
            parse_spec(broken)
    with pytest.raises(RefusalCmpError, match="Unknown option of method 'random' 'sed'"):
        EXTRACTORS.create("random", sed=1)


def test_the_leading_part_of_a_method_with_options_keeps_its_label(fields):
    for name, leading in (("inlp", "inlp[k=1]"), ("inlp[c=1.0]", "inlp[c=1.0,k=1]")):
        field = replace(fields["inlp"], method=name).leading("1")
        assert (field.method, field.extracted_by) == (leading, name)
