"""The token that all nodes and drivers of a cluster share: an open Ray port obeys anybody."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping

MODE_VARIABLE = "RAY_AUTH_MODE"


def has_token(environ: Mapping[str, str]) -> bool:
    """Whether Ray would find a token here."""
    return bool(environ.get("RAY_AUTH_TOKEN")) or _path(environ).exists()


def use_token(ray: Any) -> None:
    """Have this process show its token, if it has one: by itself Ray does so only for "auto".

    Nothing is changed where the environment says whether to use one.
    """
    if MODE_VARIABLE not in os.environ and has_token(os.environ):
        os.environ[MODE_VARIABLE] = "token"
        ray._raylet.Config.initialize("")  # noqa: SLF001 - it was read when Ray was imported


def ensure_token(environ: Mapping[str, str], *, make: bool) -> None:
    """See to it that there is a token where Ray looks for it, unless it is told to use none.

    Raises:
        ClusterError: where there is none, and none shall be made.

    """
    if environ.get(MODE_VARIABLE) == "disabled" or has_token(environ):
        return
    path = _path(environ)
    if not make:
        raise ClusterError(
            f"there is no token at {path}: copy it from the head's ~/.ray/auth_token, or set "
            "RAY_AUTH_TOKEN"
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _path(environ: Mapping[str, str]) -> Path:
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path(environ.get("HOME", "~")).expanduser() / ".ray/auth_token"
