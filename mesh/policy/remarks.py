"""What access rules do on the ports of one workload that their author may not expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh.policy.algebra import ALWAYS, on_plaintext, on_port
from mesh.policy.codes import PolicyCode
from mesh.policy.compile import CompiledPolicy, Note, NoteKind
from mesh.policy.effective import Finding, MtlsMode, Severity, TransportPolicy
from mesh.policy.model import Action, AuthorizationPolicy
from mesh.topology import AppProtocol, Workload

_CODES: Final = {
    NoteKind.TCP_DROPPED: PolicyCode.TCP_RULE_DROPPED,
    NoteKind.TCP_WIDENED: PolicyCode.TCP_RULE_WIDENED,
    NoteKind.ALLOWS_PLAINTEXT: PolicyCode.PLAINTEXT_ALLOWED,
    NoteKind.MISSES_PLAINTEXT: PolicyCode.PLAINTEXT_NOT_DENIED,
    NoteKind.NEEDS_IDENTITY: PolicyCode.IDENTITY_NEEDS_MTLS,
    NoteKind.REMOTE_IP: PolicyCode.REMOTE_IP_FORGEABLE,
    NoteKind.FOREIGN_PRINCIPAL: PolicyCode.FOREIGN_TRUST_DOMAIN,
}


def access_findings(
    compiled: Sequence[tuple[AuthorizationPolicy, CompiledPolicy]],
    workload: Workload,
    transport: TransportPolicy,
) -> list[Finding]:
    """One finding per policy and code, naming the first field and the ports concerned."""
    if not any(found.notes for _, found in compiled):
        return []
    plaintext_denied = any(_denies_plaintext(policy, found) for policy, found in compiled)
    findings = []
    for policy, found in compiled:
        seen: dict[NoteKind, tuple[Note, set[int], int]] = {}
        for note in found.notes:
            ports = _ports(note, workload, transport, plaintext_denied=plaintext_denied)
            if ports is None:
                continue
            first, known, count = seen.get(note.kind, (note, set(), 0))
            seen[note.kind] = (first, known | ports, count + 1)
        findings += [_finding(policy, note, sorted(ports), count) for note, ports, count in seen.values()]
    return findings


def _denies_plaintext(policy: AuthorizationPolicy, found: CompiledPolicy) -> bool:
    """DENY of everything without identity, such as `notPrincipals: ["*"]`."""
    return (
        policy.action is Action.DENY
        and not policy.dry_run
        and any(rule.permission == ALWAYS and on_plaintext(rule.principal) is True for rule in found.tcp)
        and any(rule.permission == ALWAYS and on_plaintext(rule.principal) is True for rule in found.http)
    )


def _ports(
    note: Note, workload: Workload, transport: TransportPolicy, *, plaintext_denied: bool
) -> set[int] | None:
    """Declared ports that a note concerns; None = it concerns none, and is not reported."""
    reachable = [port for port in workload.ports if on_port(note.permission, port.number) is not False]
    match note.kind:
        case NoteKind.REMOTE_IP | NoteKind.FOREIGN_PRINCIPAL:
            return set()  # wherever the rule is
        case NoteKind.TCP_DROPPED | NoteKind.TCP_WIDENED:
            ports = {
                port.number for port in reachable if port.protocol in {AppProtocol.TCP, AppProtocol.AUTO}
            }
        case NoteKind.ALLOWS_PLAINTEXT | NoteKind.MISSES_PLAINTEXT:
            if plaintext_denied:
                return None
            ports = {
                port.number for port in reachable if transport.for_port(port.number) is not MtlsMode.STRICT
            }
        case _:
            ports = {port.number for port in reachable if transport.for_port(port.number) is MtlsMode.DISABLE}
    return ports or None


def _finding(policy: AuthorizationPolicy, note: Note, ports: list[int], count: int) -> Finding:
    where = f"port{'s' if len(ports) > 1 else ''} {', '.join(map(str, ports))}"
    more = f" (and {count - 1} more of this kind in the policy)" if count > 1 else ""
    text = _text(note, where) + more
    ref = policy.meta.ref
    return Finding(_CODES[note.kind], Severity.WARNING, ref, note.field, text, ref.source)


def _text(note: Note, where: str) -> str:
    match note.kind:
        case NoteKind.TCP_DROPPED:
            return (
                f"{note.detail} can only be checked on requests: on TCP {where} the rule allows nothing;"
                " set to.operation.ports to the HTTP ports, and allow the TCP ports by a rule without it"
            )
        case NoteKind.TCP_WIDENED:
            return (
                f"{note.detail} can only be checked on requests: on TCP {where} the rule matches without it,"
                " and so more; set to.operation.ports to the HTTP ports"
            )
        case NoteKind.ALLOWS_PLAINTEXT:
            return (
                f"callers without a certificate have no identity and are not excluded here: on {where}"
                " plaintext is allowed; set mode STRICT, or add a DENY with notPrincipals: ['*']"
            )
        case NoteKind.MISSES_PLAINTEXT:
            return (
                f"callers without a certificate have no identity and are not denied by this rule: on {where}"
                " plaintext is accepted; set mode STRICT, or add a DENY with notPrincipals: ['*']"
            )
        case NoteKind.NEEDS_IDENTITY:
            return (
                f"mutual TLS is off on {where}: no caller has an identity there, and the rule never matches"
            )
        case NoteKind.REMOTE_IP:
            return (
                f"{note.detail} looks at X-Forwarded-For, which any caller of a sidecar can forge; use"
                " ipBlocks or identities, and keep this for gateways"
            )
        case NoteKind.FOREIGN_PRINCIPAL:
            return (
                f"{note.detail[:200]!r} never matches: its trust domain is neither the own one nor an alias,"
                " and peers of other trust domains are refused"
            )
