"""`meshctl identity`: who a pod is, until when, and when that is renewed."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import MeshError
from mesh.obs.table import render_table
from mesh.x509.certs import CertFields, read_certificate
from mesh.x509.pem import decode_certificates
from meshctl.agents import Served, agent_on, ask_directly, ask_through, read_page
from meshctl.cluster import Cluster, connect
from meshctl.errors import CtlCode, CtlError, bad_argument, not_found
from meshctl.exits import EXIT_OK, EXIT_PROBLEM
from meshctl.sidecars import status_of
from meshctl.terminal import Colour, Screen, span, wrapped

_GOOD: Final = frozenset({"valid", "endangered"})
_COLOURS: Final = {
    "valid": Colour.GREEN,
    "endangered": Colour.YELLOW,
    "expired": Colour.RED,
    "waiting": Colour.RED,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What is told about one workload.

    Attributes:
        now: the agent's time.
        chain: leaf first.
    """

    served: Served
    now: dt.datetime
    chain: Sequence[CertFields]
    roots: Sequence[CertFields]

    @classmethod
    def read(cls, served: Served, time: str) -> Identity:
        """Parse what the agent sent.

        Raises:
            CtlError: certificates or times that are none.
        """
        try:
            chain, roots = (
                [read_certificate(der) for der in decode_certificates(text)] if text else []
                for text in (served.chain, served.roots)
            )
            now = dt.datetime.fromisoformat(time)
        except (MeshError, ValueError) as error:
            why = error.public if isinstance(error, MeshError) else str(error)
            raise CtlError(CtlCode.AGENT_ANSWER, f"{served.workload}: the agent's answer: {why}") from error
        return cls(served, now, chain, roots)

    @property
    def good(self) -> bool:
        """It has a certificate that is valid."""
        return self.served.state in _GOOD and bool(self.chain)

    def to_json(self) -> Mapping[str, Any]:
        """For programs; field names are stable."""
        served = self.served
        return {
            "workload": served.workload,
            "spiffe_id": served.spiffe_id,
            "state": served.state,
            "time": _stamp(self.now),
            "renew_at": served.renew_at,
            "issued": served.issued,
            "failures": served.failures,
            "code": served.code,
            "error": served.error,
            "chain": [_certificate(c) for c in self.chain],
            "roots": [_certificate(c) for c in self.roots],
        }


def run_identity(options: argparse.Namespace, screen: Screen) -> int:
    """Print one identity, or all of a node."""
    if options.agent and (options.node or options.context or options.kubeconfig):
        raise bad_argument(
            "--agent asks without a cluster; next: leave --node, --context and --kubeconfig out"
        )
    if not options.agent and bool(options.pod) == bool(options.node):
        raise bad_argument("give a pod, --node NODE or --agent URL; next: meshctl identity --help")
    if options.agent:
        time, everybody = read_page(ask_directly(options.agent, options.timeout), options.agent)
        wanted = f"{options.namespace or 'default'}/{options.pod}" if options.pod else ""
        where = options.agent
    else:
        cluster = connect(options)
        wanted = f"{cluster.namespace}/{options.pod}" if options.pod else ""
        where = options.node or _node_of(cluster, cluster.namespace, options.pod)
        time, everybody = read_page(
            ask_through(cluster, agent_on(cluster, where)), f"the agent of node {where}"
        )
    chosen = [served for served in everybody if wanted in {"", served.workload}]
    if wanted and not chosen:
        raise not_found(
            f"the agent of {where} does not serve {wanted}; next: meshctl explain inject (has it a sidecar?)"
        )
    found = [Identity.read(served, time) for served in chosen]
    if options.output == "json":
        listed = [dict(item.to_json()) for item in found]
        screen.say_json(listed[0] if wanted else listed)
    elif options.pem:
        screen.out.write("".join(item.served.chain for item in found))
    elif wanted:
        _show(screen, found[0])
    else:
        _show_all(screen, found)
    return EXIT_OK if all(item.good for item in found) else EXIT_PROBLEM


