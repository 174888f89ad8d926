"""Errors with a category, a stable code, a public sentence and a private detail.

Tree::

    MeshError                 every refusal that Gatehouse makes on purpose
    ├── ca.core.csr.CsrError, ca.core.authority.IssueError, ca.authn.AuthnError, ...
    ├── mesh.policy.parse.PolicyError
    └── mesh.settings.SettingsError

A subclass adds nothing but a name to catch; what differs is the *code*. The transport status is
chosen from the category in one place per transport (`ca.grpc_refusals`, `ca.http_server`).

`public` may go to a remote caller: for security refusals it is opaque. `private` goes to the log
and never holds a key or a token.
"""

from __future__ import annotations

import enum


class Category(enum.Enum):
    """Who is wrong, and whether trying again can help (names follow google.rpc.Code)."""

    INVALID_ARGUMENT = "invalid_argument"  # the request itself is wrong; do not retry
    UNAUTHENTICATED = "unauthenticated"  # who are you; retry with other credentials
    PERMISSION_DENIED = "permission_denied"  # we know who you are; no
    NOT_FOUND = "not_found"
    RESOURCE_EXHAUSTED = "resource_exhausted"  # a limit; retry later
    FAILED_PRECONDITION = "failed_precondition"  # the state of the system forbids it; a human acts
    UNAVAILABLE = "unavailable"  # not now; retry with back-off
    INTERNAL = "internal"  # a fault of ours


class Code(enum.StrEnum):
    """Base of every enum of reason codes.

    One code names one refusal everywhere: in the log, the metric, the event and the CLI. Packages
    subclass it next to the errors that carry the codes; values are lower_snake_case.
    """


class MeshError(Exception):
    """A refusal made on purpose.

    Args:
        code: what was refused, as a member of a `Code` enum.
        public: one sentence for the caller: which field, what was found, what to do next.
            Opaque when the refusal concerns credentials.
        private: detail for the log; never a secret. Defaults to `public`.
        category: who is wrong.
    """

    def __init__(
        self,
        code: Code,
        public: str,
        *,
        category: Category = Category.INVALID_ARGUMENT,
        private: str | None = None,
    ) -> None:
        super().__init__(public)
        self.code = code
        self.public = public
        self.private = private if private is not None else public
        self.category = category

    def __str__(self) -> str:
        return f"{self.public} [{self.code}]"
