"""The run's configuration: a YAML file and flags → one validated object.

Each stage's settings are a class, so that it is plain which setting matters to which stage. Lists that span
the grid (methods, interventions, …) are marked as such: adding to them adds work and invalidates none.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from refusal_cmp.config.values import (
    LARGEST,
    SYSTEM_PROMPTS,
    AnyNames,
    Budget,
    Checkpoints,
    Components,
    Layers,
    Names,
    Numbers,
    OneOfEach,
    Parts,
    Penalty,
    Positions,
    Scopes,
    Seed,
    Specs,
    SystemPrompts,
    check_name,
    check_text,
    leaves,
    listed,
    once,
    pieces,
)
from refusal_cmp.errors import RefusalCmpError, shortened, unknown_name
from refusal_cmp.files import plain_yaml, read_bytes, read_text

EMBEDDED, EMBEDDED_GUARD = "tiny-refuser", "tiny-guard"
SMALL = "smol-refuser"
"""SmolLM2-135M-Instruct with an adapter of ours that makes it refuse."""
DATE = "2024-07-26"
"""What a chat template is told that asks for today, so that prompts of tomorrow are the same bytes.

It is the day that Llama-3.1's own template names where it has no clock.
"""


def shipped(kind: str) -> dict[str, Path]:
    """The files of a kind that come with the package, `settings` or `templates`, by name."""
    folder = Path(str(files("refusal_cmp") / "assets" / kind))
    return {path.stem: path for path in sorted(folder.iterdir(), key=lambda path: path.stem)}


LONGEST_FILE = 2**18
"""Bytes of a configuration."""
SETTING_FILES, TEMPLATE_FILES = shipped("settings"), shipped("templates")


def named_file(given: str | Path, known: dict[str, Path], what: str) -> Path:
    """The file that comes with the package under this name, or the one at this path."""
    path = known.get(str(given), Path(given))
    if not os.path.exists(path):
        raise RefusalCmpError(f"There is no {what} {given}; give a file, or a name of these: {', '.join(known)}.")
    return path


SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
"""Of the files that prompts are read from."""
TENSORS = ".safetensors"
ENDINGS = (*SUFFIXES, TENSORS)
LONGEST_LABEL = 60
"""Letters of a file that a label keeps: the names of a run's files are made of several labels."""


COLUMN_OF = re.compile(rf"(?P<path>.*(?:{'|'.join(map(re.escape, SUFFIXES))})):(?P<column>[^/\\\\:]+)", re.IGNORECASE)
"""A prompt file with the column to read: `my.csv:goal`."""


def is_path(name: str) -> bool:
    """Whether a prompt set is given as files: a path separator or a known ending, which no registered name has."""
    path, _ = path_and_column(name)
    return "/" in path or "\\" in path or path.lower().endswith(SUFFIXES)


def path_and_column(name: str) -> tuple[str, str | None]:
    """The path of a prompt set that is given as files, and the column that is named behind it, if one is."""
    named = COLUMN_OF.fullmatch(name)
    return (name, None) if named is None else (named["path"], named["column"])


def file_label(path: str) -> str:
    """A file's name, and its column's, as tables and run directories have it: lower-case words joined by dashes."""
    path, column = path_and_column(path)
    name = Path(path).name.lower()
    stem = name.removesuffix(next(filter(name.endswith, ENDINGS), "")) + (f" {column.lower()}" if column else "")
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:LONGEST_LABEL].strip("-") or "file"


def digest_of(path: Path) -> str:
    """A hash of a file's content, or that there is none."""
    return hashlib.sha256(read_bytes(path, "file")).hexdigest()[:16] if os.path.isfile(path) else "missing"


def _hidden(value: Any) -> Any:
    """Any value as a secret: one that is not text would be refused, and shown in the message."""
    return value if value is None or isinstance(value, SecretStr) else SecretStr(str(value))