def _node_of(cluster: Cluster, namespace: str, name: str) -> str:
    pod = cluster.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
    if pod is None:
        raise not_found(f"there is no pod {namespace}/{name}; next: kubectl -n {namespace} get pods")
    if status_of(pod) is None:
        raise not_found(
            f"pod {namespace}/{name} has no sidecar of Gatehouse, so no identity;"
            f" next: meshctl explain inject -n {namespace} {name}"
        )
    node = (pod.get("spec") or {}).get("nodeName")
    if not node:
        raise not_found(
            f"pod {namespace}/{name} is on no node yet; next: kubectl -n {namespace} describe pod {name}"
        )
    return str(node)


# --- for people ----------------------------------------------------------------------------------------


def _show(screen: Screen, found: Identity) -> None:
    served, now = found.served, found.now
    screen.say(f"{served.workload}: {screen.paint(served.state, _COLOURS.get(served.state))}")
    screen.say(f"  {served.spiffe_id}")
    if found.chain:
        left = found.chain[0].not_after - now
        screen.say(f"  ends in     {span(left)}")
    if served.renew_at:
        until = dt.datetime.fromisoformat(served.renew_at) - now
        due = "now" if until <= dt.timedelta(0) else f"in {span(until)}"
        screen.say(f"  renewed     {due}")
    screen.say(f"  issued      {served.issued} since the agent started")
    for number, certificate in enumerate((*found.chain, *found.roots)):
        screen.say()
        role = "leaf" if number == 0 and found.chain else "intermediate"
        role = "root" if number >= len(found.chain) else role
        for line in short(certificate, role):
            screen.say(line)
    if served.failures:
        screen.say()
        text = f"the last {served.failures} attempts failed: {served.error} [{served.code}]"
        screen.say(screen.paint(wrapped(text, first="", rest="  "), Colour.RED))
    if not found.good:
        screen.say(
            "next: the agent goes on trying; look at its log and at the authority's, or: meshctl check"
        )


def _show_all(screen: Screen, found: Sequence[Identity]) -> None:
    rows = []
    for item in found:
        served = item.served
        ends = span(item.chain[0].not_after - item.now) if item.chain else "-"
        renew = span(dt.datetime.fromisoformat(served.renew_at) - item.now) if served.renew_at else "-"
        serial = item.chain[0].serial[:12] if item.chain else "-"
        rows.append(
            [served.workload, served.state, serial, ends, renew, str(served.failures), served.code or "-"]
        )
    heads = ["WORKLOAD", "STATE", "SERIAL", "ENDS IN", "RENEWS IN", "FAILURES", "LAST"]
    screen.say(render_table(heads, rows))


def short(certificate: CertFields, role: str) -> Sequence[str]:
    """Five lines, as `step certificate inspect --short` has them."""
    parsed = certificate.certificate
    subject = parsed.subject.rfc4514_string() or ", ".join(certificate.uris)
    return (
        f"X.509v3 {role} certificate ({certificate.key.name}) [serial {certificate.serial}]",
        f"  Subject:     {subject}",
        f"  Issuer:      {parsed.issuer.rfc4514_string()}",
        f"  Valid from:  {_stamp(certificate.not_before)}",
        f"          to:  {_stamp(certificate.not_after)}",
    )


def _certificate(certificate: CertFields) -> Mapping[str, Any]:
    return {
        "serial": certificate.serial,
        "subject": certificate.certificate.subject.rfc4514_string(),
        "issuer": certificate.certificate.issuer.rfc4514_string(),
        "uris": list(certificate.uris),
        "not_before": _stamp(certificate.not_before),
        "not_after": _stamp(certificate.not_after),
        "key": certificate.key.name,
        "ca": bool(certificate.ca),
    }


def _stamp(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
