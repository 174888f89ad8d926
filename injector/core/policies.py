"""What is to be said of a policy object: one judgement for the webhook, the Event and the condition.

The judgement is the parser's, the very one that the node agents use: what is accepted here is in force
there. What depends on a workload (a port that it does not declare, a mode that lets plaintext in) is
known to the agents only.

An update is judged by what it changes, as Kubernetes does with its own kinds:

===  ==================================================================  ======  =====================
row  condition                                                           result  code
===  ==================================================================  ======  =====================
 1   no error                                                            allow   policy_accepted
 2   an update that leaves `spec` and the dry-run annotation as they are allow   policy_unchanged *
 3   an update with no error that the object did not have before         allow   policy_no_worse *
 4   otherwise                                                           deny    that of the first error
===  ==================================================================  ======  =====================

Rows with * warn that the object is not in force. Without row 2 nobody could label a broken object, or take
a finalizer off; without row 3 several mistakes could not be repaired one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import Code
from mesh.policy.effective import Finding, Severity
from mesh.policy.model import API_VERSIONS
from mesh.policy.parse import DRY_RUN, parse_policy

CONDITION: Final = "Accepted"
"""Type of the condition that upkeep writes."""
ACCEPTED: Final = "Accepted"
REMARKS: Final = "AcceptedWithRemarks"
MAX_MESSAGE: Final = 4096
"""Characters of a condition's message; the API allows 32768 in its own kinds."""
_MAX_LINE: Final = 1000


class PolicyReason(Code):
    """Why a policy may be stored, with or without errors; the code of a denial is the parser's."""

    ACCEPTED = "policy_accepted"
    UNCHANGED = "policy_unchanged"
    NO_WORSE = "policy_no_worse"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the parser says of one object.

    Attributes:
        errors: any of them keeps the object from being in force.
        warnings: things that its author may not expect.
    """

    errors: tuple[Finding, ...]
    warnings: tuple[Finding, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, those first that weigh most."""
        return self.errors + self.warnings


def judge(item: Mapping[str, Any], kind: str) -> Verdict:
    """Judge an object; items of a list need not name their kind."""
    found = parse_policy({"apiVersion": API_VERSIONS[0], "kind": kind, **item}).findings
    return Verdict(
        tuple(f for f in found if f.severity is Severity.ERROR),
        tuple(f for f in found if f.severity is Severity.WARNING),
    )


def sentence(finding: Finding) -> str:
    """Field, what was found and what is allowed, and the code."""
    return f"{finding.field}: {finding.message} [{finding.code}]"


def plural_of(kind: str) -> str:
    """How the API calls the collection of a kind of policy."""
    return f"{kind.lower()[:-1]}ies" if kind.endswith("y") else f"{kind.lower()}s"


# --- the condition --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition `Accepted` of an object, but for the time of its last change.

    Attributes:
        status: True or False.
        reason: one word in CamelCase.
        generation: of the object that it is about.
    """

    status: str
    reason: str
    message: str
    generation: int


def condition(verdict: Verdict, generation: int) -> Condition:
    """What a verdict is as a condition."""
    if verdict.errors:
        lines = [sentence(finding) for finding in verdict.errors]
        first = "not in force; what node agents had accepted before stays there until they restart"
        return Condition("False", reason_word(verdict.errors[0].code), _text([first, *lines]), generation)
    if verdict.warnings:
        lines = [sentence(finding) for finding in verdict.warnings]
        return Condition("True", REMARKS, _text(["in force, with remarks", *lines]), generation)
    return Condition("True", ACCEPTED, "in force on the workloads that it selects", generation)


def reason_word(code: Code) -> str:
    """A code as conditions spell reasons: `policy_bad_port` is PolicyBadPort."""
    return "".join(part.capitalize() for part in code.split("_"))


def _text(lines: Sequence[str]) -> str:
    """Lines in a text of at most `MAX_MESSAGE` characters; what is left out is counted."""
    kept, left = [], MAX_MESSAGE - 40
    for number, line in enumerate(lines):
        short = line[:_MAX_LINE]
        left -= len(short) + 1
        if left < 0:
            kept.append(f"and {len(lines) - number} more")
            break
        kept.append(short)
    return "\n".join(kept)


# --- admission ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDecision:
    """May the object be stored, and what is to be said about it?

    Attributes:
        reason: of `PolicyReason`, or the code of the first error of an object that is denied.
        message: one sentence about the whole: what was found and what to do.
        problems: each error of an object that is denied.
        warnings: for the client.
    """

    allowed: bool
    reason: Code
    message: str
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def decide_policy(new: Mapping[str, Any], old: Mapping[str, Any] | None, kind: str) -> PolicyDecision:
    """Decide about an object that is to be stored.

    Args:
        new: as it would be stored, with name and namespace.
        old: what it replaces; None when it is created.
    """
    verdict = judge(new, kind)
    remarks = tuple(sentence(finding) for finding in verdict.warnings)
    if not verdict.errors:
        return PolicyDecision(
            allowed=True, reason=PolicyReason.ACCEPTED, message="it can be enforced", warnings=remarks
        )
    problems = tuple(sentence(finding) for finding in verdict.errors)
    still = _no_worse(new, old, verdict, kind) if old is not None else None
    if still is not None:
        return PolicyDecision(
            allowed=True,
            reason=still,
            message="it was refused before and still is: it is not in force",
            warnings=(*(f"not in force: {problem}" for problem in problems), *remarks),
        )
    count = len(problems)
    many = f"{count} problems" if count > 1 else "1 problem"
    ref = verdict.errors[0].ref
    return PolicyDecision(
        allowed=False,
        reason=verdict.errors[0].code,
        message=f"{ref} cannot be enforced as it is written, {many}; nothing was stored; next: correct what"
        " follows and apply it again (docs/policy.md, Codes)",
        problems=problems,
        warnings=remarks,
    )


def _no_worse(
    new: Mapping[str, Any], old: Mapping[str, Any], verdict: Verdict, kind: str
) -> PolicyReason | None:
    if _same(new, old):
        return PolicyReason.UNCHANGED
    if set(_errors(verdict)) <= set(_errors(judge(old, kind))):
        return PolicyReason.NO_WORSE
    return None


def _errors(verdict: Verdict) -> Iterator[tuple[Code, str, str]]:
    for finding in verdict.errors:
        yield finding.code, finding.field, finding.message


def _same(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """True when all that is judged is as it was."""
    try:
        return bool(new.get("spec") == old.get("spec")) and _dry_run(new) == _dry_run(old)
    except RecursionError:
        return False  # nested too deeply to compare; the errors are compared then


def _dry_run(item: Mapping[str, Any]) -> object:
    at: Any = item
    for step in ("metadata", "annotations"):
        at = at.get(step)
        if not isinstance(at, dict):
            return None
    return at.get(DRY_RUN)
