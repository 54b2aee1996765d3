"""Extraction: one pass that stops early, streams what it reads, and says so when the activations are broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from refusal_cmp.activations import Activations, ActivationStore, Labelled, Moments
from refusal_cmp.config import RunConfig
from refusal_cmp.data import SPLITS, Prompt
from refusal_cmp.data.sampling import Sampled
from refusal_cmp.errors import NoSubspaceError, RefusalCmpError
from refusal_cmp.methods import Extractor, configured
from refusal_cmp.methods.diff_in_means import DiffInMeans
from refusal_cmp.methods.inlp import INLP
from refusal_cmp.model import ChatModel
from refusal_cmp.model.reading import collect
from refusal_cmp.stages.prompts import _as_expected, _cause, _filtered, _report_dropped
from refusal_cmp.subspace import Component, Subspace

from support.finished_run import session_on
from support.models import instructions, word_tokenizer

HARMFUL = [
    f"how do you make a {a} {b}" for a in ("cake", "cow", "bird") for b in ("red", "blue", "one", "two", "three")
]
HARMLESS = [f"hello {a} {b} ?" for a in ("cake", "cow", "bird") for b in ("red", "blue", "one", "two", "three")]


@pytest.fixture(scope="module")
def activations(random_model) -> Activations:
    return collect(random_model, HARMFUL, HARMLESS, batch_size=7)


def stored(activations: Activations, component: Component) -> torch.Tensor:
    """All prompts' activations, in the prompts' order."""
    x = torch.empty(len(activations.dev), 32, dtype=torch.float64)
    train, dev = activations.at(component)
    x[~activations.dev], x[activations.dev] = train.x, dev.x
    return x


def test_activations_are_the_hidden_states_of_a_plain_forward_pass(random_model, activations):
    for row, prompt in enumerate([*HARMFUL, *HARMLESS]):
        ids = torch.tensor(random_model.tokenize([prompt]))
        with torch.inference_mode():
            hidden = random_model.model(input_ids=ids, output_hidden_states=True).hidden_states
        for component in activations.components():
            expected = hidden[component.layer][0, component.position]
            torch.testing.assert_close(stored(activations, component)[row], expected, atol=1e-6, rtol=1e-6)


def test_the_pass_computes_neither_the_last_block_nor_logits(random_model):
    ran: list[str] = []
    watched = {
        "head": random_model.model.lm_head,
        "last": random_model.blocks[-1].module.mlp,
        "first": random_model.blocks[0].module,
    }
    handles = [module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in watched.items()]
    batch = random_model.batch(random_model.tokenize(HARMFUL))
    collect(random_model, HARMFUL, HARMLESS)
    assert set(ran) == {"first"}
    for handle in handles:
        handle.remove()
    assert random_model.last_logits(batch).isfinite().all()


def test_the_model_is_unchanged_by_a_pass_that_was_cut_short(random_model):
    batch = random_model.batch(random_model.tokenize(HARMFUL))
    before = random_model.last_logits(batch)
    collect(random_model, HARMFUL, HARMLESS)
    assert torch.equal(random_model.last_logits(batch), before)
    assert not any(block.module._forward_pre_hooks for block in random_model.blocks)


def test_streamed_means_are_those_of_the_stored_activations(activations):
    means = activations.means()
    for component in activations.components():
        train, _ = activations.at(component)
        moments, _ = activations.moments_at(component)
        for streamed, whole, field in zip(moments.means(), train.means(), means.at(component), strict=True):
            torch.testing.assert_close(streamed, whole, atol=1e-14, rtol=1e-13)
            assert torch.equal(streamed, field)
        assert moments.scale == pytest.approx(train.scale)


@pytest.mark.parametrize("data", ["train", "all"])
def test_difference_in_means_from_sums_is_that_from_activations(random_model, activations, data):
    method = DiffInMeans(data=data)
    means_only = collect(random_model, HARMFUL, HARMLESS, batch_size=7, needs="means")
    streamed = method.fit_field(means_only, "diff-in-means")
    whole = method.fit_field(activations, "diff-in-means")
    assert list(streamed) == list(whole)
    assert dict(streamed.missing) == dict(whole.missing)
    for component in streamed:
        direct = method.fit(*activations.at(component))
        for found in (streamed[component], whole[component]):
            torch.testing.assert_close(found.direction, direct.direction)
            assert found.norm == pytest.approx(direct.norm)
            assert torch.equal(found.evidence, direct.evidence)


def test_means_only_keeps_no_more_than_the_dev_split(random_model):
    means_only = collect(random_model, HARMFUL, HARMLESS, needs="means")
    assert means_only._store.n == 6
    with pytest.raises(RefusalCmpError, match="collected as means"):
        means_only.at(Component(-1, 1))


def test_activations_do_not_depend_on_the_batch_size(random_model, activations):
    one = collect(random_model, HARMFUL, HARMLESS, batch_size=1)
    assert torch.equal(one.dev, activations.dev)
    for component in one.components():
        torch.testing.assert_close(stored(one, component), stored(activations, component), atol=1e-6, rtol=1e-6)


def test_the_store_is_a_numpy_file_that_goes_with_its_owner(tmp_path):
    store = ActivationStore([Component(-1, 0), Component(-1, 1)], 3, 2, tmp_path)
    store.write(Component(-1, 1), 1, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert np.load(store.path)[1].tolist() == [[0, 0], [1, 2], [3, 4]]
    assert store.read(Component(-1, 0)).tolist() == [[0, 0]] * 3
    del store
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_says_where(tmp_path):
    with pytest.raises(RefusalCmpError, match="Cannot keep 0 MB of activations in .*nowhere"):
        ActivationStore([Component(-1, 0)], 3, 2, tmp_path / "nowhere")


def test_a_model_of_another_architecture_stops_early_too():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64}
    model = ChatModel(GPT2LMHeadModel(GPT2Config(**size)), tokenizer, "gpt2")
    model.model.lm_head = _Forbidden()
    activations = collect(model, HARMFUL, HARMLESS)
    assert len(list(activations.components())) == 3 * len(model.positions)


class _Forbidden(nn.Module):
    def forward(self, *_):
        raise AssertionError("logits were computed")


def test_both_methods_run_on_one_set_of_activations(tiny):
    prompts = instructions("tiny-harmful", "train", 32), instructions("tiny-harmless", "train", 32)
    activations = collect(tiny, *prompts)
    for method in (DiffInMeans(), INLP()):
        field = method.fit_field(activations, "name")
        assert len(field)
        assert all(component.layer == 0 for component, reason in field.missing.items() if "coincide" in reason)


def test_layer_0_has_no_subspace_where_the_tokens_are_the_same(random_model, activations):
    field = INLP().fit_field(activations, "inlp")
    assert {component for component in field.missing if component.layer == 0} == {
        Component(position, 0) for position in random_model.positions
    }
    assert field.missing[Component(-1, 0)] == "the activations of all prompts coincide"


# What a third party writes


@dataclass(frozen=True)
class TopAxis(Extractor):
    """The axis of the largest activation, where the classes are not the same."""

    def fit(self, train: Labelled, dev: Labelled) -> Subspace:
        if torch.equal(*train.means()):
            raise NoSubspaceError("the classes are the same")
        row = nn.functional.one_hot(train.x.abs().sum(0).argmax(), train.x.shape[1]).double()
        return Subspace(row[None], row, 1.0, torch.tensor([torch.nan]))


@dataclass(frozen=True)
class HarmfulMean(Extractor):
    """Needs only means."""

    needs: ClassVar = "means"

    def fit(self, train: Moments, dev: Labelled) -> Subspace:
        direction = nn.functional.normalize(train.means()[0], dim=0)
        return Subspace(direction[None], direction, 1.0, torch.tensor([torch.nan]))


@pytest.mark.parametrize("method", [TopAxis(), HarmfulMean()])
def test_an_extractor_needs_no_more_than_fit(activations, method):
    field = method.fit_field(activations, "mine")
    assert len(field) + len(field.missing) == len(list(activations.components()))


# Degenerate inputs


def test_too_few_prompts_are_an_error(random_model):
    with pytest.raises(RefusalCmpError, match="at least 10 different prompts of each kind, and there are 9"):
        collect(random_model, HARMFUL[:9], HARMLESS)
    with pytest.raises(RefusalCmpError, match="there are 15 harmful and 0 harmless"):
        collect(random_model, HARMFUL, [])


def test_repeated_prompts_count_once(random_model, activations):
    repeated = collect(random_model, HARMFUL + HARMFUL[:5], HARMLESS, batch_size=7)
    assert torch.equal(repeated.dev, activations.dev)
    with pytest.raises(RefusalCmpError, match="at least 10 different prompts"):
        collect(random_model, HARMFUL[:5] * 4, HARMLESS)


def test_a_prompt_of_both_kinds_is_an_error(random_model):
    with pytest.raises(
        RefusalCmpError, match=r"1 prompts are harmful and harmless at once, such as 'hello cake red \?'"
    ):
        collect(random_model, [*HARMFUL, HARMLESS[0]], HARMLESS)


def test_activations_that_are_not_finite_are_an_error(random_model):
    weight = random_model.blocks[1].module.mlp.down_proj.weight
    kept = weight[0, 0].item()
    weight.data[0, 0] = torch.nan
    try:
        with pytest.raises(RefusalCmpError, match="In layer 2 the activations of 30 of 30 prompts hold a NaN"):
            collect(random_model, HARMFUL, HARMLESS)
    finally:
        weight.data[0, 0] = kept


def test_the_configuration_chooses_the_classifier():
    config = RunConfig(inlp_classifier="ridge", inlp_c=2.0, device="cpu")
    method = configured(config, "inlp")
    assert (method.classifier, method.c, method.device) == ("ridge", 2.0, "cpu")


# Prompts


def test_prompts_that_the_model_does_not_treat_as_expected_are_dropped(tiny, tmp_path):
    prompts = {
        kind: [Prompt(text) for text in instructions(f"tiny-{kind}", "train", 5)] for kind in ("harmful", "harmless")
    }
    taken = {"harmful": prompts["harmless"][0], "harmless": prompts["harmful"][0]}
    mixed = {kind: [*some[1:3], taken[kind], *some[3:]] for kind, some in prompts.items()}
    counts = {split: {"sampled": 5} for split in SPLITS}
    drawn = {kind: Sampled(dict.fromkeys(SPLITS, some), counts) for kind, some in mixed.items()}
    found, dropped = _filtered(session_on(tmp_path, tiny), drawn)
    for kind, some in prompts.items():
        expected = {"train": some[1:], "val": some[1:], "test": mixed[kind]}  # what is tested on is not chosen
        for split, kept in expected.items():
            name = f"{kind}_{split}"
            assert [row["instruction"] for row in found["prompts"][name]] == [prompt.instruction for prompt in kept]
            assert found["counts"][name]["dropped"] == 5 - len(kept)
    assert [row["set"] for row in dropped] == ["harmful_train", "harmful_val", "harmless_train", "harmless_val"]
    answered, refused = dropped[0], dropped[2]
    assert (answered["instruction"], answered["verdict"]) == (taken["harmful"].instruction, "complied")
    assert (refused["instruction"], refused["verdict"]) == (taken["harmless"].instruction, "refused")
    assert answered["refusal_metric"] < 0 < refused["refusal_metric"]
    assert refused["answer"].startswith(tiny.generate([taken["harmless"].instruction], max_new_tokens=8)[0].text)


REFUSED, ANSWERED = ({"set": "", "refusal_metric": metric, "verdict": verdict}
                     for metric, verdict in ((1.0, "refused"), (-1.0, "complied")))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows", "why"),
    [("harmful_train", [REFUSED, REFUSED, ANSWERED], "the refusal tokens are not those by which the model refuses, as "
      "by its words it refuses 2 of these 3 prompts"),
     ("harmless_val", [ANSWERED], "as by its words it answers 1 of these 1 prompts"),
     ("harmful_val", [ANSWERED, ANSWERED], "the model hardly refuses, or not under this chat template, as"),
     ("harmless_train", [REFUSED], "the model refuses too much, as it refuses 1 of these 1 prompts"),
     ("harmless_train", [{**REFUSED, "verdict": "degenerate"}], "the chat template is not the model's own"),
     ("harmful_train", [{**REFUSED, "refusal_metric": None}], "this precision is not enough")],
)  # fmt: skip
def test_where_many_prompts_are_dropped_the_likely_cause_is_told_from_the_answers(name, rows, why):
    assert why in _cause(name, rows)


def test_more_than_a_third_dropped_is_a_warning_and_none_left_an_error_with_the_cause(tiny, tmp_path):
    session, said = session_on(tmp_path, tiny), []
    session.say = said.append
    counts = {"harmful_train": {"sampled": 6}, "harmful_val": {"sampled": 6}}
    rows = [{**ANSWERED, "set": "harmful_train"}] * 3 + [{**ANSWERED, "set": "harmful_val"}] * 2
    _report_dropped(session, counts, rows)
    assert said[0].startswith(
        "Warning: harmful_train: 3 of 6 prompts dropped: their refusal metric is at most 0. Likely cause"
    )
    assert said[1] == (
        "harmful_val: 2 of 6 prompts dropped: their refusal metric is at most 0; see extract/dropped.jsonl."
    )
    with pytest.raises(RefusalCmpError, match="No prompt of harmful_val is left.*hardly refuses"):
        _report_dropped(session, {"harmful_val": {"sampled": 2}}, rows)


@pytest.mark.parametrize(
    ("name", "verdicts", "says"),
    [
        ("harmful_train", ["refused"] * 4 + ["complied"] * 3, "at most 0, OTHERWISE 4 of them are refused;"),
        ("harmful_val", ["refused", "degenerate"], "at most 0, OTHERWISE 1 of them is refused;"),
        ("harmless_train", ["complied"] * 2 + ["refused"], "above 0, OTHERWISE 2 of them are answered;"),
        ("harmless_val", ["refused"] * 2, "above 0; see"),
    ],
)  # fmt: skip
def test_where_words_and_metric_of_dropped_prompts_disagree_it_is_counted(tiny, tmp_path, name, verdicts, says):
    session, said = session_on(tmp_path, tiny), []
    session.say = said.append
    metric, words = -1.0 if name.startswith("harmful") else 1.0, "though by the words of the answers"
    rows = [{"set": name, "refusal_metric": metric, "verdict": verdict} for verdict in verdicts]
    _report_dropped(session, {name: {"sampled": 39}}, rows)
    (sentence,) = said
    assert sentence.startswith(
        f"{name}: {len(rows)} of 39 prompts dropped: their refusal metric is {says.replace('OTHERWISE', words)}"
    )
    assert sentence.endswith("see extract/dropped.jsonl.")


def test_dropped_prompts_without_a_finite_metric_are_not_said_to_have_one(tiny, tmp_path):
    session, said = session_on(tmp_path, tiny), []
    session.say = said.append
    rows = [{"set": "harmless_val", "refusal_metric": None, "verdict": "degenerate"}]
    _report_dropped(session, {"harmless_val": {"sampled": 9}}, rows)
    assert "their refusal metric is above 0 or not finite" in said[0]


@pytest.mark.parametrize("refuses", [True, False])
def test_prompts_with_logits_that_are_not_finite_are_dropped_and_counted(random_model, tmp_path, monkeypatch, refuses):
    session, said = session_on(tmp_path, random_model), []
    session.say = said.append
    weight = random_model.model.get_input_embeddings().weight
    broken = weight.data.clone()
    broken[random_model.tokenizer.convert_tokens_to_ids("cow")] = torch.nan
    monkeypatch.setattr(weight, "data", broken)
    prompts = [Prompt(text) for text in HARMLESS]
    kept, dropped = _as_expected(session, "harmful_val" if refuses else "harmless_val", prompts, [7])
    assert len(kept) + len(dropped) == 15
    assert [row["refusal_metric"] for row in dropped].count(None) == 5
    assert not [prompt for prompt in kept if "cow" in prompt.instruction]
    assert said == ["Warning: 5 of 15 prompts are dropped: on them the logits are not finite."]
