"""Scores equal the plain loop; filters, fallbacks and NaNs say what they did."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from refusal_cmp.api import plan_intervention
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import refusal_metric
from refusal_cmp.plan import Place
from refusal_cmp.planning import Setting
from refusal_cmp.selection import Rule, missed, outcome, ranked_table, score_table, select
from refusal_cmp.selection.rankings import agreement, regret, study
from refusal_cmp.selection.scoring import PromptScores, Scorer
from refusal_cmp.subspace import Component, SubspaceField

from support.models import instructions

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


def test_global_additions_that_are_not_spread_are_those_of_the_plans(tiny, tiny_fields, prompts, tokens):
    field = some_of(tiny_fields["diff-in-means"], 3)
    scorer, whole = Scorer(tiny, *prompts, tokens, max_rows=16), Setting(spread=False)
    scores = scorer.score(field, "global", multipliers=(0.5,), setting=whole)
    for index, component in enumerate(field):
        at = {"position": component.position, "layer": component.layer, "scope": "all"}
        addition = plan_intervention("actadd", field, strength=0.5, setting=whole, **at)
        induce = refusal_metric(plain_logits(tiny, addition, prompts[1]), tokens)
        torch.testing.assert_close(scores.induce[index, 0], induce, atol=1e-4, rtol=0)
    spread = scorer.score(field, "global", multipliers=(0.5,))
    assert (scores.induce - spread.induce).abs().min() > 0.01
    assert torch.equal(scores.bypass, spread.bypass)


def test_additions_by_the_selected_norm_have_that_length_at_every_candidate(tiny, tiny_fields, prompts, tokens):
    """As published: candidates of INLP are steered by one length, that of the selected difference in means."""
    field, setting = some_of(tiny_fields["inlp"], 3), Setting(norm="selected")
    scorer, unit = Scorer(tiny, *prompts, tokens, max_rows=16), 3.0
    scores = scorer.score(field, "local", multipliers=(0.5,), setting=setting, selected_norm=unit)
    for index, component in enumerate(field):
        added = LowRankEdit(b=0.5 * unit * field[component].direction)
        induce = refusal_metric(plain_logits(tiny, {Place(component.layer, "resid_pre"): added}, prompts[1]), tokens)
        torch.testing.assert_close(scores.induce[index, 0], induce, atol=1e-4, rtol=0)
    own = scorer.score(field, "local", multipliers=(0.5,), setting=setting)
    assert torch.equal(own.induce, scorer.score(field, "local", multipliers=(0.5,)).induce), "it is not known yet"


def test_kl_epsilon_is_added_inside_the_logs(tiny, tiny_fields, prompts, tokens):
    field = some_of(tiny_fields["diff-in-means"], 1)
    scores = Scorer(tiny, *prompts, tokens, kl_epsilon=0.01).score(field, "local", multipliers=(1.0,))
    (component,) = field
    at = {"position": component.position, "layer": component.layer, "scope": "single"}
    removal = plan_intervention("nullspace", field, **at)
    p, q = (plain_logits(tiny, plan, prompts[1]).double().softmax(-1) for plan in ({}, removal))
    expected = (p * ((p + 0.01).log() - (q + 0.01).log())).sum(-1)
    torch.testing.assert_close(scores.kl[0], expected, atol=1e-5, rtol=1e-3)


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
    missing = {Component(-2, layer): "none" for layer in range(n)}
    return SubspaceField("inlp", SimpleNamespace(n_layers=8), {}, missing)  # type: ignore[arg-type]


def test_what_the_kl_threshold_alone_keeps_from_removing_much_more_is_told():
    scored = table(local_bypass=[3.0, -0.25, -4.2, -5, 2, -6, -9, -9], local_kl=[0, 0.05, 0.75, 1.2, 0, 0.4, 0, 0],
                   local_induce=[1, 1, 1, 1, 1, -1, 1, 1])  # fmt: skip
    chosen = select(scored, Rule(), 8)
    other = missed(chosen, Rule(), 3.4)
    assert (other.component, other.bypass, other.kl, other.instead) == (Component(-1, 2), -4.2, 0.75, -0.25)
    assert "from 3.4 to −0.25 only; that at (-1, 2) would take them to −4.2, at a KL of 0.75" in (
        other.sentence(3.4, 0.1)
    )
    assert other.sentence(3.4, 0.1).endswith("(--kl-threshold 1).")
    assert missed(chosen, Rule(), 20.0) is None  # the selected one removes more than half as much
    assert missed(select(scored, Rule(kl_threshold=1), 8), Rule(kl_threshold=1), 3.4) is None


def test_the_best_component_that_the_filters_keep_is_selected():
    scored = table(local_induce=[1, 1, 1, 1, -0.1, 1, 1, 1], local_kl=[0, 0, 0, 0, 0, 0.2, 0, 0])
    chosen = select(scored, Rule(), 8)
    assert list(chosen["dropped_by"]) == ["", "", "", "", "induce", "kl", "layer", "layer"]
    assert chosen.loc[chosen["selected"], "layer"].tolist() == [3]
    result = outcome(chosen, field_of(2), Rule())
    assert result.selected == Component(-1, 3)
    assert [component.layer for component in result.ranking] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert len(result.kept) == 4
    assert (result.fallback, result.kl_budget, result.missing, result.nan) == (False, 0.1, 2, 0)


def test_global_scores_filter_and_rank_but_induce_stays_local():
    scored = table(
        local_induce=[1, 1, -0.1, 1, 1, 1, 1, 1],
        local_kl=[0, 0.2, 0, 0, 0, 0, 0, 0],
        global_bypass=[0, -5, -6, -7, 1, 2, 3, 4],
        global_induce=-1.0,
        global_kl=[0, 0, 0, 0.2, 0, 0, 0, 0],
    )
    chosen = select(scored, Rule(rank_by="global"), 8)
    assert list(chosen["dropped_by"]) == ["", "", "induce", "kl", "", "", "layer", "layer"]
    assert chosen.sort_values("rank")["layer"].tolist() == [3, 2, 1, 0, 4, 5, 6, 7]
    assert chosen.loc[chosen["selected"], "layer"].tolist() == [1]


def test_the_kl_budget_grows_until_something_is_within_it_that_suppresses_refusal_and_meets_the_other_filters():
    """Not the best of all by bypass, layer 7, nor the least KL, layer 2, whose removal does not suppress refusal."""
    scored = table(
        local_bypass=[3.0, 2.0, 1.0, -0.1, -1.0, -2.0, -3.0, -4.0],
        local_kl=[9, 9, 0.11, 0.18, 0.2, 0.21, 0.01, 0.01],
        local_induce=[1, 1, 1, 1, -2, 1, 1, 1],
    )
    chosen = select(scored, Rule(), 8)
    assert not chosen["kept"].any()
    result = outcome(chosen, field_of(0), Rule())
    assert (result.selected, result.fallback, result.kl_budget) == (Component(-1, 3), True, 0.2)
    assert result.dropped == {"induce": 1, "kl": 6, "layer": 2}
    assert result.options == "--kl-threshold 0.2"
    assert result.note == "fallback: KL budget 0.2 nats"
    assert result.pool("kept-first")[0] == result.selected


def test_where_nothing_near_the_threshold_suppresses_refusal_the_least_change_is_taken():
    """Within ten times the threshold, that is; beyond, what suppresses refusal may be what destroys the model."""
    wide = table(local_kl=[0.3, 9, 9, 9, 9, 1.0, 0, 0])
    result = outcome(select(wide, Rule(), 8), field_of(0), Rule())
    assert (result.selected, result.kl_budget) == (Component(-1, 5), 1.0)
    wider = table(local_kl=[0.3, 9, 9, 9, 9, 1.1, 0, 0])
    result = outcome(select(wider, Rule(), 8), field_of(0), Rule())
    assert (result.selected, result.kl_budget) == (Component(-1, 0), 0.5)


def test_the_induce_filter_is_given_up_only_where_nothing_meets_it_at_any_budget():
    only_broken_ones_induce = table(local_induce=[-1, -1, -1, 1, -1, -1, 1, 1], local_kl=[0, 0, 0, 10.0, 0, 0, 0, 0])
    result = outcome(select(only_broken_ones_induce, Rule(), 8), field_of(0), Rule())
    assert (result.selected, result.kl_budget) == (Component(-1, 3), 10.0)
    none_induces = table(local_induce=-1.234, local_kl=[0.05, 0.05, 0.05, 0.15, 0.15, 0.15, 0.01, 0.01])
    result = outcome(select(none_induces, Rule(), 8), field_of(0), Rule())
    assert (result.selected, result.kl_budget) == (Component(-1, 2), 0.1)
    assert (result.fallback, result.options) == (True, "--induce-threshold -1.24")


def test_the_layer_limit_stands_unless_there_is_one_component_and_no_choice():
    with pytest.raises(RefusalCmpError, match=r"All 8 components of inlp are in layers that the setting prune-layers"):
        select(table(), Rule(prune_layers=0.1), 8)
    lone = outcome(select(table()[7:], Rule(), 8), field_of(0), Rule())
    assert (lone.selected, lone.fallback, lone.options) == (Component(-1, 7), True, "--prune-layers 1")


scores_of_eight = st.tuples(*[st.lists(st.floats(least, most), min_size=8, max_size=8)
                              for least, most in ((-9, 9), (-4, 1), (0, 20))])  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(scores_of_eight)
def test_under_the_settings_that_a_fallback_names_the_filters_keep_what_it_chose(scores):
    scored = table(**dict(zip(("local_bypass", "local_induce", "local_kl"), scores, strict=True)))
    result = outcome(select(scored, Rule(), 8), field_of(0), Rule())
    assert result.selected.layer < 6
    again = outcome(select(scored, Rule(**result.relaxed), 8), field_of(0), Rule())
    assert (again.selected, again.fallback) == (result.selected, False)
    assert scored.loc[result.selected.layer, "local_kl"] <= result.kl_budget
    assert result.fallback == bool(result.relaxed)


def test_a_pool_has_what_the_filters_keep_first_or_is_the_ranking():
    result = outcome(select(table(local_kl=[0, 0.2] * 4), Rule(), 8), field_of(0), Rule())
    assert [component.layer for component in result.pool("kept-first")] == [4, 2, 0, 5, 3, 1]
    everywhere = result.pool("kept-first", everywhere=True)
    assert [component.layer for component in everywhere] == [4, 2, 0, 7, 6, 5, 3, 1]
    assert result.pool("all") == result.ranking


def test_nan_scores_are_dropped_and_counted():
    scores = [math.nan, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0, -4.0]
    chosen = select(table(local_bypass=scores), Rule(), 8)
    assert chosen["dropped_by"][0] == "nan"
    result = outcome(chosen, field_of(0), Rule())
    assert result.nan == 1
    assert Component(-1, 0) not in result.ranking
    with pytest.raises(RefusalCmpError, match="Every score of inlp is NaN"):
        select(table(local_bypass=math.nan), Rule(), 8)


def test_equal_scores_are_ranked_the_same_way_every_time():
    chosen = select(table(local_bypass=0.0), Rule(), 8)
    assert chosen["rank"].tolist() == list(range(1, 9))


@pytest.mark.parametrize(("aggregate", "expected"), [("max", 4.0), ("median", 2.0), ("one", 1.0)])
def test_induce_is_aggregated_as_named(tiny_fields, aggregate, expected):
    field = some_of(tiny_fields["diff-in-means"], 1)
    induce = torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64)[None, :, None].expand(1, 3, 5)
    scores = PromptScores(torch.zeros(1, 4), induce, torch.zeros(1, 5))
    scored = score_table(field, {"local": scores}, Rule(induce_aggregate=aggregate))
    assert scored["local_induce"].tolist() == [expected]
    assert scored["local_induce@0.5"].tolist() == [2.0]


def bypass_of(scored: pd.DataFrame) -> dict[str, np.ndarray]:
    """Four prompts on which every component scores as it does on average."""
    return {
        reach: scored[f"{reach}_bypass"].to_numpy(float)[:, None].repeat(4, axis=1) for reach in ("local", "global")
    }


def test_agreement_is_that_of_the_ranks():
    scored = select(table(global_bypass=[3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -4.0, -3.0]), Rule(), 8)
    found = agreement(scored, bypass_of(scored), np.random.default_rng(0))
    assert found["rho"] == pytest.approx(1 - 6 * 4 / (8 * 63))
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((found["rho"], found["rho"]))
    assert found["tau"] == pytest.approx((26 - 2) / 28)
    assert (found["top1_match"], found["top5_overlap"], found["top10_overlap"]) == (False, 1.0, None)
    assert not found["says_little"]
    assert regret(scored) == 0.0


def test_agreement_of_too_few_or_equal_components_is_none_and_says_why():
    scored, rng = select(table(global_bypass=1.0), Rule(), 8), np.random.default_rng(0)
    assert agreement(scored, bypass_of(scored), rng) == {"n": 8, "rho": None, "why": "all scores are equal"}
    assert agreement(scored[:2], bypass_of(scored), rng)["why"] == "fewer than 3 components"


def test_agreement_of_few_components_says_little():
    scored = select(table(global_bypass=[3.0, 1.0, 2.0, 0.0, -1.0, -2.0, -4.0, -3.0]), Rule(), 8)
    assert agreement(scored[:4], bypass_of(scored), np.random.default_rng(0))["says_little"]


def test_regret_is_what_the_local_choice_costs_globally():
    scored = select(table(global_bypass=[0.0, -9.0, 0.0, 0.0, 0.0, 2.0, -20.0, 0.0]), Rule(), 8)
    assert regret(scored) == 11.0


def test_published_ranking_key_puts_accuracy_first():
    scored = table(accuracy=[0.9, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9])
    chosen = select(scored, Rule(rank_key="accuracy-then-bypass"), 8)
    assert chosen.sort_values("rank")["layer"].tolist() == [2, 1, 7, 6, 5, 4, 3, 0]


def test_the_interval_shrinks_with_prompts(tiny_fields):
    rng = np.random.default_rng(0)
    field = some_of(tiny_fields["diff-in-means"], 12)
    widths = []
    for n in (8, 200):
        truth = torch.linspace(-1, 1, len(field), dtype=torch.float64)[:, None]
        noise = [torch.from_numpy(rng.normal(size=(len(field), n))) for _ in range(2)]
        scores = {
            reach: PromptScores(truth + one, torch.ones(len(field), 1, 4), torch.zeros(len(field), 4))
            for reach, one in zip(("local", "global"), noise, strict=True)
        }
        rule = Rule(multipliers=(1.0,))
        scored = ranked_table(field, scores, rule)
        found = study(field, scored, scores, rule, seed=0)
        pool = found["pools"]["all"]
        assert pool["ci_low"] <= pool["rho"] <= pool["ci_high"]
        assert 0 <= found["selected_again"] <= 1
        widths.append(pool["ci_high"] - pool["ci_low"])
    assert widths[1] < widths[0] / 2


def test_rows_are_halved_when_memory_runs_out(tiny, tiny_fields, prompts, tokens, monkeypatch):
    field = some_of(tiny_fields["diff-in-means"], 5)
    expected = Scorer(tiny, *prompts, tokens).score(field, "local", multipliers=MULTIPLIERS)
    scorer = Scorer(tiny, *prompts, tokens, max_rows=60)
    forward, tried = tiny.last_logits, []

    def short_of_memory(batch):
        tried.append(len(batch))
        if len(batch) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(batch)

    monkeypatch.setattr(tiny, "last_logits", short_of_memory)
    scores = scorer.score(field, "local", multipliers=MULTIPLIERS)
    torch.testing.assert_close(scores.bypass, expected.bypass, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.induce, expected.induce, atol=1e-4, rtol=0)
    assert max(tried) > 8
    monkeypatch.setattr(tiny, "last_logits", lambda batch: short_of_memory(batch.repeated(99)))
    with pytest.raises(RefusalCmpError, match="do not fit in the memory"):
        scorer.score(field, "local", multipliers=MULTIPLIERS)


def test_refusal_tokens_are_found_in_smaller_batches_when_memory_runs_out(tiny, monkeypatch):
    harmful = instructions("tiny-harmful", "train", 12)
    expected, forward, tried = tiny.refusal_tokens(harmful), tiny.last_logits, []

    def short_of_memory(batch):
        tried.append(len(batch))
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(batch)

    monkeypatch.setattr(tiny, "last_logits", short_of_memory)
    assert tiny.refusal_tokens(harmful) == expected
    assert tried[0] == 12
    assert max(tried[2:]) <= 4
    assert sum(size for size in tried if size <= 4) == 12
