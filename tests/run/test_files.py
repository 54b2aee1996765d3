"""What is written is what is read, and what cannot be written is a sentence."""

from __future__ import annotations

import errno
import os

import pytest

from refusal_cmp.errors import RefusalCmpError
from refusal_cmp.run.directory import RunDir


def test_every_character_of_a_line_survives(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0bfive\rsix\r\nseven"
    run = RunDir(tmp_path)
    run.write_lines("a.jsonl", [{"text": text}, {"text": "b"}])
    assert run.read_lines("a.jsonl") == [{"text": text}, {"text": "b"}]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.write_json("a.json", 1)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RefusalCmpError, match="Cannot write .*a.json: No space left on device; free space"):
        run.write_json("a.json", 2)
    assert run.read_json("a.json") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "manifest.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RefusalCmpError, match="Cannot write"), RunDir(tmp_path / "run").locked():
        pass