def checked_address(url: str) -> str:
    """The address of an endpoint, which a run writes down; the error does not show it, as a key may be in it."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        fits = False
    if not fits or any(one in "?# " or not one.isprintable() for one in url):
        raise RefusalCmpError(
            "The address of an endpoint must be like http://localhost:8000/v1, with the key apart, and this one is "
            "not; mend it.",
            openai_url="URL",
        )
    return url


KINDS = ("harmful", "harmless")
"""The kinds of prompt that a run learns from, and the roles in which its own test prompts are completed."""
CONTRAST = "contrast"
ROLES = (*KINDS, CONTRAST)
"""What evaluators, the report and the agreement of judges look for among the test sets; any set can play one."""
EVERYTHING = "all"
"""What results call all test sets together."""
ROLE = re.compile(rf"(?P<role>{'|'.join(ROLES)})=(?P<source>.+)")


WRAPPED = "harmful+"
"""How the name of a test set begins that is the harmful prompts in a wrapper."""


def _test_label(name: str) -> str:
    """What results call a test set: by the role that it plays; a file is called by its name."""
    if played := ROLE.fullmatch(name):
        return played["role"]
    if not is_path(name):
        return name
    label = file_label(name)
    return f"{label}-file" if label in (*ROLES, EVERYTHING) else label


BUDGET = "budget"
"""The k policy that labels leave out: as many leading directions as stay within the KL budget."""


def _k_policy(value: str) -> str:
    if not re.fullmatch(rf"{BUDGET}|full|[1-9][0-9]{{0,8}}|acc[1-9][0-9]", value):
        raise ValueError("it must be budget, full, a number from 1 on, or an accuracy as in acc95")
    return value


def _given_label(path: Any) -> str:
    """The method that a given direction is."""
    return f"given-{file_label(str(path))}"


def _is_tensors(value: Any) -> bool:
    return str(value).lower().endswith(TENSORS)


def _model_name(model: str) -> str:
    path = Path(model)
    return (path.resolve() if os.path.isdir(path) else path).name.lower().removesuffix(".gguf")


def _day(value: str) -> str:
    try:
        return datetime.date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError(f"it must be a day, as in {DATE}") from None


Day = Annotated[str, AfterValidator(_day)]
KPolicy = Annotated[str, AfterValidator(_k_policy)]
Site = Literal["resid_pre", "attn_out", "mlp_out"]
SITES: tuple[Site, ...] = get_args(Site)
Sites = Annotated[tuple[Site, ...], BeforeValidator(pieces), AfterValidator(once), Field(min_length=1)]
RankingRule = Literal["cosmic", "attribution"]
"""What estimates or replaces the bypass of a component; see `refusal_cmp.selection`."""
RankKey = Literal["bypass", "accuracy-then-bypass", "cosmic", "attribution"]
Share = Annotated[float, Field(ge=0.1, le=0.9)]
Address = Annotated[str, AfterValidator(checked_address)]
Secret = Annotated[SecretStr | None, BeforeValidator(_hidden)]
GRID: dict[str, Any] = {"grid": True}
"""Marks a list that spans the grid: adding to it adds work and leaves finished work valid."""
SCORING: dict[str, Any] = {"scoring": True}
"""Marks what the scores of single prompts depend on; other settings of select only choose by them."""
KEEPING: dict[str, Any] = {"keeping": True}
"""Marks what the KL of leading directions depends on, of which as many are used as stay within the budget."""
CHOOSING: dict[str, Any] = {"choosing": True}
"""Marks what only chooses by scores that are kept: with another value they are ranked again at once."""
COMPLETING: dict[str, Any] = {"completing": True}
"""Marks what completions depend on beside their plan and prompts, which other settings of infer decide."""
MODEL: dict[str, Any] = {"model": True}
"""Marks what names a model: if it is a folder, the files in it matter, not its name alone."""
REPEATED: dict[str, Any] = {"repeated": True}
"""Marks a list whose option may be given several times."""
FILE_ONLY: dict[str, Any] = {"file_only": True}
"""Marks a setting that is no option of the command line."""


def is_marked(field: FieldInfo, mark: dict[str, Any]) -> bool:
    """Whether a setting has a mark."""
    return mark.items() <= (field.json_schema_extra or {}).items()  # type: ignore[union-attr]


class ExtractSettings(BaseModel):
    """What decides the subspaces."""

    model: str = Field(
        EMBEDDED, description="Hugging Face id, local folder, GGUF file, smol-refuser, or the embedded tiny-refuser"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, bfloat16 on a GPU"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field("none", description="of the weights, by bitsandbytes")
    revision: str | None = Field(None, description="branch, tag or commit of the model on the hub")
    chat_template: Path | None = Field(
        None,
        description="Jinja file that replaces the tokenizer's chat template, or the name of one that comes with us: "
        f"{', '.join(TEMPLATE_FILES)}",
    )
    system: str | None = Field(None, description="system prompt put before every instruction")
    date: Day | None = Field(
        None, description=f"day that chat templates are told where they ask for today's; by default {DATE}"
    )
    methods: Specs = Field(("diff-in-means", "inlp"), description="extractors", json_schema_extra=GRID)
    harmful: str = Field("tiny-harmful", description="prompt set that the model should refuse: a name or a file")
    harmless: str = Field("tiny-harmless", description="prompt set that it should answer: a name or a file")
    column: Names | None = Field(None, description="column of prompt files; of several the first that a file has")
    category_column: str | None = Field(None, description="column of prompt files that holds categories")
    label_column: str | None = Field(
        None, description="column that says whether a row is harmful or harmless, where one file holds both"
    )
    harmful_label: Names | None = Field(
        None, description="its values for harmful prompts; by default all that are not harmless-label"
    )
    harmless_label: Names | None = Field(
        None, description="its values for harmless prompts; by default all that are not harmful-label"
    )
    split_column: str | None = Field(
        None, description="column of prompt files that says train, val or test; by default split"
    )
    split: Parts = Field((60, 20, 20), description="TRAIN/VAL/TEST, the percent that a set of one list is divided into")
    near_duplicates: float | None = Field(
        None, gt=0, le=1, description="drop train and validation prompts this like a test prompt (TF-IDF cosine)"
    )
    n_train: int = Field(128, ge=10, description="prompts of each kind to extract from")
    n_val: int = Field(32, ge=1, description="prompts of each kind to score components on")
    n_test: int = Field(100, ge=1, description="prompts of each test set")
    limit: int | None = Field(None, ge=1, description="most prompts of any set")
    filter_prompts: bool = Field(
        True, description="drop train and validation prompts of which the refusal metric says otherwise than their kind"
    )
    refusal_tokens: Annotated[tuple[int, ...], BeforeValidator(pieces), AfterValidator(once)] | None = Field(
        None, description="token ids of the refusal metric; by default found on the training prompts"
    )
    dev_share: Share = Field(0.2, description="share of the training prompts held out as INLP's dev split")
    inlp_c: Penalty = Field(0.1, description="inverse L2 penalty of INLP's classifier")
    inlp_classifier: Literal["newton", "logistic", "linear-svc", "ridge", "perceptron"] = Field(
        "newton", description="INLP's linear classifier: newton is our logistic regression, the others scikit-learn's"
    )
    inlp_stop: str = Field(
        "binomial", description="INLP stops at dev accuracy no better than chance, or below e.g. 0.55"
    )
    inlp_max_k: int = Field(100, ge=1, description="most INLP classifiers")
    method_options: dict[str, dict[str, Any]] = Field(
        {}, description="hyper-parameters by method", json_schema_extra=FILE_ONLY
    )
    given: Annotated[tuple[Path, ...], AfterValidator(once)] = Field(
        (), description="safetensors files of directions to run beside the methods", json_schema_extra=GRID | FILE_ONLY
    )
    direction_at: Annotated[tuple[int, int], BeforeValidator(pieces)] | None = Field(
        None, description="POSITION,LAYER of a given direction whose file does not say it", json_schema_extra=GRID
    )
    seed: Seed = Field(42, description="of sampling and splitting")
    test_seed: Seed | None = Field(None, description="of the sample of test prompts and questions; by default the seed")


class SelectSettings(BaseModel):
    """What decides the scores and the choice of a component."""

    inlp_k: Annotated[tuple[KPolicy, ...], BeforeValidator(pieces), AfterValidator(once), Field(min_length=1)] = Field(
        (BUDGET,),
        description="INLP directions to use: budget (the most that stay within kl-threshold), full, a number, acc99",
        json_schema_extra=GRID,
    )
    positions: Positions | None = Field(
        None,
        description="post-instruction tokens of the components that are scored and can be chosen, as in -1,-2; by "
        "default all; a method that reads another token keeps its own",
        json_schema_extra=GRID,
    )
    layers: Layers | None = Field(
        None,
        description="their layers, as numbers or START:STOP:STEP, as in 8:24 or 8:24:2; by default all",
        json_schema_extra=GRID,
    )
    compare_rankings: bool = Field(
        False, description="also score globally and compare the rankings", json_schema_extra=GRID
    )
    ranking_rules: Annotated[tuple[RankingRule, ...], BeforeValidator(pieces), AfterValidator(once)] = Field(
        (),
        description="cosmic, attribution: also score by these rules, and compare their rankings and costs with bypass",
        json_schema_extra=GRID,
    )
    rank_by: Literal["local", "global"] = Field(
        "local", description="which scores filter and rank", json_schema_extra=CHOOSING
    )
    rank_key: RankKey = Field("bypass", description="what ranks components", json_schema_extra=CHOOSING)
    induce_multipliers: Numbers = Field(
        (0.5, 1.0, 2.0), description="multipliers of the induce score", json_schema_extra=SCORING
    )
    induce_aggregate: Literal["max", "median", "one"] = Field(
        "max", description="how they become one score", json_schema_extra=CHOOSING
    )
    induce_threshold: float = Field(
        0.0, description="least mean refusal metric that addition must induce", json_schema_extra=CHOOSING
    )
    kl_threshold: float = Field(
        0.1, gt=0, description="most KL, in nats, that removal may do to harmless prompts", json_schema_extra=CHOOSING
    )
    kl_epsilon: float = Field(
        0.0,
        ge=0,
        description="added inside the logs of the KL; 1e-6 in the published setting",
        json_schema_extra=SCORING | KEEPING,
    )
    prune_layers: float = Field(
        0.8,
        gt=0,
        le=1,
        description="only layers below int(this × n_layers) are scored and selected",
        json_schema_extra=CHOOSING,
    )
    pool: Literal["kept-first", "all"] = Field(
        "kept-first",
        description="what top:PERCENT counts over: components of those layers, what the filters keep first; or all "
        "components, best first",
        json_schema_extra=CHOOSING,
    )
    rank_key_of: dict[str, RankKey] = Field(
        {}, description="another rank key, by method", json_schema_extra=FILE_ONLY | CHOOSING
    )
    sites: Sites = Field(
        ("resid_pre", "attn_out", "mlp_out"), description="where removal and mirror edits act in a layer"
    )
    score_sites_of: dict[str, Sites] = Field(
        {}, description="other sites for scores, by method", json_schema_extra=FILE_ONLY
    )
    spread: bool = Field(
        True, description="divide additions by the number of layers in scope", json_schema_extra=SCORING
    )
    actadd_norm: Literal["own", "selected"] = Field(
        "own",
        description="what additions are measured by: the norm of their layer, or of the selected difference in means",
        json_schema_extra=SCORING,
    )


class InferSettings(BaseModel):
    """What decides the plans and their completions."""

    interventions: Specs = Field(
        ("ablation", "nullspace", "actadd", "reflection", "alterrep", "clamp"),
        description="every method goes with every intervention; one may have options in brackets: "
        "ablation[keep-norm=true]",
        json_schema_extra=GRID,
    )
    scope: Scopes = Field(("single", "top:50", "all"), description="single, top:PERCENT, all", json_schema_extra=GRID)
    component: Components = Field(
        ("best",),
        description="whose direction a method's plans use: that of its own best component, of one shared by all "
        "methods, or of POSITION,LAYER; several are compared",
        json_schema_extra=GRID,
    )
    actadd_multipliers: Numbers = Field((-1.0, 1.0), description="strengths of actadd plans", json_schema_extra=GRID)
    reflection_alphas: Numbers = Field((2.0,), description="strengths of reflection plans", json_schema_extra=GRID)
    strengths: dict[str, Numbers] = Field({}, description="by other interventions", json_schema_extra=GRID | FILE_ONLY)
    calibrate: Budget | None = Field(
        None,
        description="MEASURE=BUDGET, as in kl=0.1: plans do this damage to harmless validation prompts, each at the "
        "strength that it takes, in place of the strengths that are set; measures: kl (mean KL over the unedited "
        "model's own answers), first-kl, loss, change",
    )
    calibrate_over: Literal["strength", "k"] = Field(
        "strength",
        description="what calibrate varies: the strength; or k, the number of directions of methods that have them in "
        "an order, in interventions along all of them, and then the strength",
        json_schema_extra=GRID,  # plans with other numbers of directions are other plans, beside those that are there
    )
    calibrate_tokens: int = Field(
        16, ge=1, description="tokens of each of the model's own answers that damage is measured on"
    )
    curve: bool = Field(
        False,
        description="also sweep the strengths, and draw refusal against damage (the measure of calibrate, or kl)",
        json_schema_extra=GRID,
    )
    curve_limit: float = Field(1.0, gt=0, description="most damage of the sweep", json_schema_extra=GRID)
    curve_strengths: Numbers | None = Field(
        None,
        description="strengths of the sweep, in default strengths, as in 0.25,0.5,1; by default spread over what the "
        "limit allows",
        json_schema_extra=GRID,
    )
    direction: Literal["best", "own"] = Field(
        "best",
        description="whose subspace acts at the layers in scope; FILE.safetensors: also run the direction in this file",
    )
    actadd_layers: Literal["scope", "selected"] = Field(
        "scope", description="where additions act: at every layer in scope, or at the selected component's alone"
    )
    compose: Literal["once", "repeat", "component"] = Field(
        "once", description="how reflections compose: each contribution once, at every site, or there by component"
    )
    alterrep_about: Literal["midpoint", "zero"] = Field(
        "midpoint", description="AlterRep's two sides meet at the midpoint of the class means, or at zero, as published"
    )
    also: Checkpoints = Field(
        (),
        description="other checkpoints of the model, each a plan of its own, as NAME=MODEL: a fine-tuned or edited "
        "copy, an adapter, a GGUF file; may be repeated",
        json_schema_extra=GRID | REPEATED,
    )
    system_prompts: SystemPrompts = Field(
        (),
        description="system prompts, each a plan of its own beside those that edit: less, more (against and for "
        "refusing), or NAME=TEXT; may be repeated",
        json_schema_extra=GRID | REPEATED,
    )
    contrast: str = Field(
        "tiny-contrast", description="harmless prompts that sound harmful, the test set contrast: a name or a file"
    )
    eval_datasets: Names = Field(
        ("harmful", "harmless", "contrast"),
        description="test sets to complete: harmful, harmless, contrast, a name or a file; or one of the three played "
        "by another set, as in harmful=jailbreakbench",
        json_schema_extra=GRID,
    )
    wrappers: AnyNames = Field(
        (),
        description="also test on the harmful prompts as people wrap them to get an answer: prefill, suppression, "
        "role-play, fiction, german, answered-before; each is a test set harmful+NAME",
        json_schema_extra=GRID,
    )
    max_new_tokens: int = Field(64, ge=1, description="longest completion", json_schema_extra=COMPLETING)
    engine: str = Field("hf", description="who generates: hf, vllm, or a plugin's", json_schema_extra=COMPLETING)


class EvaluateSettings(BaseModel):
    """What decides the metrics."""

    evals: OneOfEach = Field(
        ("refusal", "coherence", "guard", "perplexity", "capability", "kl", "magnitude", "geometry"),
        description="evaluators",
        json_schema_extra=GRID,
    )
    phrases: Literal["published", "extended"] | Path = Field(
        "published", description="what refuses: published, extended, or a file with a phrase a line"
    )
    texts: Names = Field(
        ("tiny-answers", "tiny-general", "on-distribution"),
        description="text sets for perplexity; on-distribution: the model's own unedited answers",
        json_schema_extra=GRID,
    )
    loss_tokens: int | None = Field(
        16_384, ge=2, description="tokens of each text set that the loss is measured on, at most"
    )
    loss_texts: int | None = Field(None, ge=2, description="texts of each set that it is measured on, at most")
    document_tokens: int = Field(256, ge=2, description="most tokens of one plain text; answers are not cut")
    tasks: OneOfEach = Field(
        ("world_cloze", "world_statements"),
        description="benchmarks of lm-eval by name; NAME@SHOTS/LIMIT sets shots and questions: mmlu@5/500, mmlu@5/all",
        json_schema_extra=GRID,
    )
    benchmark_limit: int | None = Field(500, ge=1, description="most questions of a task that sets no limit")
    benchmark_draw: Literal["first", "random"] = Field(
        "first", description="which: the first of each subject in equal shares, or drawn over all with the seed"
    )
    task_template: bool = Field(
        False, description="ask a task's questions in the chat template, with the system prompt, not as plain text"
    )
    guard: str = Field(
        "tiny-guard",
        description="guard model: Hugging Face id, local folder, GGUF file, name at the endpoint, or tiny-guard",
        json_schema_extra=MODEL,
    )
    guard_revision: str | None = Field(None, description="branch, tag or commit of the guard on the hub")
    guard_backend: Literal["hf", "vllm", "openai"] = Field("hf", description="where the guard runs")
    guard_format: Literal["auto", "llama-guard", "harmbench", "classifier", "answer-classifier"] = Field(
        "auto",
        description="how the guard is asked; auto: by its name or architecture; classifier: any model with labels; "
        "answer-classifier: one that reads the completion alone",
    )
    guard_unsafe_labels: Names | None = Field(
        None, description="labels of a classifier that mean unsafe, or that it did not refuse; by default by name"
    )
    guard_prompt: Path | None = Field(
        None, description="file with HarmBench's classifier prompt; by default read from HarmBench's repository"
    )
    guard_min_words: int = Field(0, ge=0, description="completions of fewer words count as safe, unasked")
    rubric_model: str | None = Field(None, description="name at the endpoint of the model that grades by the rubric")
    rubric_prompt: Path | None = Field(None, description="file that replaces the rubric")


class MachineSettings(BaseModel):
    """Where and how the work is done; results do not depend on it."""

    device: str = Field(
        "auto", description="cpu, cuda, cuda:1, …; auto: the first GPU, or all devices for a model that does not fit"
    )
    offline: bool = Field(
        False,
        description="download nothing: the model from its cache, and by default prompts, texts and questions that come "
        "with us, and no guard",
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    batch_size: int | None = Field(
        None, ge=1, description="prompts in one forward pass; by default as many as are faster, and fit"
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share each layer in vLLM")
    vllm_gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory that vLLM may take"
    )
    vllm_eager: bool = Field(
        False, description="vLLM does not compile the model: a start of seconds instead of a minute, and slower passes"
    )
    openai_url: Address | None = Field(
        None, description="OpenAI-compatible endpoint of guard and rubric; by default OPENAI_BASE_URL"
    )
    openai_key: Secret = Field(
        None,
        exclude=True,
        description="its key, never written anywhere; by default OPENAI_API_KEY, where no other user can see it",
    )
    openai_concurrency: int = Field(8, ge=1, description="requests under way at a time")
    openai_timeout: float = Field(60.0, gt=0, le=86_400, description="seconds that one answer may take")
    runs_dir: Path = Field(Path("runs"), description="folder of run directories")
    alias: str | None = Field(None, description="name of the run directory; by default the model's")


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline; `refusal_cmp/stages/NAME.py` has its function, `NAME_stage`."""

    name: str
    help: str
    heading: str = ""
    """Over its options in the help."""
    settings: type[BaseModel] | None = None
    """What decides its artefacts; a base of `RunConfig`."""


