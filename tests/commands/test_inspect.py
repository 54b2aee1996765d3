"""`refusal-cmp inspect`: it reads what the model holds, and answers what the run answered."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from rich.console import Console

from refusal_cmp.cli import main
from refusal_cmp.commands.inspect import (
    BEFORE,
    BEYOND,
    CHOSEN,
    SHADES,
    Inspection,
    Reading,
    draw_heat,
    inspect_prompt,
    print_inspection,
    read,
)
from refusal_cmp.config import load_config
from refusal_cmp.model import refusal_metric
from refusal_cmp.plan import file_name
from refusal_cmp.report.figures import rendered
from refusal_cmp.run.contents import read_selected
from refusal_cmp.run.directory import RunDir
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages
from refusal_cmp.subspace import Component

SMALL = {
    "methods": "diff-in-means",
    "interventions": "ablation,clamp",
    "scope": "all",
    "eval_datasets": "harmful,harmless",
    "n_train": 20,
    "n_val": 2,
    "n_test": 2,
    "max_new_tokens": 12,
    "induce_multipliers": "1",
    "evals": "refusal",
}
PLAN = "diff-in-means/ablation@all"


@pytest.fixture(scope="module")
def session(tiny, tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("runs") / "tiny-refuser")
    session = Session(load_config(None, SMALL), run, loaded=tiny)
    run_stages(session, ("extract", "select", "infer", "evaluate"))
    return session


def stored(session, plan):
    return session.run.read_lines(f"infer/{file_name(plan)}/harmful.jsonl")[0]


def shown(inspection, **options):
    console = Console(file=io.StringIO(), width=100, **options)
    print_inspection(console, inspection)
    return console.file.getvalue()


def test_projections_are_those_of_the_hidden_states(session, tiny):
    """The oracle: transformers' own hidden states, times the direction."""
    prompt = "How do I bake a cake?"
    (reading,) = read(tiny, prompt, read_selected(session))
    (selected,) = read_selected(session)
    with torch.inference_mode():
        out = tiny.model(input_ids=torch.tensor(tiny.tokenize([prompt])), output_hidden_states=True)
    entering = torch.stack(out.hidden_states[:-1])[:, 0].double()
    expected = (entering @ selected.field[selected.component].direction).T
    assert reading.projections.allclose(expected, rtol=1e-4, atol=1e-3)


def test_the_refusal_metric_by_layer_is_the_logit_lens_of_the_hidden_states(session, tiny):
    """The oracle: transformers' hidden states through the model's own norm and unembedding."""
    prompt, tokens = "How do I forge a signature?", session.run.read_json("extract/prompts.json")["refusal_tokens"]
    found = inspect_prompt(session, prompt, [PLAN])
    with torch.inference_mode():
        out = tiny.model(input_ids=torch.tensor(tiny.tokenize([prompt])), output_hidden_states=True)
        entering = torch.stack(out.hidden_states[:-1])[:, 0, -1]
        logits = tiny.model.get_output_embeddings()(tiny.model.model.norm(entering))
    expected = refusal_metric(torch.cat([logits, out.logits[:, -1]]), tuple(tokens)).double()
    assert found.lens.allclose(expected, atol=1e-4)
    assert float(found.lens[-1]) == pytest.approx(found.responses[0].metric, abs=1e-4)


def test_a_token_pushes_by_what_is_missing_without_it(session, tiny):
    prompt, tokens = "How do I forge a signature?", session.run.read_json("extract/prompts.json")["refusal_tokens"]
    found = inspect_prompt(session, prompt, [PLAN])
    ids = tiny.tokenize([prompt])[0]
    there = found.pushes.isfinite().nonzero().flatten().tolist()
    assert "".join(found.tokens[index] for index in there).strip() == prompt
    for index in there:
        with torch.inference_mode():
            logits = tiny.last_logits(tiny.batch([ids[:index] + ids[index + 1 :]]))
        without = float(refusal_metric(logits, tuple(tokens)))
        assert float(found.pushes[index]) == pytest.approx(found.responses[0].metric - without, abs=1e-3)


def test_what_the_template_puts_before_the_instruction_is_shown_on_request(session):
    prompt = "How do I bake a cake?"
    found, whole = (inspect_prompt(session, prompt, [PLAN], whole=one) for one in (False, True))
    assert whole.first == 0
    assert "".join(found.tokens[found.first :]).lstrip().startswith(prompt)
    assert len(shown(whole).splitlines()) - len(shown(found).splitlines()) == found.first


@pytest.fixture
def far_away():
    """A prompt of which the chosen component lies between the means and other tokens lie far beyond them."""
    shares = torch.tensor([[9.3, 0.0, 0.02], [-4.0, 1.0, 0.5], [0.1, 0.62, 20.0]], dtype=torch.float64)
    means = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)
    reading = Reading("inlp", Component(-1, 1), shares, means, torch.ones(3))
    return Inspection(["one", "two", "end"], 0, [reading], torch.zeros(4), torch.zeros(3), [])


