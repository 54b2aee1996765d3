"""One prompt under the microscope: how far it is along each method's direction, and what it is answered under plans.

For every token and layer, x · û with the direction û at the component that selection chose. What that means differs
from layer to layer, so it is told on the scale of the layer: 0 where the mean harmless training activation is, 1 where
the mean harmful one is, both read at the position of the chosen component. The map is coloured from the one mean to the
other. Tokens elsewhere may lie far outside of that, and are marked as beyond. Beside it stand the refusal metric that
the model would have if it ended before each layer (the logit lens, nostalgebraist 2020), and by how much each token of
the instruction pushes it: what is missing once the token is left out (occlusion, Zeiler & Fergus 2014).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.judges.completion import Verdict, judge
from refusal_cmp.model import ChatModel, refusal_metric
from refusal_cmp.model.hooks import after, before, installed
from refusal_cmp.plan import BASELINE, Plan
from refusal_cmp.planning import Selected
from refusal_cmp.report.answer import best_by_method, standings
from refusal_cmp.report.data import read_run
from refusal_cmp.report.figures import rendered
from refusal_cmp.report.figures._style import BLUE, INK, PAPER, VERMILION, column, page, styled
from refusal_cmp.report.wording import log_odds
from refusal_cmp.run.contents import PROMPTS, read_plans, read_selected
from refusal_cmp.run.session import Session
from refusal_cmp.subspace import Component
from refusal_cmp.terminal import line, lines, visible

SEPARATED = 0.01
"""Class means closer than this along the direction, relative to their length, give a layer no scale."""
OUTERMOST = 0.125
"""How far beyond a mean, as a share of the way between the two, still has its colour: half a step of `SHADES`."""
HEAT = mpl.colors.LinearSegmentedColormap.from_list("harmless to harmful", [BLUE, "#ececec", VERMILION]).with_extremes(
    under="#00304d", over="#6b2f00"
)
"""From the harmless to the harmful mean; darker than either end beyond it."""
SHADES = " ░▒▓█"
BEFORE, BEYOND = "-", "+"
"""In the terminal, cells that are beyond the harmless and beyond the harmful mean."""
CHOSEN = "◆"
"""There, the cell of the chosen component."""
NO_SCALE = "·"
HEAT_LABEL = "projection on the direction, by layer; ends: beyond a mean; blank: the means coincide; framed: chosen"
LETTERS = 15
"""Of a label, to the inch."""
PUSHES = "(+ towards refusal, as the metric is lower by that much without the token; − away from it)"
"""What the numbers say that stand behind tokens."""
PUSHING = 8
"""Tokens that are named as those that push the refusal metric."""
AT_ONCE = 32
"""Prompts with a token left out in one pass."""
NARROWEST = 28
"""Characters that a completion needs to be read beside others."""
FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Reading:
    """A prompt's activations along the direction of one method."""

    method: str
    component: Component
    """Where selection found the direction."""
    projections: Float[Tensor, "s l"]
    """x · û of every token on entry to every block; float64."""
    means: Float[Tensor, "2 l"]
    """x · û of the mean harmless and the mean harmful training activation at the component's position."""
    lengths: Float[Tensor, " l"]
    """‖mean harmless activation‖ there."""

    @property
    def shares(self) -> Float[Tensor, "s l"]:
        """How far along the way from the harmless (0) to the harmful mean (1); NaN in layers where they coincide."""
        apart = self.means[1] - self.means[0]
        shares = (self.projections - self.means[0]) / apart
        shares[:, apart.abs() <= SEPARATED * self.lengths] = torch.nan
        return shares


@dataclass(frozen=True)
class Response:
    """What the model does with the prompt under one plan."""

    plan: str
    metric: float
    """The refusal metric at the last token of the prompt."""
    completion: str
    verdict: Verdict


@dataclass(frozen=True)
class Inspection:
    """What `refusal-cmp inspect` shows."""

    tokens: Sequence[str]
    """Of the whole rendered prompt."""
    first: int
    """The first that is shown: where the instruction begins, or the prompt."""
    readings: Sequence[Reading]
    """One for each method, of the unedited model."""
    lens: Float[Tensor, " l1"]
    """The refusal metric as if the stream on entry to each layer were the last; then the model's own."""
    pushes: Float[Tensor, " s"]
    """By how much the metric falls without a token; NaN of those that are not the instruction's."""
    responses: Sequence[Response]
    """Of the unedited model first."""


