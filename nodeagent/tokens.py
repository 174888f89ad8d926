"""Where a workload's token comes from: a file that something else keeps fresh, or memory.

In file mode the token is a file, read again at each attempt. On Kubernetes the kubelet hands tokens over
with each publish call; they stay in memory. Neither form ever shows a token in its `repr`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mesh.errors import Category, Code, MeshError

MAX_TOKEN_BYTES: Final = 16 * 1024


class TokenCode(Code):
    """Why there is no token to send."""

    MISSING = "token_missing"


class TokenError(MeshError):
    """There is no token yet; the next republish of the volume brings one."""


class MemoryToken:
    """A token in memory, replaced by each republish.

    Args:
        name: whose token, for messages.
        token: empty when none has come yet.
    """

    __slots__ = ("_token", "_version", "name")

    def __init__(self, name: str, token: str = "") -> None:
        self.name = name
        self._token = token
        self._version = 0

    def __repr__(self) -> str:
        return f"MemoryToken({self.name!r}, version={self._version})"

    @property
    def known(self) -> bool:
        """True when there is a token."""
        return bool(self._token)

    @property
    def version(self) -> int:
        """Grows with each new token."""
        return self._version

    def replace(self, token: str) -> bool:
        """Take a token; True when it is another one than before."""
        if token == self._token:
            return False
        self._token = token
        self._version += 1
        return True

    def read(self) -> str:
        """The token as it is now.

        Raises:
            TokenError: none has come yet.
        """
        if not self._token:
            raise TokenError(
                TokenCode.MISSING,
                f"{self.name}: no token yet: the agent was restarted and keeps tokens in memory only; the"
                " kubelet brings one within two minutes",
                category=Category.UNAVAILABLE,
            )
        return self._token


TokenSource = Path | MemoryToken


def token_stamp(source: TokenSource) -> object:
    """Tells a replaced token from the same one; None when there is none."""
    if isinstance(source, MemoryToken):
        return source.version if source.known else None
    try:
        stat = source.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
