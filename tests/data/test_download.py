"""Downloads: from a stand-in for GitHub, whole and the right file or not at all, and pinned to what they were."""

from __future__ import annotations

import hashlib
import http.server
import threading
from functools import partial

import pytest

from refusal_cmp.data import download, sources
from refusal_cmp.data.download import HubDataset, Repository
from refusal_cmp.errors import RefusalCmpError

PATH = "data/x.txt"
OURS = Repository("owner/name", "c0ffee")
"""Its files have no checksum of which is known what it should be."""
PINNED = Repository("owner/name", "c0ffee", {PATH: hashlib.sha256(b"one\n").hexdigest()})


STATUSES = {"busy": 503, "forbidden": 403, "too many": 429}


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with what can go wrong: `trouble` is what the next requests meet."""

    asked: list[str]
    trouble: list[str]

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble in STATUSES:
            self.send_error(STATUSES[trouble])
        elif trouble in ("cut off", "stalled"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"on")
            if trouble == "stalled":
                self.server.released.wait(30)
        elif trouble == "silent":
            self.server.released.wait(30)
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The running server's class; `write` puts a file at a commit."""
    monkeypatch.setenv("REFUSAL_CMP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(download, "RETRIES", 0)
    (tmp_path / "served").mkdir()

    class Ours(Server):
        asked, trouble = [], []

        @staticmethod
        def write(text, commit=OURS.commit):
            file = tmp_path / "served" / OURS.name / commit / PATH
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    Ours.write("one\n")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Ours, directory=str(tmp_path / "served")))
    httpd.released = threading.Event()
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(download, "GITHUB", f"http://127.0.0.1:{httpd.server_port}")
    yield Ours
    httpd.released.set()
    httpd.shutdown()
    httpd.server_close()


def kept():
    """The names of all files that are there."""
    return sorted(file.name for file in download.folder().rglob("*") if file.is_file())


@pytest.mark.parametrize("repository", [OURS, PINNED], ids=["first use", "pinned"])
def test_a_file_is_downloaded_once_and_a_damaged_copy_again(server, repository):
    copy = repository.file(PATH)
    assert copy.read_text() == "one\n"
    assert repository.file(PATH) == copy
    assert len(server.asked) == 1
    copy.write_text("damaged")
    assert repository.file(PATH).read_text() == "one\n"
    assert kept() == ["x.txt", "x.txt.source.json"]


def test_another_commit_is_another_file(server):
    OURS.file(PATH)
    server.write("two\n", "d15ea5e")
    assert Repository(OURS.name, "d15ea5e").file(PATH).read_text() == "two\n"


def test_somebodys_own_copy_is_taken_as_it_is(server):
    copy = download.folder() / OURS.name / PATH
    copy.parent.mkdir(parents=True)
    copy.write_text("mine\n")
    assert PINNED.file(PATH).read_text() == "mine\n"
    assert server.asked == []
    assert kept() == ["x.txt"]


def test_a_file_that_is_not_the_pinned_one_is_one_sentence_and_is_not_kept(server):
    server.write("another\n")
    with pytest.raises(RefusalCmpError, match=r"is not the file that it was, of SHA-256 .*; find out .* at .*x\.txt\."):
        PINNED.file(PATH)
    assert kept() == []


def test_a_file_stays_what_it_was_at_its_first_download(server):
    copy = OURS.file(PATH)
    copy.unlink()
    server.write("another\n")
    with pytest.raises(RefusalCmpError, match="is not the file that it was"):
        OURS.file(PATH)
    assert kept() == ["x.txt.source.json"]


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("busy", "503"),
        ("forbidden", "403"),
        ("too many", "429"),
        ("cut off", "bytes read"),
        ("silent", "timed out"),
        ("stalled", "timed out"),
    ],
)
def test_a_failed_download_is_one_sentence_and_leaves_no_file(server, monkeypatch, trouble, says):
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    server.trouble.append(trouble)
    with pytest.raises(RefusalCmpError, match=rf"Cannot download .*{says}.*or put a copy at") as caught:
        OURS.file(PATH)
    assert "\n" not in str(caught.value)
    assert kept() == []


def test_a_file_that_is_not_there_is_one_sentence(server):
    with pytest.raises(RefusalCmpError, match=r"Cannot download .*404.*or put a copy at"):
        OURS.file("none.txt")
    assert kept() == []


def test_a_download_is_tried_again(server, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 1)
    server.trouble.append("cut off")
    assert PINNED.file(PATH).read_text() == "one\n"
    assert len(server.asked) == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFUSAL_CMP_DATA", str(tmp_path / "file"))
    with pytest.raises(RefusalCmpError, match=r"Cannot keep .*x\.txt: Not a directory; .*\$REFUSAL_CMP_DATA"):
        OURS.file(PATH)


def test_sets_of_the_hub_are_read_at_their_commit(monkeypatch):
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda **where: asked.append(where) or [])
    list(sources.JBB.rows("harmful", subset="behaviors"))
    assert asked[0]["revision"] == sources.JBB.commit


def test_commits_and_checksums_are_whole():
    pinned = [one for one in vars(sources).values() if isinstance(one, Repository | HubDataset)]
    checksums = [known for one in pinned if isinstance(one, Repository) for known in one.checksums.values()]
    assert {len(bytes.fromhex(one.commit)) for one in pinned} == {20}
    assert {len(bytes.fromhex(known)) for known in checksums} == {32}


def test_a_server_that_is_not_there_is_said_in_words(server, monkeypatch):
    monkeypatch.setattr(download, "GITHUB", "http://127.0.0.1:9")
    with pytest.raises(
        RefusalCmpError, match=r"x\.txt \(Failed to establish a new connection: .* refused\); check the"
    ):
        OURS.file(PATH)
