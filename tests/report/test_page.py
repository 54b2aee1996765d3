"""The page: as a file that needs nothing but itself, and as a browser shows it."""

from __future__ import annotations

import html
import re
import shutil
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from refusal_cmp.report.answer import costs
from refusal_cmp.report.figures import Drawn, draw_all, rendered
from refusal_cmp.report.page import render
from refusal_cmp.report.page.images import inline_svg
from refusal_cmp.report.table import columns
from refusal_cmp.run.session import Session, open_run
from refusal_cmp.stages import run_stages

from support.browser import CHROMIUM, Browser

NASTY = '<script>window.broken = 1</script><img src=x onerror="window.broken = 2">&amp; </script> "quoted"'


# The page as a file


def page(finished):
    return finished.run.path / "report/index.html"


def test_the_page_needs_nothing_but_itself(finished):
    text = page(finished).read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text


def test_every_figure_is_in_the_page_and_beside_it(finished, outcomes):
    text = page(finished).read_text(encoding="utf-8")
    names = [one.name for one in outcomes if isinstance(one, Drawn)]
    assert len(names) > 8
    for name in names:
        assert f'id="figure-{name}"' in text
        for kind in ("png", "svg"):
            assert (finished.run.path / f"report/figures/{name}.{kind}").is_file()
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(identifiers)) == len(identifiers)
    referred = re.findall(r'<use href="#([^"]+)"|url\(#([^)"]+)\)', text)
    assert len(referred) > 1000
    assert {one or other for one, other in referred} <= set(identifiers), "letters may be in another figure"


def test_an_outline_is_in_the_page_once_and_figures_lose_nothing_else():
    """Two figures of the same letters: together they draw what matplotlib's files do, shape by shape."""
    figure = Figure()
    figure.subplots().set(title="once", xlabel="one two")
    svg, outlines = rendered(figure, "svg").decode(), {}
    pages = [inline_svg(svg, name, name, outlines) for name in ("a", "b")]
    shapes = dict(re.findall(r'<path id="([^"]+)" ((?:d="[^"]*")?)', "".join(pages)))
    assert set(outlines.values()) <= set(shapes)
    assert not any(f'id="{name}"' in pages[1] for name in outlines.values())
    for page in pages:
        used = [shapes[name] for name in re.findall(r'<use href="#([^"]+)"', page)]
        drawn = dict(re.findall(r'<path id="([^"]+)" ((?:d="[^"]*")?)', svg))
        wanted = [drawn[name] for name in re.findall(r'<use xlink:href="#([^"]+)"', svg)]
        assert [re.sub(r"\s", "", one) for one in used] == [re.sub(r"\s", "", one) for one in wanted]
        assert page.count("<path") + (page is pages[1]) * len(outlines) == svg.count("<path")


def test_a_finished_report_is_not_made_again(finished, monkeypatch):
    monkeypatch.setattr("refusal_cmp.stages.report.render", None)
    run_stages(open_run(finished.run.path), ("report",))


def test_the_report_is_made_again_from_the_files_alone_and_comes_out_the_same(finished, tmp_path, monkeypatch):
    """On another machine, where the model is gone."""
    moved = tmp_path / finished.run.path.name
    shutil.copytree(finished.run.path, moved)
    shutil.rmtree(moved / "report")
    monkeypatch.setattr(Session, "model", property(lambda _: pytest.fail("the report asks for the model")))
    run_stages(open_run(moved), ("report",))
    made = {path.relative_to(moved): path.read_bytes() for path in (moved / "report").rglob("*") if path.is_file()}
    assert made == {path: (finished.run.path / path).read_bytes() for path in made}
    assert set(made) == {
        path.relative_to(finished.run.path) for path in (finished.run.path / "report").rglob("*") if path.is_file()
    }


def test_the_page_says_what_its_columns_are(finished, data):
    text = html.unescape(page(finished).read_text(encoding="utf-8"))
    for column in columns(data.results):
        assert column.measure.title in text
        assert column.measure.meaning in text


def setup(data):
    """The words of the page's last section."""
    return html.unescape(re.sub(r"<[^>]*>", "", render(data, [], {}).partition('id="setup"')[2]))


def test_what_the_model_s_own_answers_count_for_is_what_the_first_screen_has(data):
    is_loss, is_own = data.results["metric"] == "loss", data.results["dataset"] == "on-distribution"
    others = replace(data, results=data.results[~is_loss | ~is_own])
    own = replace(data, results=data.results[~is_loss | is_own])
    assert costs(data)[0].datasets != ("on-distribution",)
    assert "a cost that stands behind other texts and tasks, and does not decide." in setup(data)
    assert costs(own)[0].datasets == ("on-distribution",)
    assert "the loss on it is the cost that decides, as no other text and no task was measured." in setup(own)
    assert "text set on-distribution" not in setup(others)


def test_prompts_are_said_to_be_dropped_by_the_metric_whatever_the_answer_says(data):
    said = setup(data)
    assert "harmful ones where it is at most 0 and harmless ones where it is above 0, whatever the answer" in said
    assert "Refusal tokens: " in said
    assert "as expected" not in said
    config = {**data.config, "filter_prompts": False}
    every = setup(replace(data, manifest={**data.manifest, "config": config}))
    assert "No prompt was dropped by it." in every


def test_what_is_not_measured_is_said_on_the_page(data):
    without = replace(data, results=data.results[data.results["metric"] == "loss"], magnitude=None, rankings=None)
    text = render(without, [one for one in draw_all(without) if not isinstance(one, Drawn)], {})
    assert "Refusal was not measured" in text
    assert text.count("Not drawn:") == 4


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


def test_other_ranking_rules_and_what_they_cost_are_on_the_page(data, finished):
    assert "<h3>Other ranking rules</h3>" in page(finished).read_text(encoding="utf-8")
    few = {"n": 2, "rho": None, "why": "too few components, or all the same"}
    pool = {"n": 8, "rho": 0.5, "says_little": False, "tau": 0.4, "top1_match": True, "top5_overlap": 0.8}
    own = {"pools": {"kept": few, "within_kl": pool, "all": pool | {"rho": -0.5, "n": 9}}, "regret": 0.25}
    one = {"method": "inlp", "rule": "cosmic", "reach": "local", "passes": 2.5, "exact_passes": 18.0,
           "against": {"local": own}}  # fmt: skip
    seconds = {"select/inlp.cosmic-local.safetensors": 1.25, "select/inlp.local.safetensors": 30.0}
    for known in (seconds, {}):
        text = render(replace(data, ranking_rules=[one], manifest={**data.manifest, "seconds": known}), [], {})
        row = text[text.index("<td>cosmic</td>", text.index("Other ranking rules")) :]
        cells = re.findall('<td class="number">(.*?)</td>', row[: row.index("</tr>")])
        costs = ["2.5, 18.0", "1.2, 30.0" if known else "–, –"]
        assert cells == ["– (2)", "0.50 (8)", "−0.50 (9)", "same", "80\u202f%", "–", "0.25", *costs]
    assert "Other ranking rules" not in render(replace(data, ranking_rules=None), [], {})


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
    by_plan = shown("#sort=plan")(VALUES.format(0))
    assert [plan for plan in by_plan if "[" not in plan] == sorted(plan for plan in written if "[" not in plan)
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
        ink = "getComputedStyle(document.querySelector('figure svg text, figure svg g[style*=fill]')).fill"
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
