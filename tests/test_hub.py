"""The hub: huggingface_hub, transformers and datasets as they are, against a server that speaks its protocol."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE

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
    with Machine(served, tmp_path_factory.mktemp("machine")) as machine:
        yield machine


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


def load(machine: Machine, name: str, revision: str | None = None, **environment: str):
    """The model alone, which says its commit."""
    code = f"from refusal_cmp.model import ChatModel; print(ChatModel.load({name!r}, revision={revision!r}).revision)"
    return machine.run("-c", code, **environment)


FEW = "2 harmful test prompts cannot decide"


def sentence(done) -> str:
    """What a command said that failed as it should: one sentence, and no other but that two prompts are few."""
    assert done.status == 2, done.err
    (said,) = (text for text in done.err.strip().splitlines() if not text.startswith(FEW))
    assert said.startswith("Error: ")
    assert said.endswith(".")
    assert not {"\n", TOKEN, STRANGER} & {one for one in ("\n", TOKEN, STRANGER) if one in said}
    return said


@pytest.mark.parametrize("revision", [None, "main", "dev", "v1", "refs/pr/1", "a commit"])
def test_a_model_is_of_the_commit_that_its_revision_stands_for(hub, machine, name, revision):
    first = hub.push(f"models/{name}", MODEL)
    second = hub.push(f"models/{name}", OTHER)
    hub.repos[f"models/{name}"].refs |= dict.fromkeys(("dev", "v1", "refs/pr/1"), first)
    done = load(machine, name, first if revision == "a commit" else revision)
    assert done.out.strip() == (second if revision in (None, "main") else first), done.err
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
    assert left
    assert TOKEN.encode() not in b"".join([done.err.encode(), done.out.encode(), *left])


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
    ],
)
def test_what_goes_wrong_is_one_sentence_and_once_it_is_right_the_same_command_works(hub, machine, name, trouble, says):
    hub.push(f"models/{name}", MODEL)
    hub.troubles.append(trouble)
    done = extract(machine, name)
    assert says.format(url=hub.url) in sentence(done)
    hub.troubles.clear()
    done = load(machine, name)
    assert done.status == 0, done.err
    assert all(hub.count(f"GET .*{name}.*/{file}") <= 1 for file in MODEL)


def test_a_damaged_download_can_be_done_again(hub, machine, name):
    """huggingface_hub compares the size alone."""
    hub.push(f"models/{name}", MODEL)
    hub.troubles.append(Trouble("storage", body=b"\0" * WEIGHTS))
    said = sentence(load(machine, name))
    assert "its weights cannot be read (SafetensorError" in said
    cache = re.search(r"; delete (\S+) to download it again", said)[1]
    hub.troubles.clear()
    shutil.rmtree(cache)
    assert load(machine, name).status == 0


@pytest.mark.parametrize("cut", [0.0, 0.6])
def test_a_download_that_is_cut_off_goes_on_where_it_was(hub, machine, name, cut):
    """To the part of 10 MB that huggingface_hub writes at a time."""
    tensors = {**safetensors.torch.load(MODEL["model.safetensors"]), "more": torch.zeros(2**22)}
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    hub.push(f"models/{name}", MODEL | {"model.safetensors": weights})
    hub.troubles.append(Trouble("storage", cut=cut, times=1))
    done = load(machine, name)
    assert (done.status, done.err) == (0, "")
    sent = int(len(weights) * cut)
    kept = sent - sent % DOWNLOAD_CHUNK_SIZE
    assert [sum(one.sent) for one in hub.like("storage")] == [sent, len(weights) - kept]
    assert hub.like("storage")[1].range == (f"bytes={kept}-" if kept else None)


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble("HEAD .*resolve/main", delay=12, times=1),
        Trouble("storage", delay=5, pause=0.1),
        Trouble("resolve", status=503, headers={"Retry-After": "0"}, times=2),
        Trouble("resolve", status=429, headers={"RateLimit": '"resolvers";r=0;t=1'}, times=1),
    ],
    ids=["late", "trickling", "busy", "rate limited"],
)
def test_a_hub_that_is_slow_is_waited_for(hub, machine, name, trouble):
    hub.push(f"models/{name}", MODEL)
    hub.troubles.append(trouble)
    done = load(machine, name)
    assert done.status == 0, done.err
    assert done.err == ""


def test_a_hub_that_is_away_is_waited_for_once_and_its_cache_used(hub, machine, name):
    commit = hub.push(f"models/{name}", MODEL)
    assert load(machine, name).status == 0
    hub.troubles.append(Trouble(silent=True))
    hub.asked.clear()
    done = load(machine, name)
    assert done.out.strip() == commit, done.err
    assert f"the cache is read, commit {commit}: the hub at {hub.url} cannot be reached (ReadTimeout" in done.err
    assert hub.count(name) == 1
    assert load(machine, name, commit).err == ""


def test_no_question_is_without_a_limit_of_time(hub, machine, name):
    hub.troubles.append(Trouble("api", silent=True))
    code = (
        f"from refusal_cmp import hub; hub.AT_MOST = 1; from huggingface_hub import HfApi; HfApi().model_info({name!r})"
    )
    done = machine.run("-c", f"try:\n    {code}\nexcept Exception as error: print(type(error).__name__)")
    assert done.out == "ReadTimeout\n"


def test_without_a_hub_there_is_the_cache_or_a_sentence_and_no_waiting(tmp_path):
    with running_hub() as hub:
        commit = hub.push("models/me/one", MODEL)
        machine, offline = Machine(hub, tmp_path), Machine(hub, tmp_path, HF_HUB_OFFLINE="1")
        done = extract(machine, "me/one")
        assert done.status == 0, done.err
    with machine, offline:
        for one in (machine, offline):
            done = one.run("select", "me/one", *SMALL, "--force")
            assert done.status == 0, done.err
            assert "reached" not in done.err
        done = load(machine, "me/one")
        assert done.out.strip() == commit
        assert "Connection refused" in done.err
        done = load(offline, "me/one")
        assert (done.out.strip(), done.err) == (commit, "")
        done = load(machine, "me/two")
        assert f"the hub at {hub.url} cannot be reached (ConnectError" in sentence(done)
        assert done.seconds < 10
        assert "is not in the cache at" in sentence(load(offline, "me/two"))


# The guard

GUARDED = (
    "run --until evaluate --methods diff-in-means --scope single --n-train 10 --n-val 2 --n-test 2 "
    "--max-new-tokens 4 --evals guard --eval-datasets harmful --guard-format llama-guard --harmful tiny-harmful "
    "--harmless tiny-harmless --contrast tiny-contrast"
).split()


def test_a_run_goes_on_with_its_guards_commit_when_the_branch_moves(hub, machine, name):
    guard = files_of("tiny-guard")
    first = hub.push(f"models/{name}", guard)
    given = [*GUARDED, "--guard", name, "--alias", "guarded"]
    done = machine.run(*given, "--interventions", "ablation")
    assert done.status == 0, done.err
    assert manifest(machine, "guarded")["guard"] == {"name": name, "revision": None, "commit": first}
    second = hub.push(f"models/{name}", guard | {"README.md": b"Another commit."})
    hub.asked.clear()
    done = machine.run(*given, "--interventions", "ablation,affine", "--from", "infer")
    assert done.status == 0, done.err
    assert manifest(machine, "guarded")["guard"]["commit"] == first
    assert hub.count(second) == 0
    done = machine.run(*given, "--interventions", "ablation", "--from", "evaluate", "--guard-revision", second)
    assert f"guard-revision was '{first}' and is now '{second}'" in done.err
    done = machine.run(*given, "--interventions", "ablation,affine", "--from", "evaluate", "--force")
    assert done.status == 0, done.err
    assert manifest(machine, "guarded")["guard"]["commit"] == second


def test_a_guard_that_may_not_be_read_is_refused_before_any_work(hub, machine, name):
    hub.push(f"models/{name}", files_of("tiny-guard"))
    hub.repos[f"models/{name}"].access = "gated"
    done = machine.run(*GUARDED, "--guard", name, "--alias", "refused")
    assert f"Cannot load the guard '{name}': it is gated; accept its terms at {hub.url}/{name}" in sentence(done)
    assert not (machine.home / "runs" / "refused").exists()


# Data sets

DATA = {
    "README.md": b"---\nconfigs:\n- config_name: all\n  data_files:\n  - split: test\n    path: rows.jsonl\n---\n",
    "rows.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
}


def rows(machine: Machine, name: str, commit: str, how: str = "subset='all'", **environment: str):
    """The rows of a data set, one a line."""
    code = (
        "from refusal_cmp.data.download import HubDataset\n"
        f"for row in HubDataset({name!r}, {commit!r}).rows('test', {how}): print(row['text'])"
    )
    return machine.run("-c", code, **environment)


@pytest.mark.parametrize("how", ["subset='all'", "subset='all', streaming=True"])
def test_a_data_set_is_read_at_its_commit(hub, machine, name, how):
    commit = hub.push(f"datasets/{name}", DATA)
    hub.push(f"datasets/{name}", DATA | {"rows.jsonl": b'{"text": "three"}\n'})
    done = rows(machine, name, commit, how)
    assert (done.status, done.out, done.err) == (0, "one\ntwo\n", "")
    assert hub.count("resolve") == hub.count(f"resolve.*/{commit}/") > 0


@pytest.mark.parametrize(
    ("access", "token", "says"),
    [
        ("gated", None, "it is gated; accept its terms at {url}/datasets/{name}, and log in with `hf auth login`"),
        ("gated", STRANGER, "it is gated, and your token does not open it"),
        ("private", None, "has none of that name"),
        ("public", "hf_expired", "does not know your token"),
    ],
)
def test_a_data_set_that_may_not_be_read_is_one_sentence(hub, machine, name, access, token, says):
    commit = hub.push(f"datasets/{name}", DATA)
    hub.repos[f"datasets/{name}"].access = access
    done = rows(machine, name, commit, **({"HF_TOKEN": token} if token else {}))
    assert f"Cannot load the data set {name}: " in sentence(done)
    assert says.format(url=hub.url, name=name) in done.err


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Trouble("resolve", status=503, **FOREVER), "answers 503 Service Unavailable"),
        (Trouble(body=b"<html>Please log in.</html>"), "is not the hub"),
        (Trouble("GET .*rows", status=403), "403"),
        (Trouble("GET .*rows", body=b"<html>"), "Cannot load the data set"),
    ],
)
def test_a_data_set_is_there_once_what_goes_wrong_is_right(hub, machine, name, trouble, says):
    commit = hub.push(f"datasets/{name}", DATA)
    hub.troubles.append(trouble)
    assert says in sentence(rows(machine, name, commit))
    hub.troubles.clear()
    done = rows(machine, name, commit)
    assert (done.out, done.err) == ("one\ntwo\n", "")


def test_a_data_set_in_the_cache_needs_no_hub_if_it_is_of_its_commit(tmp_path):
    with running_hub() as hub:
        older = hub.push("datasets/me/data", DATA | {"rows.jsonl": b'{"text": "three"}\n'})
        commit = hub.push("datasets/me/data", DATA)
        machine = Machine(hub, tmp_path)
        assert rows(machine, "me/data", commit).out == "one\ntwo\n"
    with machine:
        done = rows(machine, "me/data", commit)
        assert (done.out, done.err) == ("one\ntwo\n", "")
        assert done.seconds < 10
        for done in (rows(machine, "me/data", older), rows(machine, "me/other", commit)):
            assert "cannot be reached (ConnectError" in sentence(done)
            assert done.out == ""
            assert done.seconds < 10