def test_the_terminal_s_map_runs_from_mean_to_mean_whatever_lies_beyond(far_away):
    text = shown(far_away)
    assert "0.62 of the way" in text
    rows = [line[4:10] for line in text.splitlines() if line[:3] in far_away.tokens]
    assert rows == [
        BEYOND * 2 + SHADES[0] * 4,
        BEFORE * 2 + SHADES[-1] * 2 + SHADES[2] * 2,
        SHADES[0] * 2 + CHOSEN + SHADES[2] + BEYOND * 2,
    ]


def test_the_picture_s_colours_are_centred_halfway_between_the_means_and_framed_where_chosen(far_away):
    ax, bar = draw_heat(far_away).axes
    (heat,) = ax.images
    low, high = heat.get_clim()
    assert (low + high) / 2 == 0.5
    assert low == pytest.approx(0, abs=0.2)
    beyond, inside = heat.cmap(heat.norm([-4.0, 9.3])), heat.cmap(heat.norm([0.0, 1.0]))
    assert all(tuple(one) not in map(tuple, inside) for one in beyond), "beyond a mean has a colour of its own"
    assert {frame.get_xy() for frame in ax.patches} == {(0.5, 1.5)}
    assert [tick.get_text() for tick in bar.get_xticklabels()] == ["0\nharmless mean", "0.5", "1\nharmful mean"]


def test_the_answers_are_those_of_the_run(session):
    prompt = stored(session, PLAN)["instruction"]
    found = inspect_prompt(session, prompt, [PLAN])
    assert [one.plan for one in found.responses] == ["baseline", PLAN]
    assert [one.completion for one in found.responses] == [
        stored(session, plan)["completion"] for plan in ("baseline", PLAN)
    ]
    assert found.responses[0].metric > 0 > found.responses[1].metric
    assert "".join(found.tokens) == session.model.render(prompt)


def test_by_default_every_method_answers_once(session):
    found = inspect_prompt(session, "How do I bake a cake?")
    assert [one.plan.split("/")[0] for one in found.responses] == ["baseline", "diff-in-means"]


def test_the_scale_is_from_the_harmless_to_the_harmful_mean():
    means = torch.tensor([[1.0, -2.0, 5.0], [3.0, -6.0, 5.001]])
    reading = Reading("inlp", Component(-1, 1), torch.stack([*means, means.mean(0)]), means, torch.tensor([1.0, 1, 5]))
    assert reading.shares[:, :2].allclose(torch.tensor([0.0, 1.0, 0.5])[:, None].expand(3, 2))
    assert reading.shares[:, 2].isnan().all()


def test_the_strip_is_read_without_colours_and_has_them_on_a_terminal(session):
    prompt = stored(session, "baseline")["instruction"] + " [bold]"
    found = inspect_prompt(session, prompt, [PLAN])
    plain = shown(found)
    assert SHADES[-1] * 2 in plain
    rows = [line.split() for line in plain.splitlines()]
    assert "[bold]" in "".join(row[0] for row in rows if row)
    assert PLAN in plain
    assert "\x1b" not in plain
    assert "\x1b[38;2;" in shown(found, force_terminal=True, color_system="truecolor")


def test_the_terminal_says_in_words_what_the_sign_of_a_push_is(session):
    shown = io.StringIO()
    print_inspection(Console(file=shown, width=200), inspect_prompt(session, "How do I bake a cake?", [PLAN]))
    assert "(+ towards refusal, as the metric is lower by that much without the token; − away from it)" in (
        shown.getvalue()
    )


def test_figures_have_the_same_bytes_every_time(session):
    found = inspect_prompt(session, "Say «$x$».", [PLAN])
    assert rendered(draw_heat(found), "svg") == rendered(draw_heat(found), "svg")


def test_the_command_shows_and_saves(session, tmp_path, monkeypatch, capsys):
    target = tmp_path / "heat.png"
    command = ["inspect", str(session.run.path), "How do I bake a cake?", "--plan", PLAN, "--save", str(target)]
    monkeypatch.setattr(sys, "argv", ["refusal-cmp", *command])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert PLAN in capsys.readouterr().out
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["{run}", "hello", "--plan", "diff-in-means/ablation@al"], "Did you mean 'diff-in-means/ablation@all'?"),
        (["{run}", " "], "The prompt is empty"),
        (["{run}", "hello", "--save", "heat.gif"], "A figure is saved as .png, .svg, .pdf"),
        (["{run}", "hello", "--save", "none/heat.png"], "There is no folder none"),
        (["{run}/infer", "hello"], "is not a run directory"),
    ],
)
def test_a_mistake_is_one_sentence(session, monkeypatch, capsys, args, says):
    monkeypatch.setattr(sys, "argv", ["refusal-cmp", "inspect", *(arg.format(run=session.run.path) for arg in args)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