PIPELINE = (
    Stage("extract", "Read activations and find every method's subspaces.", "Extraction", ExtractSettings),
    Stage("select", "Score, filter and rank components; choose one for each method.", "Selection", SelectSettings),
    Stage(
        "infer",
        "Complete the test prompts under every plan of the grid.",
        "Interventions and completions",
        InferSettings,
    ),
    Stage("evaluate", "Judge the completions, measure losses, and write results.csv.", "Evaluation", EvaluateSettings),
    Stage("report", "Draw the figures of a run, and write its page and its summary."),
)
"""In order."""
STAGES = tuple(stage.name for stage in PIPELINE)
SETTINGS_OF = {stage.name: stage.settings for stage in PIPELINE if stage.settings is not None}


FREE = ("system", "system_prompts", "method_options")
"""Settings whose text is no name: it may be empty, long, and of many lines."""
REAL_MODEL_DEFAULTS: dict[str, Any] = {
    "harmful": "published-harmful",
    "harmless": "published-harmless",
    "contrast": "xstest",
    "texts": ("pile", "alpaca", "on-distribution"),
    "guard": "meta-llama/Llama-Guard-3-8B",
    "tasks": ("mmlu@5", "arc_challenge@5", "truthfulqa_mc1", "truthfulqa_mc2"),
}
"""Defaults with any model but ours."""
SMALL_DEFAULTS: dict[str, Any] = {
    "harmful": "everyday-harmful",
    "harmless": "everyday-harmless",
    "contrast": "everyday-contrast",
    "texts": ("everyday-answers", "python-docs", "on-distribution"),
    "tasks": ("everyday_questions",),
    "evals": ("refusal", "coherence", "perplexity", "capability", "kl", "magnitude", "geometry"),
}
"""Defaults with `smol-refuser`, and offline: nothing is downloaded for them. No guard of ours reads such answers."""
DEFAULTS_OF: dict[str, dict[str, Any]] = {EMBEDDED: {}, SMALL: SMALL_DEFAULTS}


