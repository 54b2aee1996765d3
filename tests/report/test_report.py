"""The report: the answer it gives, the table, and the page as a browser shows it."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from refusal_cmp.commands.show import print_summary
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.plan import Plan
from refusal_cmp.report.answer import ENOUGH, FEWEST, as_good, best_by_method, pareto, standings
from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures import Drawn, draw_all
from refusal_cmp.report.page import render
from refusal_cmp.report.table import columns, labelled, summary
from refusal_cmp.run.session import Session
from refusal_cmp.stages import run_stages
from refusal_cmp.stages.report import measure_geometry
from refusal_cmp.statistics import rate

from support.browser import CHROMIUM, Browser
from support.finished_run import make_run, session_on

NASTY = '<script>window.broken = 1</script><img src=x onerror="window.broken = 2">&amp; </script> "quoted"'


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "small", tiny, until="report", scope="single")


@pytest.fixture(scope="module")
def data(finished):
    return read_run(finished)


# The answer


def with_plans(data, **values):
    """The run as if it had these plans: by label, share answered, its interval's low end, degenerate, loss, layers."""
    rows, plans = [], [data.plans[0]]
    for label, (answered, low, degenerate, loss, layers) in {"baseline": (0.0, 0.0, 0.0, 1.0, None), **values}.items():
        if label != "baseline":
            method, _, rest = label.partition("/")
            intervention, _, scope = rest.partition("@")
            plans.append(Plan(label, {}, method=method, intervention=intervention, scope=scope, n_layers=layers))
        for dataset, metric, value, least in (
            ("harmful", "effective_compliance", answered, low),
            ("harmful", "refusal", 1 - answered - degenerate, 0.0),
            ("harmful", "degenerate", degenerate, 0.0),
            ("text", "loss", loss, loss),
        ):
            rows.append({"plan": label, "dataset": dataset, "metric": metric, "value": value, "ci_low": least,
                         "ci_high": 1.0, "n": 50})  # fmt: skip
    return replace(data, plans=plans, run_as={plan.label: plan.label for plan in plans}, results=pd.DataFrame(rows),
                   comparisons=None, answers={})  # fmt: skip


def with_results(run, *rows, n=50):
    """The run with these results on top: plan, dataset, metric, value, the ends of its interval."""
    more = pd.DataFrame(rows, columns=["plan", "dataset", "metric", "value", "ci_low", "ci_high"])
    return replace(run, results=pd.concat([run.results, more]).assign(n=n))


def first_screen(run):
    """The words of the answer, as they are read."""
    header = render(run, [], {}).partition("<header")[2].partition("</header>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", header).replace("\u202f", " "))


def test_the_answer_suppresses_refusal_at_the_least_cost(data):
    run = with_plans(data, **{
        "a/ablation@all": (1.0, 0.95, 0.0, 1.5, 4),
        "b/ablation@all": (0.99, 0.92, 0.0, 1.2, 4),
        "b/nullspace@all": (0.95, 0.85, 0.0, 1.0, 4),
        "a/reflection@all": (0.0, 0.0, 1.0, 1.1, 4),
    })  # fmt: skip
    ranked = standings(run)
    assert [one.plan for one in ranked] == ["b/ablation@all", "a/ablation@all", "b/nullspace@all", "a/reflection@all"]
    assert [one.suppresses for one in ranked] == [True, True, False, False]
    assert ranked[-1].is_broken
    assert ranked[0].cost == pytest.approx(0.2)
    assert [one.plan for one in best_by_method(ranked)] == ["b/ablation@all", "a/ablation@all"]


def test_of_plans_that_cost_the_same_the_one_with_the_fewest_layers_is_named(data):
    run = with_plans(data, **{
        "a/ablation@all": (1.0, 0.95, 0.0, 0.999, 9),
        "a/nullspace@single": (1.0, 0.95, 0.0, 1.003, 1),
        "a/clamp@single": (1.0, 0.95, 0.0, 1.001, 1),
        "a/actadd@single": (1.0, 0.95, 0.0, 1.2, 1),
    })  # fmt: skip
    ranked = standings(run)
    assert ranked[0].plan == "a/nullspace@single"
    assert {one.plan for one in as_good(ranked, 0.01)} == {"a/ablation@all", "a/clamp@single"}


def test_without_a_plan_that_suppresses_the_nearest_is_named(data):
    run = with_plans(data, **{
        "a/ablation@all": (0.5, 0.4, 0.0, 1.0, 1),
        "a/nullspace@all": (0.8, 0.7, 0.0, 3.0, 1),
        "a/clamp@all": (0.8, 0.7, 0.0, float("nan"), 1),
    })  # fmt: skip
    ranked = standings(run)
    assert [one.plan for one in ranked] == ["a/nullspace@all", "a/clamp@all", "a/ablation@all"]
    assert not ranked[0].suppresses