def inspect_prompt(session: Session, prompt: str, plans: Sequence[str] = (), *, whole: bool = False) -> Inspection:
    """Read one prompt, and complete it under the baseline and under some plans of a finished run.

    Parameters
    ----------
    session
        On a run directory; see `refusal_cmp.run.session.open_run`.
    plans
        Labels; by default the best plan of every method, by the measure of the report.
    whole
        Show what the template puts before the instruction too, such as the system prompt.

    Raises
    ------
    RefusalCmpError
        If the prompt is empty or the run has no such plan.
    """
    if not prompt.strip():
        raise RefusalCmpError("The prompt is empty; give the text that is put to the model.")
    known = {plan.label: plan for plan, _ in read_plans(session)}
    labels = plans or [one.plan for one in best_by_method(standings(read_run(session)))]
    for label in labels:
        if label not in known:
            raise unknown_name("plan", label, known)
    model = session.model
    tokens = tuple(session.run.read_json(PROMPTS)["refusal_tokens"])
    ids = model.tokenize([prompt])[0]
    begins = _begin(model, ids)
    return Inspection(
        tokens=model.tokenizer.batch_decode([[token] for token in ids]),
        first=0 if whole else begins,
        lens=read_lens(model, prompt, tokens),
        pushes=read_pushes(model, ids, range(begins, len(ids) - len(model.positions)), tokens),
        readings=read(model, prompt, read_selected(session)),
        responses=[
            _respond(
                session.host_of(known[label]).model if known[label].checkpoint else model,
                known[label],
                prompt,
                tokens,
                session.config.max_new_tokens,
            )
            for label in dict.fromkeys([BASELINE, *labels])
        ],
    )


def read(model: ChatModel, prompt: str, selected: Sequence[Selected]) -> list[Reading]:
    """The projections of a prompt's tokens on every method's direction; no stream is kept."""
    directions = torch.stack([one.field[one.component].direction for one in selected])
    found: list[Float[Tensor, "s m"]] = []

    def project(stream: Float[Tensor, "1 s d"]) -> None:
        found.append(stream[0].double().cpu() @ directions.mT)

    with installed(before(block.module, project) for block in model.blocks):
        model.last_logits(model.batch(model.tokenize([prompt])))
    readings = []
    for one, projections in zip(selected, torch.stack(found, dim=1).unbind(-1), strict=True):
        direction, means = one.field[one.component].direction, one.field.means
        row = means.positions.index(one.component.position)
        of_classes = torch.stack([means.harmless[row], means.harmful[row]])
        readings.append(
            Reading(one.field.method, one.component, projections, of_classes @ direction, of_classes[0].norm(dim=-1))
        )
    return readings


def read_lens(model: ChatModel, prompt: str, refusal_tokens: Sequence[int]) -> Float[Tensor, " l1"]:
    """The refusal metric at the last token, from the stream on entry to every block, and from what leaves the last.

    The final norm and the unembedding are the model's own: each row of one batch leaves the last block with the stream
    of another layer.
    """
    entering: list[Tensor] = []

    def keep(stream: Tensor) -> None:
        entering.append(stream[0])

    def swap(hidden: Tensor) -> Tensor:
        return torch.cat([torch.stack(entering).to(hidden), hidden[-1:]])

    n_rows = len(model.blocks) + 1
    handles = [before(block.module, keep) for block in model.blocks]
    with torch.inference_mode(), installed([*handles, after(model.blocks[-1].module, swap)]):
        logits = model.last_logits(model.batch(model.tokenize([prompt]) * n_rows))
    return refusal_metric(logits, tuple(refusal_tokens)).double().cpu()


def read_pushes(
    model: ChatModel, ids: Sequence[int], among: Sequence[int], refusal_tokens: Sequence[int]
) -> Float[Tensor, " s"]:
    """By how much the refusal metric falls when each of some tokens is left out; NaN of the others."""
    rows = [list(ids), *([*ids[:index], *ids[index + 1 :]] for index in among)]
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), AT_ONCE):
            logits = model.last_logits(model.batch(rows[start : start + AT_ONCE]))
            found.append(refusal_metric(logits, tuple(refusal_tokens)).double().cpu())
    metrics = torch.cat(found)
    pushes = torch.full((len(ids),), torch.nan, dtype=torch.float64)
    pushes[list(among)] = metrics[0] - metrics[1:]
    return pushes