def defaults_for(model: str, offline: bool = False) -> dict[str, Any]:
    """The defaults that depend on the model, with which a run of it starts."""
    others = SMALL_DEFAULTS if offline else REAL_MODEL_DEFAULTS
    return DEFAULTS_OF.get(model, others) if isinstance(model, str) else others  # what is no name is refused later


class RunConfig(ExtractSettings, SelectSettings, InferSettings, EvaluateSettings, MachineSettings):
    """Every setting of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_a_kind_that_files_hold(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        if field.exclude:  # a secret, which no message shows
            return value
        for one in leaves(value):
            if isinstance(one, bool) and field.annotation is not bool and info.field_name != "method_options":
                raise ValueError("it is neither true nor false")
            if not isinstance(one, bool | int | float | str | Path | None):
                raise ValueError("it must be made of text, numbers, true, false and null")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fitting_defaults(cls, given: Any) -> Any:
        both = {name: given[name] for name in KINDS if name in given} if given.get("label_column") else {}
        if len(both) == 1:  # the file with the label holds both kinds
            given = given | dict.fromkeys(KINDS, *both.values())
        return defaults_for(given.get("model", EMBEDDED), given.get("offline") is True) | given

    @model_validator(mode="before")
    @classmethod
    def _given_directions(cls, settings: Any) -> Any:
        """Files among the values of `direction` go to `given`; what they hold joins the methods, unless named there."""
        values = listed(settings.get("direction"))
        new = [value for value in values if _is_tensors(value)]
        files = [*listed(settings.get("given")), *new]
        if not files:
            return settings
        own = [value for value in values if not _is_tensors(value)]
        methods = listed(settings.get("methods", ExtractSettings.model_fields["methods"].default))
        labels = [_given_label(file) for file in (new if "methods" in settings else files)]
        if not any(label in methods for label in labels):
            methods = [*methods, *labels]
        return {**settings, "given": files, "methods": methods, "direction": own[0] if len(own) == 1 else own or "best"}

    @model_validator(mode="after")
    def _files_have_names_of_their_own(self) -> RunConfig:
        names = {
            "directions": [_given_label(path) for path in self.given],
            "test sets": [_test_label(name) for name in self.eval_datasets],
        }
        for kind, labels in names.items():
            twice = [label for label in labels if labels.count(label) > 1]
            if twice:
                raise ValueError(f"two {kind} are called {twice[0]}, so rename one of the files, or leave one out")
        return self

    @field_validator("alias")
    @classmethod
    def _is_a_folder_name(cls, alias: str | None) -> str | None:
        if alias is not None and (alias in ("", ".", "..") or Path(alias).name != alias):
            raise ValueError("it must be the name of a folder in the runs folder, without a path")
        return alias

    @field_validator("model")
    @classmethod
    def _names_its_run(cls, model: str) -> str:
        if _model_name(model) in ("", ".."):
            raise ValueError("it must be the name of a model, or of its folder")
        return model

    @field_validator("*", mode="after")
    @classmethod
    def _is_of_a_size_that_machines_take(cls, value: Any, info: ValidationInfo) -> Any:
        for one in leaves(value):
            if isinstance(one, int) and abs(one) > LARGEST:
                raise ValueError(f"a whole number may be {LARGEST} at most")
            if isinstance(one, str | Path):
                check_text(str(one))
                if info.field_name not in FREE:
                    check_name(str(one))
        return value

    @model_validator(mode="after")
    def _one_mirror_has_all_its_sites(self) -> RunConfig:
        several = any(scope != "single" for scope in self.scope)
        mirrors = any(re.fullmatch(r"reflection(\[.*)?", name) for name in self.interventions)
        if mirrors and self.compose == "once" and several and set(self.sites) != set(SITES):
            raise ValueError(
                "reflection composed once over several layers mirrors what each of the sites "
                f"{', '.join(SITES)} adds, so give them all, compose: repeat, scope: single, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _what_is_varied_is_calibrated(self) -> RunConfig:
        if self.calibrate_over != "strength" and self.calibrate is None:
            raise ValueError(
                f"calibrate-over {self.calibrate_over} says what is calibrated to a budget of damage, so give one, as "
                "calibrate kl=0.1, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_of_a_column(self) -> RunConfig:
        labels = bool(self.harmful_label or self.harmless_label)
        if labels and self.label_column is None:
            raise ValueError("labels of prompts are in a column, so name it as label-column")
        if self.label_column is not None and not labels:
            raise ValueError("label-column needs to know a value, so give harmful-label or harmless-label")
        if set(self.harmful_label or ()) & set(self.harmless_label or ()):
            raise ValueError("a label is harmful or harmless, so give each value once")
        return self

    @model_validator(mode="after")
    def _losses_end(self) -> RunConfig:
        if self.loss_tokens is None and self.loss_texts is None:
            raise ValueError("losses are measured on loss-tokens or on loss-texts, so set one of the two")
        return self

    @model_validator(mode="after")
    def _one_is_a_multiplier(self) -> RunConfig:
        if self.induce_aggregate == "one" and 1 not in self.induce_multipliers:
            raise ValueError("induce-aggregate one needs 1 among the induce-multipliers")
        return self

    @property
    def drawn_with(self) -> int:
        """The seed of the sample of test prompts and benchmark questions."""
        return self.seed if self.test_seed is None else self.test_seed

    @property
    def run_name(self) -> str:
        """The run directory's name: the alias, or the last part of the model's id in lower case."""
        return self.model_name if self.alias is None else self.alias

    @property
    def model_name(self) -> str:
        """What results call the model: the last part of its id in lower case."""
        return _model_name(self.model)

    def binding(self, *stages: str) -> dict[str, Any]:
        """The settings of these stages whose change would make their artifacts wrong, as JSON values."""
        names = [
            name
            for stage in stages
            for name, field in SETTINGS_OF[stage].model_fields.items()
            if not is_marked(field, GRID)
        ]
        settings = self.model_dump(mode="json", include=set(names))
        if settings.get("chat_template") is not None:  # its content matters, not its name alone
            path = TEMPLATE_FILES.get(settings["chat_template"], Path(settings["chat_template"]))
            settings["chat_template"] += f" ({digest_of(path)})"
        return settings

    def marked(self, mark: dict[str, Any]) -> dict[str, Any]:
        """The settings that have a mark, as JSON values."""
        names = {name for name, field in RunConfig.model_fields.items() if is_marked(field, mark)}
        return self.model_dump(mode="json", include=names)

    @property
    def digest(self) -> str:
        """A hash of every setting that results depend on."""
        settings = self.model_dump(mode="json", exclude=set(MachineSettings.model_fields))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def test_sets(self) -> tuple[str, ...]:
        """What results call the test sets: `harmful`, a registered name, `harmful+prefill`."""
        return (*(_test_label(name) for name in self.eval_datasets), *self.wrapped)

    @property
    def wrapped(self) -> dict[str, str]:
        """Those of them that are the harmful prompts in a wrapper, each with its name."""
        return {f"{WRAPPED}{name}": name for name in self.wrappers}

    @property
    def other_sets(self) -> dict[str, str]:
        """Those of them that are not the run's own prompts, each with the registered name or path of its source."""
        given = {_test_label(name): name for name in self.eval_datasets if name not in KINDS}
        return {label: self._source(name) for label, name in given.items()}

    def test_source(self, label: str) -> str:
        """The registered name or path that the prompts of a test set come from."""
        if label in self.wrapped:
            return f"{self.test_source(WRAPPED[:-1])} in {self.wrapped[label]}"
        return self.other_sets.get(label) or getattr(self, label)

    def _source(self, name: str) -> str:
        played = ROLE.fullmatch(name)
        return played["source"] if played else self.contrast if name == CONTRAST else name

    @property
    def given_files(self) -> dict[str, Path]:
        """The files of the methods that are given directions, by method."""
        return {_given_label(path): path for path in self.given}

    @property
    def checkpoints(self) -> dict[str, str]:
        """Where the other checkpoints are, by name."""
        parts = (one.partition("=") for one in self.also)
        return {name: os.path.expanduser(place) for name, _, place in parts}

    @property
    def other_systems(self) -> dict[str, str]:
        """The texts of the other system prompts, by name."""
        parts = (one.partition("=") for one in self.system_prompts)
        return {name: text if sign else SYSTEM_PROMPTS[name] for name, sign, text in parts}

    def to_yaml(self) -> str:
        """The whole configuration, as `load_config` reads it."""
        head = "# Every setting of this run; `refusal-cmp run --config` with this file does it again.\n"
        owners: list[type[BaseModel]] = [*SETTINGS_OF.values(), MachineSettings]
        names = [name for owner in owners for name in owner.model_fields]
        settings = self.model_dump(mode="json")
        ordered = {name: settings[name] for name in names if name in settings}  # secrets are not
        return head + plain_yaml.dump(ordered)

    def prompts(self, wanted: int) -> int:
        """How many prompts of a set, under the limit."""
        return wanted if self.limit is None else min(wanted, self.limit)


