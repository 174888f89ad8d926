"""What the authority says of its roots and their rotation, for people and `meshctl`.

The replica that leads writes it as the key `status.json` of the ConfigMap `gatehouse-ca`; `meshctl ca` reads
it there. Schema 1, additive: readers skip what they do not know. It holds no secret.

A rotation is asked for by annotations of that ConfigMap; the leader takes them away when it has answered in
`request`.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import Category, Code, MeshError

CONFIG_MAP: Final = "gatehouse-ca"
STATUS_KEY: Final = "status.json"
REQUEST_ANNOTATION: Final = "gatehouse.dev/ca-request"
"""A value of `Step`."""
FORCE_ANNOTATION: Final = "gatehouse.dev/ca-request-force"
"""`true`: do not wait for what the step would wait for."""
WITHIN_ANNOTATION: Final = "gatehouse.dev/ca-request-within"
"""Of `taint`: whole seconds over which renewals are spread."""
REQUEST_ID_ANNOTATION: Final = "gatehouse.dev/ca-request-id"
"""Chosen by who asks; given back in the answer."""
MAX_STATUS_BYTES: Final = 256 << 10
MAX_NAMES: Final = 20


class CaStatusCode(Code):
    """Why a status was refused."""

    FIELD = "ca_status_field"
    SYNTAX = "ca_status_syntax"


class CaStatusError(MeshError):
    """Not a status of the authority."""

    def __init__(self, code: CaStatusCode, public: str) -> None:
        super().__init__(code, public, category=Category.FAILED_PRECONDITION)


class Phase(enum.StrEnum):
    """Where a rotation of roots stands."""

    STABLE = "stable"  # one root signs and is trusted
    PREPARED = "prepared"  # the next root is trusted too; the current one signs
    ACTIVE = "active"  # the next root signs; the former one is trusted until its last leaf has ended
    TAINTED = "tainted"  # as active, and leaves of the former root are renewed ahead of time
    PLUGGED = "plugged"  # the CA comes from files: somebody else rotates it


class Step(enum.StrEnum):
    """What moves a rotation on."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    TAINT = "taint"
    RETIRE = "retire"
    ABORT = "abort"


class RootRole(enum.StrEnum):
    """What a root is there for."""

    SIGNING = "signing"
    NEXT = "next"
    RETIRING = "retiring"
    TRUSTED = "trusted"  # of a plugged-in CA: in the bundle, and not the one that signs


@dataclass(frozen=True, slots=True, kw_only=True)
class RootView:
    """A root of the bundle.

    Attributes:
        sha256: of its DER, lower-case hexadecimal.
    """

    role: RootRole
    sha256: str
    subject: str
    not_before: dt.datetime
    not_after: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCounts:
    """What node agents have reported.

    Attributes:
        expected: agents that should answer for their node.
        acked: agents all of whose proxies have acknowledged the bundle as it is now.
        pending: workloads that have not.
        outdated: workloads with a certificate of a former root.
        missing: who has not acknowledged, e.g. `node-7: no report`; the first `MAX_NAMES`.
        reported: agents with a report that is not too old.
    """

    expected: int = 0
    reported: int = 0
    acked: int = 0
    pending: int = 0
    outdated: int = 0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Something that the next step waits for.

    Attributes:
        code: a reason code of the authority, e.g. `rotation_agents`.
        text: one sentence.
    """

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of the newest request of a person.

    Attributes:
        step: None when what was asked for is none.
        code: empty when it was done, else why not.
    """

    step: Step | None
    id: str
    done: bool
    code: str
    text: str
    at: dt.datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CaStatus:
    """The authority at one moment.

    Attributes:
        generation: of the bundle; rises with each change of the roots.
        epoch: of the signing root; rises with each activation.
        since: when the phase began.
        next_step: what comes next by itself; None when nothing does.
        next_at: not before this; None when it is not a matter of time.
        waiting: what the next step waits for, beside the time.
        bundle_digest: see `mesh.x509.bundles.bundle_digest`.
        issuer_not_after: end of the signing certificate.
        automatic: steps are taken without being asked for.
        writer: the replica that wrote this.
    """

    phase: Phase
    generation: int
    epoch: int
    since: dt.datetime
    bundle_digest: str
    roots: tuple[RootView, ...]
    issuer_serial: str
    issuer_not_after: dt.datetime
    agents: AgentCounts
    automatic: bool
    next_step: Step | None = None
    next_at: dt.datetime | None = None
    waiting: tuple[Waiting, ...] = ()
    answer: Answer | None = None
    writer: str = ""
    updated: dt.datetime

    def to_json(self) -> dict[str, Any]:
        """As JSON types; what `decode` reads, and what `-o json` prints."""
        return {"schema": 1, **_plain(self)}


