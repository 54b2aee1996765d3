"""Any file of a finished run damaged: what reads it says so or makes it again, and never uses it."""

from __future__ import annotations

import shutil
from collections import Counter
from random import Random

import pytest

from refusal_cmp.config import STAGES, load_config
from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.directory import RunDir, stage_of
from refusal_cmp.run.session import Session, open_run
from refusal_cmp.stages import run_stages

from support.attack import EFFORT, damaged, files, outcome, report
from support.pipeline import SMALL

CORRUPTIONS = 10 * EFFORT
SETTINGS = {
    **SMALL,
    "n_train": 24,
    "n_val": 3,
    "n_test": 3,
    "scope": "single",
    "interventions": "ablation,actadd",
    "inlp_max_k": 3,
    "compare_rankings": True,
    "max_new_tokens": 4,
    "eval_datasets": "harmful,harmless,contrast",
    "tasks": "world_statements",
}
FREE = ("config.yaml", "report/summary.csv")
"""Written at the end of every command, and never read by one."""


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A finished run with an artifact of every kind."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run_stages(Session(load_config(None, SETTINGS), RunDir(path), loaded=tiny), STAGES)
    return path


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def again(path, model, *stages):
    said = []
    session = Session(load_config(None, SETTINGS), RunDir(path), loaded=model, say=said.append)
    run_stages(session, stages or STAGES)
    return said


def test_a_damaged_file_is_healed_or_named_and_never_used(whole, tiny, tmp_path):
    """The whole run again: afterwards every file is as it was. One stage again: what it writes is, or it stops."""
    rng, before, counts = Random(EFFORT), files(whole), Counter()
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file())
    for n in range(CORRUPTIONS):
        path = shutil.copytree(whole, tmp_path / str(n) / "run")  # the page is headed by its folder's name
        name = rng.choice(names)
        content = (path / name).read_bytes()
        wrong = damaged(content, rng)
        if wrong == content:
            wrong = content + b" "
        (path / name).write_bytes(wrong)
        stages = rng.choice([STAGES, STAGES, STAGES[rng.randrange(len(STAGES)) :][:1]])
        ended = outcome(lambda path=path, stages=stages: again(path, tiny, *stages))
        assert ended in ("done", "sentence"), f"{name}, {stages}: {ended}"
        if ended == "done":
            after = files(path)
            written = [one for one in before if stages == STAGES or stage_of(one) in stages]
            assert [one for one in written if after[one] != before[one] and one not in FREE] == [], f"{name}, {stages}"
        else:
            assert stages != STAGES or name == "manifest.json", f"{name}: the whole run heals it"
            (path / name).write_bytes(content)
            assert files(path) == before, f"{name}, {stages}: it was stopped, and has changed something"
        counts[f"{ended}, {'whole run' if stages == STAGES else 'one stage'}"] += 1
        shutil.rmtree(path.parent)
    report("corruptions", counts)


@pytest.mark.parametrize("name", ["select/scores.csv", "extract/inlp.safetensors", "infer/plans.json", "results.csv"])
def test_who_reads_a_damaged_file_names_it_and_the_stage_that_makes_it(copied, name):
    (copied / name).write_bytes((copied / name).read_bytes().replace(b"1", b"2", 1))
    said = rf"{name} is not what {stage_of(name)} wrote there: .*; run `refusal-cmp {stage_of(name)} --alias"
    with pytest.raises(RefusalCmpError, match=said):
        run_stages(open_run(copied), ("report",))


def test_what_is_made_again_is_said(copied, tiny):
    name = "infer/baseline/harmful.jsonl"
    (copied / name).write_bytes((copied / name).read_bytes().replace(b"I", b"1", 1))
    assert f"{name} is made again: {name} is damaged or was edited." in again(copied, tiny)
    assert not [line for line in again(copied, tiny) if "again" in line]


@pytest.mark.parametrize("gone", ["infer/baseline/harmful.jsonl", "select/selection.json", "extract/prompts.json"])
def test_a_file_that_is_gone_is_named_with_the_stage_that_makes_it(copied, gone):
    (copied / gone).unlink()
    with pytest.raises(RefusalCmpError, match=rf"{gone} is missing; run `refusal-cmp {stage_of(gone)} --alias"):
        run_stages(open_run(copied), ("report",))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"stages": 1}', b"[" * 100_000, b"9" * 9999]
)
def test_a_manifest_that_is_none_is_one_sentence(copied, tiny, content):
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(RefusalCmpError, match=r"manifest\.json is not what was written there"):
        again(copied, tiny)
    assert (copied / "manifest.json").read_bytes() == content


def test_all_is_done_again_by_force_without_its_manifest(copied):
    (copied / "manifest.json").write_bytes(b"{}")
    with RunDir(copied, STAGES).locked():
        pass
    for stages in (STAGES[1:], ()):
        with pytest.raises(RefusalCmpError, match="do the whole run again"):
            RunDir(copied, stages)


def test_what_a_finished_run_does_not_have_is_named(copied, tiny):
    for flags, said in (
        ({"methods": "random"}, r"extract/random\.safetensors is missing"),
        ({"eval_datasets": "xstest"}, r"infer/prompts/xstest\.json is missing"),
    ):
        session = Session(load_config(None, {**SETTINGS, **flags}), RunDir(copied), loaded=tiny)
        with pytest.raises(RefusalCmpError, match=said):
            run_stages(session, ("report",))