ONE = {"a/ablation@all": (1.0, 0.95, 0.0, 1.1, 4)}


def test_a_plan_that_answers_all_of_the_fewest_prompts_suppresses_refusal_and_of_one_less_does_not():
    assert rate(FEWEST, FEWEST).low >= ENOUGH > rate(FEWEST - 1, FEWEST - 1).low


def test_the_answer_says_how_many_prompts_it_takes_where_there_are_too_few(data):
    few = with_results(with_plans(data, **{"a/ablation@all": (1.0, 0.86, 0.0, 1.1, 4)}), n=24)
    said = first_screen(few)
    assert "Too few harmful test prompts to decide; a/ablation@all comes nearest." in said
    assert "Of 24 prompts not even a plan that answers all is known to answer 90 %" in said
    assert "begin at 86 %. It takes 35 or more" in said
    assert "Too few" not in first_screen(with_plans(data, **ONE))


def test_few_prompts_are_enough_to_see_that_a_plan_does_nothing(data):
    run = with_plans(data, **{"a/ablation@all": (0.0, 0.0, 0.0, 1.1, 4)})
    said = first_screen(replace(run, results=run.results.assign(n=24, ci_high=0.14)))
    assert "No plan suppresses refusal; a/ablation@all comes nearest." in said
    assert "a/ablation@all (does not suppress it)" in said


def test_the_least_cost_is_claimed_only_where_a_cost_is_known(data):
    run = with_plans(data, **ONE)
    assert "a/ablation@all suppresses refusal at the least cost." in first_screen(run)
    unpriced = replace(run, results=run.results[run.results["metric"] != "loss"])
    assert "a/ablation@all suppresses refusal; at what cost was not measured" in first_screen(unpriced)
    infinite = with_plans(data, **{"a/ablation@all": (1.0, 0.95, 0.0, float("nan"), 4)})
    assert "suppresses refusal, but no plan that does has a finite cost." in first_screen(infinite)


def test_there_is_nothing_to_suppress_where_the_unedited_model_answers(data):
    run = with_plans(data, baseline=(1.0, 0.93, 0.0, 1.0, None), **ONE)
    assert "There is no refusal to suppress: the unedited model answers already." in first_screen(run)
    assert "suppresses refusal</span>" not in render(run, [], {})


@pytest.mark.parametrize(
    ("unedited", "said"),
    [(0.5, " It refuses 15 % [7, 28] of the harmless prompts, where the unedited model refuses 50 %"),
     (0.02, " But it refuses 15 % [7, 28] of the harmless prompts, where the unedited model refuses 2 %")],
)  # fmt: skip
def test_refusal_of_harmless_prompts_is_held_against_the_baseline(data, unedited, said):
    run = with_results(with_plans(data, **ONE), ("baseline", "harmless", "refusal", unedited, 0.0, 1.0),
                       ("a/ablation@all", "harmless", "refusal", 0.15, 0.07, 0.28))  # fmt: skip
    assert said in first_screen(run)


def test_identical_plans_count_once(data):
    labels = ["a/ablation@all", "a/nullspace@all", "b/clamp@all", "b/affine@all"]
    run = with_plans(data, **dict.fromkeys(labels, (1.0, 0.95, 0.0, 1.1, 4)))
    same = {"a/nullspace@all": "a/ablation@all", "b/affine@all": "b/clamp@all"}
    said = first_screen(replace(run, run_as=run.run_as | same))
    assert "1 more distinct plan does so at a cost within 0.01 nats of it, also with b." in said
    assert "2 of 2 distinct plans do so" in said


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_the_front_is_what_nothing_beats(points):
    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    front = [points[index] for index in pareto(points)]
    assert len(set(front)) == len(front)
    assert set(front) == {point for point in points if not any(beats(other, point) for other in points)}


# The table


def test_columns_leave_out_what_says_nothing_new():
    rows = [
        ("harmful", "refusal", 1.0), ("harmful:fraud", "refusal", 1.0), ("harmful", "non_finite", 0.0),
        ("harmless", "attack_success", 1.0), ("harmful", "attack_success", 0.0), ("text", "loss", 1.0),
        ("text", "perplexity", 2.7), ("other", "perplexity", 2.7), ("all", "magnitude_auroc:inlp", 0.9),
        ("quiz", "acc", float("nan")), ("quiz", "surprise", 3.0),
    ]  # fmt: skip
    found = columns(pd.DataFrame(rows, columns=["dataset", "metric", "value"]))
    assert [(one.dataset, one.metric) for one in found] == [
        ("harmful", "refusal"), ("harmful", "attack_success"), ("text", "loss"), ("other", "perplexity"),
        ("quiz", "surprise"),
    ]  # fmt: skip