def load_config(path: str | Path | None, flags: dict[str, Any]) -> RunConfig:
    """The configuration of a YAML file (if given) with flags on top; one sentence for the first mistake.

    Parameters
    ----------
    path
        Of a file, or the name of one that comes with the package: `published`.
    """
    settings, lines = ({}, {}) if path is None else _read_yaml(path)
    lines = {name: line for name, line in lines.items() if name not in flags}
    settings |= flags
    for name in map(str, settings):
        if name in RunConfig.model_fields:
            continue
        if name in lines:
            error = unknown_name(f"setting in {path}", shortened(name), RunConfig.model_fields)
            raise RefusalCmpError(f"{error} (line {lines[name]})")
        raise unknown_name("setting", shortened(name), RunConfig.model_fields)
    try:
        return RunConfig(**settings)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # a rule between settings
            raise RefusalCmpError(f"The settings do not go together: {message}.") from None
        name = ".".join(part for part in first["loc"] if isinstance(part, str))
        line = lines.get(str(first["loc"][0]))
        where, at = ("", "") if line is None else (f" in {path}", f" (line {line})")
        message = message[0].lower() + message[1:]
        raise RefusalCmpError(
            f"The setting {name.replace('_', '-')}{where} is {_shown(first['input'])}{at}, and this does not hold: "
            f"{message}."
        ) from None


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a YAML file sets, or that of a name which comes with the package, unchecked."""
    return _read_yaml(path)[0]


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits; what holds itself
        return "too long to be shown"
    return shortened(text)


def _read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The settings of a file, and the line of each."""
    file = named_file(path, SETTING_FILES, "configuration")
    text = read_text(file, "configuration", give="a YAML file", most=LONGEST_FILE)
    settings, lines = plain_yaml.load_with_lines(text, f"The configuration {path}")
    if settings is None:
        return {}, {}
    if not isinstance(settings, dict):
        raise RefusalCmpError(f"The configuration {path} must be a list of `setting: value` lines, and is not.")
    return settings, lines
