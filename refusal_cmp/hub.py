"""The Hugging Face hub: the commit that a name stands for there, and a sentence for whatever it says no to.

What is read of a repository is read at one commit, so that a branch that moves meanwhile mixes nothing. Where the hub
cannot be reached its cache is worked with, and nobody waits for the hub again at every file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url, set_client_factory
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._http import default_client_factory

from refusal_cmp.config.network import asked_by, lifted_by
from refusal_cmp.errors import RefusalCmpError

ASKED_FOR = {"model": "config.json", "dataset": "README.md"}
"""The file by which the commit is asked for; it need not be there."""
OFFLINE = constants.HF_HUB_OFFLINE
"""Whether the user wants the hub not to be asked."""
SOON: Any = 10
"""Seconds to wait for an answer of a hub that can be done without."""
PATIENTLY: Any = httpx2.Timeout(60, connect=10)
"""Seconds to wait for one that cannot, which may be slow, but has to be there."""
AT_MOST = 20.0
"""Seconds without an answer, where the libraries set no limit and would wait for ever."""
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers of a hub that may have a better one later."""
_ERRORS = (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    FileMetadataError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
)


@dataclass(frozen=True)
class Repo:
    """A model or a data set of the hub, and how messages speak of it."""

    name: str
    """`owner/name`."""
    revision: str | None
    """A branch, tag or commit; by default the main branch."""
    what: str
    """`model 'owner/name'`."""
    instead: str
    """What can be done without the hub: `give a local folder`."""
    kind: Literal["model", "dataset"] = "model"
    settings: Mapping[str, str] = field(default_factory=dict)
    """Those that name it."""

    @property
    def page(self) -> str:
        """Where people look at it."""
        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    @property
    def cache(self) -> Path:
        """Where huggingface_hub keeps it."""
        return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.name, repo_type=self.kind))

    @property
    def ref(self) -> Path:
        """Where the cache says which commit the revision stands for."""
        return self.cache / "refs" / (self.revision or constants.DEFAULT_REVISION)


class HubAwayError(RefusalCmpError):
    """The hub cannot be reached, is busy, or may not be asked: it may have what is wanted."""


def commit_of(repo: Repo) -> str:
    """The commit that the revision stands for now, or did when it was last asked for, if the hub cannot be reached.

    Once it could not be reached it is not asked for the files either: what there is is in the cache.

    Raises
    ------
    RefusalCmpError
        If there is no such repository or revision, or it may not be read.
    HubAwayError
        If the hub cannot be reached and nothing of the repository is in the cache.
    """
    known = _cached(repo)
    constants.HF_HUB_OFFLINE = OFFLINE  # it may have come back
    try:
        found = _ask(repo, patiently=known is None)
    except _ERRORS as error:
        verdict = _verdict(error, repo)
        if verdict is None:
            raise
        constants.HF_HUB_OFFLINE = OFFLINE or verdict.is_away or known is not None
        if known is None or (known != repo.revision and not verdict.is_away):
            raise verdict.sentence(repo) from None
        if known != repo.revision and not OFFLINE:
            warnings.warn(f"Of {repo.what} the cache is read, commit {known}: {verdict.why}.", stacklevel=2)
        return known
    if found != repo.revision:
        with suppress(OSError):  # a cache that cannot be written
            repo.ref.parent.mkdir(parents=True, exist_ok=True)
            repo.ref.write_text(found)
    return found


class Verdict(NamedTuple):
    """What is wrong, and what to do."""

    why: str
    do: str
    is_away: bool = False
    settings: Mapping[str, str] = {}
    """Those that mend it, beside the repository's own."""

    def sentence(self, repo: Repo) -> RefusalCmpError:
        """It as an error."""
        kind = HubAwayError if self.is_away else RefusalCmpError
        return kind(f"Cannot load {repo.what}: {self.why}; {self.do}.", **repo.settings, **self.settings)


def explained(error: BaseException, repo: Repo) -> RefusalCmpError | None:
    """The sentence for an error whose cause is what the hub says, or the way to it; None if it is another."""
    verdict = _verdict(error, repo)
    return verdict and verdict.sentence(repo)