def encode(status: CaStatus) -> str:
    """The text of `STATUS_KEY`."""
    return json.dumps(status.to_json(), sort_keys=True, indent=1)


def _plain(value: Any) -> Any:
    match value:
        case dt.datetime():
            return value.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        case enum.StrEnum():
            return value.value
        case tuple():
            return [_plain(item) for item in value]
        case CaStatus() | RootView() | AgentCounts() | Waiting() | Answer():
            return {name: _plain(getattr(value, name)) for name in value.__slots__}
        case _:
            return value


def decode(text: str) -> CaStatus:
    """Read the text of `STATUS_KEY`.

    Raises:
        CaStatusError: not such a document.
    """
    if len(text) > MAX_STATUS_BYTES:
        raise CaStatusError(CaStatusCode.SYNTAX, f"{STATUS_KEY} is longer than {MAX_STATUS_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CaStatusError(CaStatusCode.SYNTAX, f"{STATUS_KEY} is not JSON: {str(e)[:100]}") from e
    try:
        return _status(found)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise CaStatusError(
            CaStatusCode.FIELD,
            f"{STATUS_KEY} is not a status of the authority: {type(e).__name__} {str(e)[:100]}",
        ) from e


def _status(found: Mapping[str, Any]) -> CaStatus:
    agents = found["agents"]
    answer = found.get("answer")
    step = found.get("next_step")
    return CaStatus(
        phase=Phase(found["phase"]),
        generation=_number(found["generation"]),
        epoch=_number(found["epoch"]),
        since=_time(found["since"]),
        bundle_digest=str(found["bundle_digest"]),
        roots=tuple(_root(item) for item in found["roots"]),
        issuer_serial=str(found["issuer_serial"]),
        issuer_not_after=_time(found["issuer_not_after"]),
        agents=AgentCounts(
            expected=_number(agents["expected"]),
            reported=_number(agents["reported"]),
            acked=_number(agents["acked"]),
            pending=_number(agents["pending"]),
            outdated=_number(agents["outdated"]),
            missing=tuple(str(name) for name in agents["missing"]),
        ),
        automatic=found["automatic"] is True,
        next_step=Step(step) if step else None,
        next_at=_time(found["next_at"]) if found.get("next_at") else None,
        waiting=tuple(Waiting(code=str(w["code"]), text=str(w["text"])) for w in found.get("waiting", ())),
        answer=_answer(answer) if answer else None,
        writer=str(found.get("writer", "")),
        updated=_time(found["updated"]),
    )


def _root(found: Mapping[str, Any]) -> RootView:
    return RootView(
        role=RootRole(found["role"]),
        sha256=str(found["sha256"]),
        subject=str(found["subject"]),
        not_before=_time(found["not_before"]),
        not_after=_time(found["not_after"]),
    )


def _answer(found: Mapping[str, Any]) -> Answer:
    return Answer(
        step=Step(found["step"]) if found["step"] else None,
        id=str(found["id"]),
        done=found["done"] is True,
        code=str(found["code"]),
        text=str(found["text"]),
        at=_time(found["at"]),
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def _time(value: object) -> dt.datetime:
    found = dt.datetime.fromisoformat(str(value))
    if found.tzinfo is None:
        raise ValueError(f"{str(value)[:40]!r} has no time zone")
    return found
