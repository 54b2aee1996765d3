"""Whether anything may be downloaded: the setting `offline`, and the variable that the libraries of the hub know."""

from __future__ import annotations

import os

VARIABLE = "HF_HUB_OFFLINE"
_by_setting = False


def is_offline() -> bool:
    """Whether nothing is to be downloaded, as the libraries of the hub understand it."""
    return os.environ.get(VARIABLE, "").upper() in ("1", "ON", "YES", "TRUE")


def go_offline() -> None:
    """Keep the libraries from the network, as the setting `offline` asks; before they are imported."""
    global _by_setting
    _by_setting = _by_setting or not is_offline()
    os.environ[VARIABLE] = "1"


def asked_by() -> str:
    """What keeps from the network: the variable, where it did without the setting too, or the setting."""
    return "the setting offline" if _by_setting else f"${VARIABLE}"


def lifted_by() -> dict[str, str]:
    """The settings that lead back to the network, as errors name them."""
    return {"no_offline": ""} if _by_setting else {}