def _verdict(error: BaseException, repo: Repo) -> Verdict | None:
    said = next((one for one in _chain(error) if isinstance(one, _ERRORS)), None)
    status = said.response.status_code if isinstance(said, HfHubHTTPError) else 0
    hub = f"the hub at {constants.ENDPOINT}"
    match said:
        case None | RemoteEntryNotFoundError():
            return None
        case GatedRepoError() if get_token() is None:
            return Verdict("it is gated", f"accept its terms at {repo.page}, and log in with `hf auth login`")
        case GatedRepoError():
            return Verdict(
                "it is gated, and your token does not open it",
                f"accept its terms or ask for access at {repo.page}, or log in with `hf auth login` as who has it",
            )
        case RevisionNotFoundError():
            return Verdict(
                f"{hub} has no revision {repo.revision!r} of it",
                f"give a branch, tag or commit of those at {repo.page}",
            )
        case HFValidationError():
            return Verdict("it is neither a folder that is there nor an id of the hub, OWNER/NAME", repo.instead)
        case RepositoryNotFoundError():
            others = "your token" if get_token() else "everybody"
            return Verdict(
                f"{hub} has none of that name, or only for others than {others}",
                f"check the name, log in with `hf auth login`, or {repo.instead}",
            )
        case HfHubHTTPError() if status == 401:
            return Verdict(f"{hub} does not know your token", "log in again with `hf auth login`, or unset HF_TOKEN")
        case HfHubHTTPError():
            return Verdict(
                f"{hub} answers {status} {said.response.reason_phrase}",
                f"try again later, or {repo.instead}",
                is_away=status in BUSY,
            )
        case OfflineModeIsEnabled() if OFFLINE:
            return Verdict(
                f"it is not in the cache at {constants.HF_HUB_CACHE}, and {asked_by()} keeps from asking the hub",
                f"do without that, or {repo.instead}",
                is_away=True,
                settings=lifted_by(),
            )
        case FileMetadataError():
            return Verdict(
                f"what answers at {constants.ENDPOINT} is not the hub",
                f"see whether HF_ENDPOINT is right and no proxy or login page stands between, or {repo.instead}",
                is_away=True,
            )
        case _:
            return Verdict(
                f"{hub} cannot be reached ({_words(said)})",
                f"check the connection, or {repo.instead}",
                is_away=True,
            )


def _client() -> httpx2.Client:
    client = default_client_factory()
    client.event_hooks["request"].append(_limit)
    return client


def _limit(request: httpx2.Request) -> None:
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {part: AT_MOST if seconds is None else seconds for part, seconds in given.items()}


set_client_factory(_client)


def _ask(repo: Repo, *, patiently: bool) -> str:
    """The commit, by the headers of a file; of a hub that is busy once more, as long as it asks to wait."""
    url = hf_hub_url(repo.name, ASKED_FOR[repo.kind], revision=repo.revision, repo_type=repo.kind)
    try:
        return _head(url, timeout=PATIENTLY if patiently else SOON)
    except HfHubHTTPError as error:
        if not patiently or error.response.status_code not in BUSY:
            raise
        return _head(url, timeout=PATIENTLY, retry_on_errors=True)


def _head(url: str, **how: Any) -> str:
    try:
        commit = get_hf_file_metadata(url, **how).commit_hash
    except RemoteEntryNotFoundError as error:
        commit = error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
    if commit is None:
        raise FileMetadataError("The answer names no commit.")
    return commit


def _cached(repo: Repo) -> str | None:
    """The commit that the revision stood for when it was last asked for, if something of it is in the cache."""
    try:
        commit = repo.ref.read_text().strip() if repo.ref.is_file() else repo.revision
        return commit if commit and (repo.cache / "snapshots" / commit).is_dir() else None
    except (OSError, ValueError):
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _words(error: BaseException) -> str:
    """What an error says, without the token, which a header that cannot be sent is quoted with."""
    if isinstance(error, OfflineModeIsEnabled):
        return "it did not answer before"
    words = (str(error).splitlines() or [""])[0].replace(get_token() or "\0", "...")
    return f"{type(error).__name__}: {words}".rstrip(".: ")