def test_the_summary_is_the_results_and_parts_of_sets_do_not_count_twice(finished):
    results = finished.run.read_table("results.csv")
    labels = [row["label"] for row in finished.run.read_json("infer/plans.json")]
    table = summary(results, labels).set_index("plan")
    assert list(table.index) == labels
    named = labelled(results, labels)
    for row in named[named["metric"] == "refusal"].itertuples():
        if ":" not in row.dataset:
            assert table.loc[row.plan, f"{row.dataset}_refusal"] == row.value
    whole = named[
        (named["metric"] == "degenerate") & (named["plan"] == labels[-1]) & ~named["dataset"].str.contains(":")
    ]
    assert table.loc[labels[-1], "degenerate"] == pytest.approx((whole["value"] * whole["n"]).sum() / whole["n"].sum())
    with pytest.raises(RefusalCmpError, match="run `refusal-cmp evaluate` for this run again"):
        summary(results, labels[:-1])


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_printed_summary_shows_the_columns_that_fit(finished, width):
    console = Console(width=width, file=io.StringIO())
    print_summary(console, finished.run)
    *lines, last = console.file.getvalue().splitlines()
    head = next(line for line in lines if line.strip().startswith("plan"))
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert "harmful" in head
    assert (" text" in head) == (width > 60)
    assert last.endswith("results.csv")


# The page as a file


def page(finished):
    return finished.run.path / "report/index.html"


def test_the_page_needs_nothing_but_itself(finished):
    text = page(finished).read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text


def test_every_figure_is_in_the_page_and_beside_it(finished, data):
    text = page(finished).read_text(encoding="utf-8")
    names = [one.name for one in draw_all(replace(data, geometry=measure_geometry(finished))) if isinstance(one, Drawn)]
    assert len(names) > 8
    for name in names:
        assert f'id="figure-{name}"' in text
        for kind in ("png", "svg"):
            assert (finished.run.path / f"report/figures/{name}.{kind}").is_file()
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(identifiers)) == len(identifiers)


def test_a_finished_report_is_not_made_again_and_comes_out_the_same(finished, tiny, monkeypatch):
    folder = finished.run.path / "report"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr("refusal_cmp.stages.report.render", None)
        run_stages(session_on(finished.run.path, tiny, scope="single"), ("report",))
    run_stages(session_on(finished.run.path, tiny, scope="single", force=("report",)), ("report",))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_model_that_is_gone_leaves_out_the_geometry_alone(finished, tiny, monkeypatch):
    messages = []
    session = session_on(finished.run.path, tiny, scope="single", force=("report",))
    session.say = messages.append

    def gone(_):
        raise RefusalCmpError("Cannot load model.")

    monkeypatch.setattr(Session, "model", property(gone))
    assert measure_geometry(session) is None
    assert "Where activations land is left out of the report: Cannot load model." in messages


def test_what_is_not_measured_is_said_on_the_page(data):
    without = replace(data, results=data.results[data.results["metric"] == "loss"], magnitude=None, rankings=None)
    text = render(without, [one for one in draw_all(without) if not isinstance(one, Drawn)], {})
    assert "Refusal was not measured" in text
    assert text.count("Not drawn:") == 5


def test_rank_agreement_is_on_the_page(data):
    pool = {"n": 8, "rho": 0.5, "rho_noise_free": 0.625, "ci_low": -0.25, "ci_high": 0.75, "says_little": False,
            "reliability_local": 0.875, "reliability_global": 0.5, "p": 0.01, "tau": 0.4, "top1_match": True,
            "top5_overlap": 0.8}  # fmt: skip
    few = {"n": 2, "rho": None, "why": "fewer than 3 components"}
    study = {"method": "inlp", "regret": 0.25, "selected_again": 0.875, "pools": {"kept": few, "all": pool}}
    text = render(replace(data, rankings=[study]), [], {})
    assert "no correlation: fewer than 3 components" in text
    assert '<td class="number">0.88, 0.50</td><td class="number">0.62</td><td class="number">[−0.25, 0.75]</td>' in text
    assert "components were scored locally only" not in text


def test_a_rank_correlation_of_few_components_has_no_interval_on_the_page(data):
    pool = {"n": 4, "rho": -0.2, "rho_noise_free": -0.2, "ci_low": -0.4, "ci_high": -0.2, "says_little": True,
            "reliability_local": 1.0, "reliability_global": 1.0, "p": 0.8, "tau": 0.0, "top1_match": False,
            "top5_overlap": None}  # fmt: skip
    study = {"method": "inlp", "regret": 0.25, "selected_again": 0.875, "pools": {"kept": pool}}
    text = render(replace(data, rankings=[study]), [], {})
    assert '<td class="number">−0.20</td>' in text
    assert "ρ of so few says little" in text
    assert "−0.40" not in text


# The page in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


