"""The hub: huggingface_hub, transformers and datasets as they are, against a server that speaks its protocol."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from refusal_cmp.model.source import model_path

from support.hub import Machine, Trouble, running_hub

SMALL = (
    "--methods diff-in-means --harmful tiny-harmful --harmless tiny-harmless --contrast tiny-contrast "
    "--n-train 10 --n-val 2 --n-test 2"
).split()
FOREVER = {"headers": {"Retry-After": "0"}}
TOKEN, STRANGER = "hf_ofareader", "hf_ofastranger"
NUMBERS = itertools.count()


def files_of(name: str) -> dict[str, bytes]:
    """Those of a model that is embedded."""
    return {file.name: file.read_bytes() for file in Path(model_path(name)).iterdir()}


MODEL = files_of("tiny-refuser")
WEIGHTS = len(MODEL["model.safetensors"])
OTHER = MODEL | {"README.md": b"Another commit."}


@pytest.fixture(scope="module")
def served():
    with running_hub() as hub:
        hub.readers = {TOKEN: set(), STRANGER: set()}
        yield hub


@pytest.fixture(scope="module")
def machine(served, tmp_path_factory):
    machine = Machine(served, tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()


@pytest.fixture
def hub(served):
    served.troubles.clear()
    served.asked.clear()
    return served


@pytest.fixture
def name():
    """A model that no test has asked for."""
    return f"someone/small-chat-{next(NUMBERS)}"


def manifest(machine: Machine, alias: str) -> dict:
    return json.loads((machine.home / "runs" / alias / "manifest.json").read_text())


def extract(machine: Machine, name: str, *given: str, **environment: str):
    return machine.run("extract", name, *SMALL, *given, **environment)


def sentence(done) -> str:
    """What a command said that failed as it should: one sentence, and nothing beside it."""
    assert done.status == 2, done.err
    said = done.err.strip()
    assert said.startswith("Error: ") and said.endswith(".") and "\n" not in said
    assert TOKEN not in said and STRANGER not in said
    return said


@pytest.mark.parametrize("revision", ["main", "dev", "v1", "refs/pr/1", "a commit"])
def test_a_run_is_of_the_commit_that_its_revision_stood_for(hub, machine, name, revision):
    commit = hub.push(f"models/{name}", MODEL)
    repo = hub.repos[f"models/{name}"]
    repo.refs |= dict.fromkeys(("dev", "v1", "refs/pr/1"), commit)
    given = {"main": [], "a commit": ["--revision", commit]}.get(revision, ["--revision", revision])
    if revision != "main":
        hub.push(f"models/{name}", OTHER)
    done = extract(machine, name, *given)
    assert done.status == 0, done.err
    assert manifest(machine, name.split("/")[1])["model"]["revision"] == commit
    assert sum(sum(one.sent) for one in hub.like("storage")) == WEIGHTS


def test_a_run_goes_on_with_its_commit_when_the_branch_moves(hub, machine, name):
    alias = name.split("/")[1]
    first = hub.push(f"models/{name}", MODEL)
    assert extract(machine, name).status == 0
    second = hub.push(f"models/{name}", OTHER)
    hub.asked.clear()
    assert machine.run("select", name, *SMALL).status == 0
    assert manifest(machine, alias)["model"]["revision"] == first
    assert hub.count(second) == 0 == sum(sum(one.sent) for one in hub.like("resolve"))
    assert extract(machine, name, "--force").status == 0
    assert manifest(machine, alias)["model"]["revision"] == second


@pytest.mark.parametrize(
    ("access", "given", "environment", "says"),
    [
        (None, [], {}, "the hub at {url} has none of that name, or only for others than everybody; check the name"),
        (None, [], {"HF_TOKEN": TOKEN}, "has none of that name, or only for others than your token"),
        ("private", [], {}, "has none of that name"),
        ("private", [], {"HF_TOKEN": STRANGER}, "has none of that name, or only for others than your token"),
        ("gated", [], {}, "it is gated; accept its terms at {url}/{name}, and log in with `hf auth login`"),
        ("gated", [], {"HF_TOKEN": STRANGER}, "it is gated, and your token does not open it; accept its terms or ask"),
        ("public", [], {"HF_TOKEN": "hf_expired"}, "does not know your token; log in again"),
        ("public", ["--revision", "v9"], {}, "has no revision 'v9' of it; give a branch, tag or commit of those at"),
        ("public", ["--revision", "f" * 40], {}, f"has no revision '{'f' * 40}' of it"),
    ],
)
def test_what_may_not_be_read_is_one_sentence(hub, machine, name, access, given, environment, says):
    if access is not None:
        hub.push(f"models/{name}", MODEL)
        hub.repos[f"models/{name}"].access = access
    done = extract(machine, name, *given, **environment)
    assert f"Cannot load model '{name}': " in sentence(done)
    assert says.format(url=hub.url, name=name) in done.err
    assert not (machine.home / "runs" / name.split("/")[1]).exists()


@pytest.mark.parametrize("access", ["gated", "private"])
def test_a_token_opens_what_it_may_and_is_nowhere_told(hub, machine, name, access):
    hub.push(f"models/{name}", MODEL)
    hub.repos[f"models/{name}"].access = access
    hub.readers[TOKEN].add(f"models/{name}")
    assert extract(machine, name).status == 2
    done = extract(machine, name, HF_TOKEN=TOKEN)
    assert done.status == 0, done.err
    assert {one.token for one in hub.like("storage")} == {None}
    assert {one.token for one in hub.like("resolve/")} == {None, TOKEN}
    left = [file.read_bytes() for file in (machine.home / "runs" / name.split("/")[1]).rglob("*") if file.is_file()]
    assert left and TOKEN.encode() not in b"".join([done.err.encode(), done.out.encode(), *left])


@pytest.mark.parametrize("model", ["a/b/c", "so:me/one", "some--one/x", "x" * 200])
def test_what_is_no_id_is_one_sentence(hub, machine, model):
    assert "it is neither a folder that is there nor an id of the hub" in sentence(extract(machine, model))
    assert hub.asked == []


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Trouble("resolve", status=503, **FOREVER), "answers 503 Service Unavailable; try again later"),
        (Trouble("resolve", status=429, **FOREVER), "answers 429 Too Many Requests; try again later"),
        (Trouble("resolve", status=403), "answers 403 Forbidden; try again later"),
        (Trouble("storage", status=403), "answers 403 Forbidden"),
        (Trouble("storage", status=500), "answers 500 Internal Server Error"),
        (Trouble(body=b"<html>Please log in to our network.</html>"), "what answers at {url} is not the hub"),
        (Trouble("storage", body=b"<html>Please log in to our network.</html>"), "should be of size"),
        (Trouble("storage", body=b"\0" * WEIGHTS), "its weights cannot be read"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_once_it_is_right_the_same_command_works(hub, machine, name, trouble, says):
    hub.push(f"models/{name}", MODEL)
    hub.troubles.append(trouble)
    done = extract(machine, name)
    assert says.format(url=hub.url) in sentence(done)
    hub.troubles.clear()
    done = extract(machine, name)
    assert done.status == 0, done.err
    assert all(hub.count(f"GET .*{name}.*/{file}") <= 1 for file in MODEL)
