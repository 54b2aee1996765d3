"""Plans that share passes, which begin where they edit first, give what each gives by itself in whole passes."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch

from refusal_cmp.api import class_covariances, extract, plan_intervention
from refusal_cmp.data import Document
from refusal_cmp.edit import LowRankEdit
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.evals.kl import divergences
from refusal_cmp.interventions import INTERVENTIONS
from refusal_cmp.model import passes
from refusal_cmp.model.hooks import after, before, installed
from refusal_cmp.model.losses import Scored, Texts, encode, losses
from refusal_cmp.model.passes import Passes, Row
from refusal_cmp.plan import Place, Plan, baseline

from support.architectures import SUPPORTED, chat_model

WORDS = "cake cow bird red blue one two three".split()
HARMFUL = [f"how do you make {a} {b} {c}" for a, b, c in itertools.permutations(WORDS[:4], 3)]
HARMLESS = [f"help {a} {b} {c} ?" for a, b, c in itertools.permutations(WORDS[4:], 3)]
PROMPTS = ["help one cow ?", "help two red bird ?", "help a cake", "help one cow ?"]
FORMS = ("ablation[keep-norm=true]", "actadd[when=0.0]", "actadd[share=0.5]")


@pytest.fixture(scope="module")
def plans(random_model) -> list[Plan]:
    """Every intervention at one layer after the other and at all, in forms with gates and kept norms; the baseline."""
    field = extract(random_model, HARMFUL, HARMLESS, "inlp", c=10.0, stop="0.55", max_k=3)
    layers, made = itertools.cycle(range(1, random_model.n_layers)), []
    for name in (*INTERVENTIONS, *FORMS):
        for scope in ("single", "all"):
            at = {"layer": next(layers), "position": -1}
            covariances = None
            if name == "transport":
                covariances = class_covariances(random_model, HARMFUL, HARMLESS, field, **at)
            made.append(plan_intervention(name, field, scope=scope, covariances=covariances, **at))
    return [made[0], baseline(), *made[1:]]


@pytest.fixture
def documents() -> list[Scored]:
    """Some begin alike; two differ in the last token alone, and one is not scored."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(30, (n,), generator=generator).tolist() for n in (18, 5, 30)]
    return [Scored(ids[0], 17), Scored([*ids[0][:9], *ids[1]], 4), Scored([*ids[2], 7], 1), Scored([*ids[2], 8], 1),
            Scored(ids[1], 0), Scored(ids[1], 2)]  # fmt: skip


def alone(model, documents, plan):
    """The losses of whole passes under one plan."""
    with model.edited(plan):
        return losses(model, documents)


def assert_same(found, expected, rel=1e-9):
    for one, other in zip(found, expected, strict=True):
        assert one.total == pytest.approx(other.total, rel=rel, abs=1e-12, nan_ok=True)
        assert one[1:] == other[1:]


def test_losses_of_every_intervention_are_those_of_whole_passes(random_model, documents, plans):
    for plan, found in zip(plans, Texts(random_model, documents).under(plans), strict=True):
        assert_same(found, alone(random_model, documents, plan))
    totals = {plan.label: alone(random_model, documents, plan)[0].total for plan in plans}
    assert len(set(totals.values())) > len(plans) / 2, "plans do something"


def test_divergences_of_every_intervention_are_those_of_whole_passes(random_model, plans):
    unedited = random_model.per_prompt(PROMPTS, random_model.last_logits, None).double().log_softmax(-1)
    logits = random_model.per_prompt(PROMPTS, random_model.last_logits, None)
    for plan, found in zip(plans, divergences(random_model, PROMPTS, logits, plans, None), strict=True):
        with random_model.edited(plan):
            edited = random_model.per_prompt(PROMPTS, random_model.last_logits, None).double().log_softmax(-1)
        expected = (unedited.exp() * (unedited - edited)).sum(-1)
        assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9)  # logits are read in float32


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_plans_of_some_tokens_edit_the_same_tokens(random_model, documents, plans, tokens):
    some = [replace(plan, tokens=tokens) for plan in plans]
    for plan, found in zip(some, Texts(random_model, documents, some_tokens=True).under(some), strict=True):
        assert_same(found, alone(random_model, documents, plan))


@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.key)
def test_losses_of_every_family_are_those_of_whole_passes(family):
    """Where a block reads more than the stream, where blocks recur or windows slide, and where experts are chosen."""
    model = chat_model(family)
    rows = torch.linalg.qr(torch.randn(model.d_model, 2, generator=torch.Generator().manual_seed(0)))[0].mT
    edit = LowRankEdit(V=rows.contiguous(), A=-rows.contiguous())
    made = [Plan(f"hand/at-{layer}", {Place(layer, "resid_pre"): edit}) for layer in range(model.n_layers)]
    made += [Plan("hand/all", {Place(layer, "mlp_out"): edit for layer in range(model.n_layers)}), baseline()]
    texts = [Document(text, "Where is the cake?") for text in ("Here, by the door.", "Here, by the sea.", "Gone")]
    scored = [encode(model, text) for text in texts]
    for plan, found in zip(made, Texts(model, scored).under(made), strict=True):
        assert_same(found, alone(model, scored, plan), rel=1e-5)