def _begin(model: ChatModel, ids: Sequence[int]) -> int:
    """Where the instruction begins: behind what all prompts of the template begin with."""
    others = model.tokenize(["A", "?", "9"])
    shared = (len(set(column)) == 1 for column in zip(ids, *others, strict=False))
    return next((index for index, same in enumerate(shared) if not same), 0)


def _respond(model: ChatModel, plan: Plan, prompt: str, tokens: tuple[int, ...], max_new_tokens: int) -> Response:
    with model.edited(plan):
        with torch.inference_mode():
            logits = model.last_logits(model.batch(model.tokenize([prompt])))
        (completion,) = model.generate([prompt], max_new_tokens=max_new_tokens)
    metric = float(refusal_metric(logits, tokens))
    judgement = judge(completion.text, completion.finish, turns=model.turns)
    return Response(plan.label, metric, completion.text, judgement.verdict)


# The figure


def check_figure_file(path: Path) -> None:
    """An error if the figure cannot be saved there, before there is any work."""
    if path.suffix.lower() not in FORMATS:
        raise RefusalCmpError(f"A figure is saved as {', '.join(FORMATS)}, and {path} is none of them; rename it.")
    if not path.parent.is_dir():
        raise RefusalCmpError(f"There is no folder {path.parent} to save {path.name} in; make it, or name another.")


def save_heat(path: Path, inspection: Inspection) -> None:
    """Write the figure of `draw_heat` as PNG, SVG or PDF."""
    check_figure_file(path)
    try:
        path.write_bytes(rendered(draw_heat(inspection), path.suffix.lower().removeprefix(".")))
    except OSError as error:
        raise RefusalCmpError(f"Cannot write {path}: {error.strerror}; name another file with --save.") from None


@styled
def draw_heat(inspection: Inspection) -> Figure:
    """Tokens by layers, a panel for each method; the chosen component is framed."""
    first, readings = inspection.first, inspection.readings
    tokens = inspection.tokens[first:]
    width = column() if len(readings) == 1 else page()
    figure = Figure(figsize=(width, 1.3 + 0.15 * len(tokens)))
    panels = figure.subplots(1, len(readings), sharey=True, squeeze=False)[0]
    for ax, reading in zip(panels, readings, strict=True):
        heat = ax.imshow(
            reading.shares[first:],
            cmap=HEAT,
            vmin=-OUTERMOST,
            vmax=1 + OUTERMOST,
            aspect="auto",
            interpolation="nearest",
        )
        row = len(tokens) + reading.component.position
        corner = (reading.component.layer - 0.5, row - 0.5)
        for colour, wide in ((PAPER, 2.6), (INK, 1.2)):  # seen on light and dark cells
            frame = mpl.patches.Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=wide, zorder=3)
            ax.add_patch(frame)
        ax.set(title=reading.method, xlabel="layer")
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    panels[0].set_yticks(range(len(tokens)), [_visible(token).replace("$", r"\$") for token in tokens])
    bar = figure.colorbar(heat, ax=panels, location="bottom", extend="both", aspect=40, shrink=0.8)
    bar.set_ticks([0, 0.5, 1], labels=["0\nharmless mean", "0.5", "1\nharmful mean"])
    bar.set_label(textwrap.fill(HEAT_LABEL, int(LETTERS * figure.get_figwidth())))
    return figure


# The terminal


