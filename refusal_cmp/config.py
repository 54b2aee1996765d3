"""The run's configuration: a YAML file and flags → one validated object.

Each stage's settings are a class, so that it is plain which setting matters to which stage. Lists that span
the grid (methods, interventions, …) are marked as such: adding to them adds work and invalidates none.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from refusal_cmp.errors import RefusalCmpError, unknown_name

STAGES = ("extract", "select", "infer", "evaluate", "report")


def _split(value: Any) -> Any:
    """`a,b` as a list; a comma inside brackets does not separate."""
    if isinstance(value, str):
        return [part.strip() for part in re.split(r",(?![^\[]*\])", value) if part.strip()]
    return [value] if isinstance(value, int | float) else value


KPolicy = Annotated[str, Field(pattern=r"^(full|[1-9]\d*|acc[1-9]\d)$")]
Site = Literal["resid_pre", "attn_out", "mlp_out"]
Names = Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split), Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
GRID: dict[str, Any] = {"grid": True}


class ExtractSettings(BaseModel):
    """What decides the subspaces."""

    model: str = Field("tiny-refuser", description="Hugging Face id, local folder, or the embedded tiny-refuser")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, bfloat16 on a GPU"
    )
    chat_template: Path | None = Field(None, description="Jinja file that replaces the tokenizer's chat template")
    system: str | None = Field(None, description="system prompt put before every instruction")
    methods: Names = Field(("diff-in-means", "inlp"), description="extractors", json_schema_extra=GRID)
    harmful: str = Field("tiny-harmful", description="prompt set that the model should refuse")
    harmless: str = Field("tiny-harmless", description="prompt set that it should answer")
    n_train: int = Field(128, ge=10, description="prompts of each kind to extract from")
    n_val: int = Field(32, ge=1, description="prompts of each kind to score components on")
    n_test: int = Field(100, ge=1, description="prompts of each test set")
    limit: int | None = Field(None, ge=1, description="most prompts of any set")
    filter_prompts: bool = Field(
        True, description="drop train and validation prompts on which the model does not do as expected"
    )
    refusal_tokens: Annotated[tuple[int, ...], BeforeValidator(_split)] | None = Field(
        None, description="token ids of the refusal metric; by default found on the training prompts"
    )
    dev_share: Share = Field(0.2, description="share of the training prompts held out as INLP's dev split")
    inlp_c: float = Field(0.1, gt=0, description="inverse L2 penalty of INLP's classifier")
    inlp_classifier: Literal["newton", "logistic", "linear-svc", "ridge", "perceptron"] = Field(
        "newton", description="INLP's linear classifier: newton is our logistic regression, the others scikit-learn's"
    )
    inlp_stop: str = Field(
        "binomial", description="INLP stops at dev accuracy no better than chance, or below e.g. 0.55"
    )
    inlp_max_k: int = Field(100, ge=1, description="most INLP classifiers")
    method_options: dict[str, dict[str, Any]] = Field({}, description="hyper-parameters by method (file only)")
    seed: int = Field(42, ge=0, description="of sampling and splitting")


class SelectSettings(BaseModel):
    """What decides the scores and the choice of a component."""

    inlp_k: Annotated[tuple[KPolicy, ...], BeforeValidator(_split), Field(min_length=1)] = Field(
        ("full",), description="INLP directions to use: full, a number, acc99, acc95", json_schema_extra=GRID
    )
    compare_rankings: bool = Field(
        False, description="also score globally and compare the rankings", json_schema_extra=GRID
    )
    rank_by: Literal["local", "global"] = Field("local", description="which scores filter and rank")
    rank_key: Literal["bypass", "accuracy-then-bypass"] = Field("bypass", description="what ranks components")
    induce_multipliers: Numbers = Field((0.5, 1.0, 2.0), description="multipliers of the induce score")
    induce_aggregate: Literal["max", "median", "one"] = Field("max", description="how they become one score")
    induce_threshold: float = Field(0.0, description="least mean refusal metric that addition must induce")
    kl_threshold: float = Field(0.1, gt=0, description="most KL, in nats, that removal may do to harmless prompts")
    prune_layers: float = Field(0.8, gt=0, le=1, description="only layers below int(this × n_layers) are selected")
    sites: Annotated[tuple[Site, ...], BeforeValidator(_split), Field(min_length=1)] = Field(
        ("resid_pre", "attn_out", "mlp_out"), description="where removal and mirror edits act in a layer"
    )


class InferSettings(BaseModel):
    """What decides the plans and their completions."""

    interventions: Names = Field(
        ("ablation", "nullspace", "actadd", "reflection", "alterrep", "clamp"),
        description="every method goes with every intervention",
        json_schema_extra=GRID,
    )
    scope: Names = Field(("single", "top:50", "all"), description="single, top:PERCENT, all", json_schema_extra=GRID)
    actadd_multipliers: Numbers = Field((-1.0, 1.0), description="strengths of actadd plans", json_schema_extra=GRID)
    reflection_alphas: Numbers = Field((2.0,), description="strengths of reflection plans", json_schema_extra=GRID)
    strengths: dict[str, Numbers] = Field({}, description="by other interventions (file only)", json_schema_extra=GRID)
    direction: Literal["best", "own"] = Field("best", description="whose subspace acts at the layers in scope")
    compose: Literal["once", "repeat"] = Field("once", description="how reflections of several layers compose")
    spread: bool = Field(True, description="divide additions by the number of layers in scope")
    actadd_norm: Literal["own", "selected"] = Field("own", description="norm that additions are measured by")
    eval_datasets: Names = Field(
        ("harmful", "harmless"),
        description="test sets to complete: harmful, harmless, or a name",
        json_schema_extra=GRID,
    )
    max_new_tokens: int = Field(64, ge=1, description="longest completion")
    engine: Literal["hf"] = Field("hf", description="who generates")


class EvaluateSettings(BaseModel):
    """What decides the metrics."""

    evals: Names = Field(("refusal", "perplexity"), description="evaluators", json_schema_extra=GRID)
    n_documents: int = Field(64, ge=2, description="documents of each text set for perplexity")


class MachineSettings(BaseModel):
    """Where and how the work is done; results do not depend on it."""

    device: str = Field("auto", description="cpu, cuda, cuda:1, …; auto: the first GPU if there is one")
    batch_size: int = Field(128, ge=1, description="prompts in one forward pass")
    runs_dir: Path = Field(Path("runs"), description="folder of run directories")
    alias: str | None = Field(None, description="name of the run directory; by default the model's")


SETTINGS_OF: dict[str, type[BaseModel]] = {
    "extract": ExtractSettings,
    "select": SelectSettings,
    "infer": InferSettings,
    "evaluate": EvaluateSettings,
}


class RunConfig(ExtractSettings, SelectSettings, InferSettings, EvaluateSettings, MachineSettings):
    """Every setting of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="after")
    def _one_is_a_multiplier(self) -> RunConfig:
        if self.induce_aggregate == "one" and 1 not in self.induce_multipliers:
            raise ValueError("induce-aggregate one needs 1 among the induce-multipliers")
        return self

    @property
    def run_name(self) -> str:
        """The run directory's name: the alias, or the last part of the model's id in lower case."""
        return self.alias or Path(self.model).name.lower()

    def binding(self, *stages: str) -> dict[str, Any]:
        """The settings of these stages whose change would make their artifacts wrong, as JSON values."""
        names = [
            name
            for stage in stages
            for name, field in SETTINGS_OF[stage].model_fields.items()
            if field.json_schema_extra != GRID
        ]
        return self.model_dump(mode="json", include=set(names))

    @property
    def digest(self) -> str:
        """A hash of every setting that results depend on."""
        settings = self.model_dump(mode="json", exclude=set(MachineSettings.model_fields))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def extra_datasets(self) -> tuple[str, ...]:
        """Test sets beside the run's own harmful and harmless prompts."""
        return tuple(name for name in self.eval_datasets if name not in ("harmful", "harmless"))

    def prompts(self, wanted: int) -> int:
        """How many prompts of a set, under the limit."""
        return wanted if self.limit is None else min(wanted, self.limit)


def load_config(path: Path | None, flags: dict[str, Any]) -> RunConfig:
    """The configuration of a YAML file (if given) with flags on top; one sentence for the first mistake."""
    settings: dict[str, Any] = {}
    if path is not None:
        settings = _read_yaml(path)
    settings |= flags
    for name in settings:
        if name not in RunConfig.model_fields:
            where = f" in {path}" if path is not None and name not in flags else ""
            raise unknown_name(f"setting{where}", str(name), RunConfig.model_fields)
    try:
        return RunConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # a rule between settings
            raise RefusalCmpError(f"The settings do not go together: {message}.") from None
        name = ".".join(map(str, first["loc"]))
        where = f" in {path}" if path is not None and str(first["loc"][0]) not in flags else ""
        message = message[0].lower() + message[1:]
        raise RefusalCmpError(
            f"The setting {name.replace('_', '-')}{where} is {first['input']!r}, and this does not hold: {message}."
        ) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
    except OSError as error:
        raise RefusalCmpError(
            f"Cannot read the configuration {path}: {error.strerror}; give an existing file."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RefusalCmpError(f"The configuration {path}{where} is not YAML; mend it.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise RefusalCmpError(f"The configuration {path} must be a list of `setting: value` lines, and is not.")
    return settings
