"""Scores equal the plain loop; filters, fallbacks and NaNs say what they did."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import instructions
from scipy.special import log_softmax

from refusal_cmp.api import plan_intervention
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import refusal_metric
from refusal_cmp.rankings import agreement
from refusal_cmp.scoring import Scorer
from refusal_cmp.selection import Filters, outcome, score_table, select
from refusal_cmp.subspace import Component, SubspaceField

MULTIPLIERS = (0.5, 1.0)


@pytest.fixture(scope="module")
def prompts():
    return instructions("tiny-harmful", "val", 6), instructions("tiny-harmless", "val", 5)


@pytest.fixture(scope="module")
def tokens(tiny):
    return tiny.refusal_tokens(instructions("tiny-harmful", "train", 16))


def some_of(field: SubspaceField, n: int) -> SubspaceField:
    """A field of n of the components, from first to last layer."""
    chosen = list(field)[:: max(1, len(field) // n)][:n]
    return SubspaceField(field.method, field.means, {component: field[component] for component in chosen})


def plain_logits(model, plan, prompts):
    """The slow obvious form: one candidate, one prompt, a full forward pass."""
    with torch.inference_mode(), model.edited(plan):
        return torch.cat([model.last_logits(model.batch(model.tokenize([prompt]))) for prompt in prompts])


@pytest.mark.parametrize("reach", ["local", "global"])
@pytest.mark.parametrize("method", ["diff-in-means", "inlp"])
def test_batched_scores_equal_the_plain_loop(tiny, tiny_fields, prompts, tokens, method, reach):
    field = some_of(tiny_fields[method], 4)
    harmful, harmless = prompts
    scores = Scorer(tiny, harmful, harmless, tokens, max_rows=16).score(field, reach, multipliers=MULTIPLIERS)
    scope = "single" if reach == "local" else "all"
    baseline = log_softmax(plain_logits(tiny, {}, harmless).double().numpy(), axis=-1)
    for index, component in enumerate(field):
        at = {"position": component.position, "layer": component.layer, "scope": scope}
        removal = plan_intervention("nullspace", field, **at)
        bypass = refusal_metric(plain_logits(tiny, removal, harmful), tokens)
        torch.testing.assert_close(scores.bypass[index], bypass, atol=1e-4, rtol=0)
        edited = log_softmax(plain_logits(tiny, removal, harmless).double().numpy(), axis=-1)
        kl = (np.exp(baseline) * (baseline - edited)).sum(-1)
        torch.testing.assert_close(scores.kl[index], torch.from_numpy(kl), atol=1e-4, rtol=0)
        for column, multiplier in enumerate(MULTIPLIERS):
            addition = plan_intervention("actadd", field, strength=multiplier, **at)
            induce = refusal_metric(plain_logits(tiny, addition, harmless), tokens)
            torch.testing.assert_close(scores.induce[index, column], induce, atol=1e-4, rtol=0)


def test_rows_per_pass_change_nothing_that_matters(tiny, tiny_fields, prompts, tokens):
    field = some_of(tiny_fields["diff-in-means"], 5)
    small, large = (
        Scorer(tiny, *prompts, tokens, max_rows=rows).score(field, "local", multipliers=MULTIPLIERS)
        for rows in (3, 500)
    )
    torch.testing.assert_close(small.bypass, large.bypass, atol=1e-4, rtol=0)
    torch.testing.assert_close(small.kl, large.kl, atol=1e-4, rtol=0)


def table(**columns) -> pd.DataFrame:
    """A score table of one method with eight components, layers 0 to 7."""
    plain = {
        "method": "inlp",
        "position": -1,
        "layer": range(8),
        "local_bypass": [3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0],
        "local_induce": 1.0,
        "local_kl": 0.01,
    }
    return pd.DataFrame({**plain, **columns})


def field_of(n: int) -> SubspaceField:
    return SubspaceField("inlp", None, {}, {Component(-2, layer): "none" for layer in range(n)})  # type: ignore[arg-type]


def test_the_best_component_that_the_filters_keep_is_selected():
    scored = table(local_induce=[1, 1, 1, 1, -0.1, 1, 1, 1], local_kl=[0, 0, 0, 0, 0, 0.2, 0, 0])
    chosen = select(scored, Filters(), n_layers=8)
    assert list(chosen["dropped_by"]) == ["", "", "", "", "induce", "kl", "layer", "layer"]
    assert chosen.loc[chosen["selected"], "layer"].tolist() == [3]
    result = outcome(chosen, field_of(2))
    assert result.selected == Component(-1, 3)
    assert [component.layer for component in result.ranking] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert len(result.kept) == 4
    assert (result.fallback, result.missing, result.nan) == (False, 2, 0)


def test_nothing_kept_falls_back_to_the_best_of_all_and_says_so():
    result = outcome(select(table(local_kl=1.0), Filters(), n_layers=8), field_of(0))
    assert result.fallback
    assert result.selected == Component(-1, 7)


def test_nan_scores_are_dropped_and_counted():
    scores = [math.nan, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0]
    chosen = select(table(local_bypass=scores), Filters(), n_layers=8)
    assert chosen["dropped_by"][0] == "nan"
    result = outcome(chosen, field_of(0))
    assert result.nan == 1
    assert Component(-1, 0) not in result.ranking
    with pytest.raises(RefusalCmpError, match="Every score of inlp is NaN"):
        select(table(local_bypass=math.nan), Filters(), n_layers=8)


def test_equal_scores_are_ranked_the_same_way_every_time():
    chosen = select(table(local_bypass=0.0), Filters(), n_layers=8)
    assert chosen["rank"].tolist() == list(range(1, 9))


@pytest.mark.parametrize(("aggregate", "expected"), [("max", 4.0), ("median", 2.0), ("one", 1.0)])
def test_induce_is_aggregated_as_named(tiny_fields, aggregate, expected):
    from refusal_cmp.scoring import PromptScores

    field = some_of(tiny_fields["diff-in-means"], 1)
    induce = torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64)[None, :, None].expand(1, 3, 5)
    scores = PromptScores(torch.zeros(1, 4), induce, torch.zeros(1, 5))
    scored = score_table(field, {"local": scores}, (0.5, 1.0, 2.0), aggregate)
    assert scored["local_induce"].tolist() == [expected]
    assert scored["local_induce@0.5"].tolist() == [2.0]


def test_agreement_needs_three_components_and_differing_scores():
    scored = select(table(global_bypass=[3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -3.0, -4.0]), Filters(), n_layers=8)
    over_all, over_kept = agreement(scored)
    assert over_all["rho"] == pytest.approx(1 - 6 * 2 / (8 * 63))
    assert (over_kept["pool"], over_kept["n"]) == ("kept", 6)
    few = agreement(scored[:2])
    assert few[0]["rho"] is None
    equal = agreement(select(table(global_bypass=1.0), Filters(), n_layers=8))
    assert equal[0]["rho"] is None