def print_inspection(console: Console, inspection: Inspection) -> None:
    """A heat strip of each method, and the responses side by side."""
    for reading in inspection.readings:
        _print_strip(console, inspection.tokens, reading, inspection.first)
    console.print(
        f"Projection on the direction, on each layer's own scale: from {SHADES[0]!r} at its harmless mean to "
        f"{SHADES[-1]!r} at its harmful mean; {BEFORE!r} and {BEYOND!r}: beyond them; {NO_SCALE!r}: they coincide. "
        f"{CHOSEN}, below ▼ and left of ◀, is the chosen component.",
        style="dim",
        highlight=False,
    )
    _print_metric(console, inspection)
    per_table = max(1, console.width // NARROWEST)
    for start in range(0, len(inspection.responses), per_table):
        _print_responses(console, inspection.responses[start : start + per_table])


def _print_metric(console: Console, inspection: Inspection) -> None:
    """The refusal metric by layer, and the tokens that push it."""
    *lens, own = inspection.lens.tolist()
    console.print()
    console.print(line("refusal metric by layer", "bold"), "(logit lens, at the last token)", highlight=False)
    values = [f"{layer}: {_signed(value, 1)}" for layer, value in enumerate(lens)] + [f"at the end: {_signed(own)}"]
    console.print("  ".join(values), highlight=False)
    pushes = inspection.pushes.nan_to_num().tolist()
    strongest = sorted(range(len(pushes)), key=lambda index: -abs(pushes[index]))[:PUSHING]
    named = [f"{_visible(inspection.tokens[index])} {_signed(pushes[index])}" for index in strongest if pushes[index]]
    if named:
        console.print(line("tokens that push it", "bold"), PUSHES, highlight=False)
        console.print("  ".join(named), highlight=False)


def _signed(value: float, digits: int = 2) -> str:
    """Log-odds with their sign."""
    return f"+{log_odds(value, digits)}" if value > 0 else log_odds(value, digits)


def _print_strip(console: Console, tokens: Sequence[str], reading: Reading, first: int) -> None:
    labels = [_visible(token) for token in tokens]
    margin = min(max(map(len, labels[first:])), 24)
    n_layers = reading.projections.shape[1]
    cell = 2 if margin + 2 * n_layers + 3 <= console.width else 1
    row = len(tokens) + reading.component.position
    here, share = (float(of[row, reading.component.layer]) for of in (reading.projections, reading.shares))
    low, high = reading.means[:, reading.component.layer].tolist()
    console.print()
    console.print(
        line(reading.method, "bold"),
        f"at {reading.component}: {here:.2f}, where the harmless mean is {low:.2f} and the harmful mean {high:.2f}"
        + (f"; {share:.2f} of the way" if share == share else ""),
        highlight=False,
    )
    console.print(" " * (margin + 1 + cell * reading.component.layer) + "▼", highlight=False)
    for index, (label, shares) in enumerate(zip(labels, reading.shares.tolist(), strict=True)):
        if index < first:
            continue
        strip = Text(label[:margin].rjust(margin) + " ")
        for layer, share in enumerate(shares):
            strip.append_text(_shade(share, cell, chosen=(index, layer) == (row, reading.component.layer)))
        console.print(strip.append(" ◀" if index == row else ""), no_wrap=True, overflow="crop")
    console.print(f"{'layer':>{margin}} 0{n_layers - 1:>{cell * n_layers - 1}}", style="dim", highlight=False)


def _shade(share: float, width: int, *, chosen: bool = False) -> Text:
    """A cell of the strip: its colour, and without colours its shade; the chosen one, and one beyond, has a sign."""
    mark = CHOSEN if chosen else ""
    if share != share:
        return Text(mark + NO_SCALE * (width - len(mark)), style="dim")
    colour = Color.parse(mpl.colors.to_hex(HEAT((share + OUTERMOST) / (1 + 2 * OUTERMOST))))
    shade = SHADES[round(min(1.0, max(0.0, share)) * (len(SHADES) - 1))]
    beyond = BEFORE if share < -OUTERMOST else BEYOND if share > 1 + OUTERMOST else ""
    cell = Text((beyond or shade) * width, style=Style(color=Color.parse(PAPER) if beyond else colour, bgcolor=colour))
    if chosen:
        sign = Style(color=Color.parse(PAPER if beyond else INK), bgcolor=colour, bold=True)
        cell = Text(mark, style=sign).append_text(cell[: width - 1])
    return cell


def _print_responses(console: Console, responses: Sequence[Response]) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for one in responses:
        table.add_column(line(one.plan), overflow="fold", ratio=1)
    table.add_row(*(f"refusal metric {_signed(one.metric)}, {one.verdict}" for one in responses), style="dim")
    table.add_row(*(lines(one.completion) or Text("(nothing)", "dim") for one in responses))
    console.print()
    console.print(table, highlight=False)


def _visible(token: str) -> str:
    """A token's text on one line, with what would not be seen."""
    spaced = token.replace(" ", "␣") if token.isspace() else token.strip(" ")
    return visible(spaced.replace("\n", "⏎").replace("\t", "⇥"))