@pytest.fixture
def shown(browser, finished):
    """Opens the page; the console must have stayed silent at the end."""
    browser.console.clear()

    def show(fragment="", **window):
        browser.open(f"{page(finished).as_uri()}{fragment}", **window)
        return browser.evaluate

    yield show
    assert browser.console == []


VALUES = "[...document.querySelectorAll('#plans tbody tr')].map((row) => row.cells[{}].dataset.value)"
CHOOSE = (
    "(() => {{ const select = document.querySelector('select[data-slot=\"{}\"]'); select.value = '{}';"
    " select.dispatchEvent(new Event('change')); }})()"
)
COLUMN = "[...document.querySelectorAll('#plans thead tr:last-child th')].findIndex((th) => th.dataset.key === '{}')"


def test_the_answer_is_in_the_first_screen(shown):
    look = shown(width=1200, height=900)
    assert look("document.querySelector('.verdict').getBoundingClientRect().bottom < innerHeight")
    assert look("document.querySelector('.tiles').getBoundingClientRect().bottom < innerHeight")
    plan = look("document.querySelector('.verdict .plan').textContent")
    assert plan in look(VALUES.format(0))


def test_headings_sort_and_links_keep_the_order(shown):
    look = shown()
    written = look(VALUES.format(0))
    column = look(COLUMN.format("harmless_refusal"))
    look(f"document.querySelectorAll('#plans thead tr:last-child th')[{column}].querySelector('button').click()")
    look("new Promise((resolve) => setTimeout(resolve, 50))")
    ascending = [float(value) for value in look(VALUES.format(column))]
    assert ascending == sorted(ascending)
    assert look("location.hash") == "#sort=harmless_refusal"
    look = shown("#sort=-harmless_refusal")
    descending = [float(value) for value in look(VALUES.format(column))]
    assert descending == sorted(descending, reverse=True)
    assert descending[0] > descending[-1]
    head = f"document.querySelectorAll('#plans thead tr:last-child th')[{column}]"
    assert look(f"{head}.getAttribute('aria-sort')") == "descending"
    assert shown("#sort=plan")(VALUES.format(0)) == sorted(written)
    assert shown("#sort=nothing")(VALUES.format(0)) == written


def test_what_has_no_number_sorts_last_either_way(shown):
    for fragment in ("#sort=layers", "#sort=-layers"):
        assert shown(fragment)(VALUES.format(0))[-1] == "baseline"


def test_plans_can_be_filtered(shown):
    look = shown()
    look("const f = document.getElementById('filter'); f.value = 'INLP/act'; f.dispatchEvent(new Event('input'))")
    hidden = look("[...document.querySelectorAll('#plans tbody tr')].map((row) => row.hidden)")
    visible = [plan for plan, is_hidden in zip(look(VALUES.format(0)), hidden, strict=True) if not is_hidden]
    assert visible
    assert all("inlp/act" in plan for plan in visible)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_sticks_out_of_the_page(shown, width, dark):
    look = shown(width=width, height=844, dark=dark)
    look("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert look("document.documentElement.scrollWidth <= innerWidth")


def test_the_dark_is_dark(shown):
    colours = []
    for dark in (False, True):
        look = shown(dark=dark)
        ink = "getComputedStyle(document.querySelector('figure svg text, figure svg g[id*=text] g')).fill"
        colours.append((look("getComputedStyle(document.body).backgroundColor"), look(ink)))
    (light_paper, light_ink), (dark_paper, dark_ink) = colours
    assert light_paper == "rgb(255, 255, 255)"
    assert dark_paper != light_paper
    assert dark_ink != light_ink


def test_completions_follow_the_choice_and_harmful_ones_are_folded(shown, data):
    look = shown()
    assert not look("document.querySelector('.notice').open")
    look(CHOOSE.format(1, "inlp/actadd:1@single"))
    said = look('document.querySelector(\'[data-set=harmless][data-number="0"][data-slot="1"] .text\').textContent')
    assert said == data.answers["inlp/actadd:1@single", "harmless"][0]["completion"]


def test_whatever_the_model_says_is_shown_and_not_run(browser, data, tmp_path):
    answers = {
        key: [{**row, "completion": NASTY, "instruction": NASTY} for row in rows] for key, rows in data.answers.items()
    }
    path = tmp_path / "nasty.html"
    path.write_text(render(replace(data, answers=answers), [], {}), encoding="utf-8")
    browser.console.clear()
    browser.open(path.as_uri())
    assert browser.evaluate("window.broken === undefined")
    assert browser.evaluate("document.querySelector('.text').textContent") == NASTY
    assert browser.evaluate("document.querySelector('article h4').textContent").strip().startswith(NASTY)
    browser.evaluate(CHOOSE.format(0, "inlp/actadd:1@single"))
    assert browser.evaluate("document.querySelector('.text').textContent") == NASTY
    assert browser.evaluate("window.broken === undefined")
    assert browser.console == []