def test_a_plan_that_breaks_numbers_leaves_those_beside_it_alone(random_model, documents, plans):
    broken = Plan("hand/broken", {Place(0, "resid_pre"): LowRankEdit(b=torch.full((32,), math.inf))})
    at_zero = [plan for plan in plans if any(place.layer == 0 for place in plan.edits)]
    together = [at_zero[0], broken, at_zero[1]]
    found = Texts(random_model, documents).under(together)
    for plan, of_plan in zip(together, found, strict=True):
        assert_same(of_plan, alone(random_model, documents, plan))
    assert all(math.isnan(one.total) for one in found[1] if one.n_tokens)


def test_the_company_decides_nothing_but_rounding(random_model, documents, plans):
    whole = Texts(random_model, documents).under(plans)
    for chosen in ([3], [2, 3], list(range(len(plans)))[::-1]):
        some = Texts(random_model, documents).under([plans[index] for index in chosen])
        for index, found in zip(chosen, some, strict=True):
            assert_same(found, whole[index])


@pytest.fixture
def runs(random_model):
    """Which blocks are computed, in order, and for how many rows; those that are passed by are not."""
    assert random_model.starts_anywhere, "which is seen in passes of its own"
    seen: list[tuple[int, int]] = []
    handles = [
        after(block.attn_out, lambda x, layer=layer: seen.append((layer, len(x))))
        for layer, block in enumerate(random_model.blocks)
    ]
    with installed(handles):
        yield seen


def at(layer: int, size: float = 1.0) -> Plan:
    return Plan(f"hand/at-{layer}-{size}", {Place(layer, "resid_pre"): LowRankEdit(b=torch.full((32,), size))})


def test_the_unedited_stream_is_read_on_and_made_once(random_model, runs):
    documents, made = [Scored([5, 9, 12, 7], 3)], [at(3), at(1), at(3, 2.0), at(2), baseline()]
    Texts(random_model, documents).under(made)
    # The stream of block 1 is made and edited; from it that of 2, and from that the one of 3.
    assert runs == [(0, 1), (1, 1), (2, 1), (3, 1), (1, 1), (2, 1), (3, 1), (2, 1), (3, 3)]


@pytest.mark.parametrize("share", [0.0, 1e-6])
def test_streams_that_there_is_no_room_for_are_made_anew(random_model, documents, plans, monkeypatch, share):
    expected = Texts(random_model, documents).under(plans)
    monkeypatch.setattr(passes, "STREAMS", share)
    for found, of_plan in zip(Texts(random_model, documents).under(plans), expected, strict=True):
        assert_same(found, of_plan)


def test_streams_are_kept_within_their_share(random_model, monkeypatch):
    rows = [Row(tuple(random_model.tokenize([prompt])[0])) for prompt in HARMLESS[:6]]
    found = Passes(random_model, rows, batch_size=2)

    def read(model, batch, wanted, _):
        return model.forward_at(batch, wanted, use_cache=False).logits[:, 0]

    expected = [found.measure([at(layer)], read) for layer in (1, 2, 3)]
    whole = sum(stream.nbytes for stream in found._streams.values())
    assert len(found._streams) == 3 * len(found.parts) > 6
    small = Passes(random_model, rows, batch_size=2)
    monkeypatch.setattr(passes, "STREAMS", 0.4 * whole / small.budget.bytes)
    for _ in range(2):
        for layer, values in zip((1, 2, 3), expected, strict=True):
            torch.testing.assert_close(small.measure([at(layer)], read), values)
            assert 0 < sum(stream.nbytes for stream in small._streams.values()) <= 0.4 * whole


def test_what_is_known_is_not_read_again_and_a_group_is_read_as_a_whole(random_model, documents, plans, runs):
    """As after a kill: any part of what was known leads to the same bits."""
    known: dict[str, object] = {}
    whole = Texts(random_model, documents, batch_size=2).under(plans, done=known)
    runs.clear()
    assert Texts(random_model, documents, batch_size=2).under(plans, done=dict(known)) == whole
    assert not runs
    assert Texts(random_model, documents, batch_size=2).under(plans[3:5], done=dict(known)) == whole[3:5]
    assert not runs
    names = list(known)
    for cut in range(0, len(names), 7):
        some = {name: known[name] for name in names[:cut]}
        assert Texts(random_model, documents, batch_size=2).under(plans, done=some) == whole
        assert json.dumps([some[name] for name in names]) == json.dumps([known[name] for name in names])


def test_passes_are_of_fewer_plans_and_then_of_fewer_rows_where_memory_runs_out(random_model, documents, plans):
    expected = Texts(random_model, documents).under(plans)
    most: list[int] = []

    def full(x):
        if len(x) > 1:
            most.append(len(x))
            raise MemoryError("out of memory")

    with installed([before(random_model.blocks[2].module, full)]):
        found = Texts(random_model, documents).under(plans)
    assert max(most) > 2
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)

    def none(_):
        raise MemoryError("out of memory")

    with (
        installed([before(random_model.blocks[2].module, none)]),
        pytest.raises(RefusalCmpError, match="1 prompts do not fit in the memory of cpu"),
    ):
        Texts(random_model, documents).under(plans)
