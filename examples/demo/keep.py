"""`--keep`: everything goes on running, and this says how to poke at it."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass

from examples.demo import layout as at
from examples.demo.harness import LEAF_SECONDS, REPOSITORY, Demo
from examples.demo.issuer import TOKEN_SECONDS, user_claims
from examples.demo.layout import WORKLOADS
from examples.demo.meshfiles import write_tokens

_REFRESH = TOKEN_SECONDS / 4
_TICK = 0.5


@dataclass(frozen=True, slots=True)
class Line:
    """A command that people may copy, and what it should print."""

    command: str
    shows: str


def curl_lines(demo: Demo) -> list[Line]:
    """Commands that work as long as the demo runs."""
    web = "http://{}:{}".format(*demo.layout.proxy("web"))
    reviews = "http://{}:{}".format(*demo.egress("web", at.EGRESS_REVIEWS))
    intruder = "http://{}:{}".format(*demo.egress("intruder", at.EGRESS_REVIEWS))
    direct = "http://{}:{}".format(*demo.layout.proxy("reviews"))
    reader, admin = (f"$(cat {shlex.quote(str(demo.layout.tokens / name))})" for name in ("alice", "root"))
    agent = f"http://{demo.layout.host('agent')}:{at.AGENT_HTTP}"
    envoy = f"http://{demo.layout.host('reviews')}:{at.ADMIN}"
    return [
        Line(f"curl -s {web}/", "the whole chain, with the identities that each proxy saw"),
        Line(f"curl -s {reviews}/reviews/2", "200: web may read reviews"),
        Line(f"curl -s {intruder}/reviews/2", "RBAC: access denied"),
        Line(f"curl -s -X POST {reviews}/reviews/2", "RBAC: access denied"),
        Line(f"curl -s {direct}/health", "no answer: plaintext to a STRICT port"),
        Line(f'curl -s -H "authorization: Bearer {reader}" {reviews}/account', "200: a person's token"),
        Line(
            f'curl -s -H "authorization: Bearer {admin}" -X DELETE {reviews}/reviews/7',
            "200: groups hold admin",
        ),
        Line(
            f'curl -s -H "authorization: Bearer {reader}" -X DELETE {reviews}/reviews/7',
            "RBAC: access denied",
        ),
        Line(f"curl -s --path-as-is {reviews}/%2fadmin", "RBAC: access denied"),
        Line(f"curl -s {agent}/status", "identities, renewals, findings"),
        Line(f"curl -s {envoy}/certs", "reviews' proxy: its certificate and roots"),
        Line(f"curl -s {envoy}/config_dump", "reviews' proxy: everything that it was told"),
    ]


def write_user_tokens(demo: Demo) -> None:
    """Tokens of a reader and of an administrator, for the curl lines."""
    for name, groups in (("alice", ["readers"]), ("root", ["readers", "admin"])):
        (demo.layout.tokens / name).write_text(demo.users.sign(user_claims(name, groups=groups)))


def describe(demo: Demo) -> str:
    """What runs where, and what to try."""
    layout = demo.layout
    lines = [
        "",
        "Everything goes on running; Ctrl-C stops and removes it.",
        "",
        "Try (each line works as it is):",
    ]
    for line in curl_lines(demo):
        lines += [f"  # {line.shows}", f"  {line.command}"]
    lines += [
        "",
        "Edit, and ask again; the proxies obey within a second:",
        f"  {layout.policies / 'live.yaml'}   add a path, e.g. [/closed, /reviews/*]",
        f"  {layout.policies / 'mtls-reviews.yaml'}   STRICT -> PERMISSIVE, then plaintext gets through",
        f"  {layout.policies}   all policies; break one and look at the findings in /status",
        "",
        f"Watch an SVID rotate (it lives {LEAF_SECONDS} s):",
        f"  watch -n1 'curl -s http://{layout.host('agent')}:{at.AGENT_HTTP}/status | grep serial'",
        "",
        "Where things are:",
        f"  logs      {layout.logs}/*.log",
        f"  sockets   {layout.socket('web')} (SPIFFE_ENDPOINT_SOCKET=unix://{layout.socket('web')})",
        f"  authority http://{layout.host('ca')}:{at.CA_HTTP}/metrics, state in {layout.state}",
        f"  agent     http://{layout.host('agent')}:{at.AGENT_HTTP}/status, /metrics, /readyz",
    ]
    lines += [
        f"  {name:<9} proxy {layout.host(name)}:{at.HTTP[name]}, admin http://{layout.host(name)}:{at.ADMIN}/,"
        f" pid {demo.envoys[name].pid}"
        for name in WORKLOADS
    ]
    return "\n".join(lines)


def stay(demo: Demo) -> None:
    """Keep everything running, with fresh tokens, until Ctrl-C; say so when a part ends."""
    parts = [demo.ca, demo.agent, *demo.apps.values(), *demo.envoys.values()]
    refreshed = time.monotonic()
    while True:
        time.sleep(_TICK)
        for process in [part for part in parts if not part.running]:
            parts.remove(process)  # killing parts is part of the fun: the others go on
            command = shlex.join(process.argv) if process is demo.ca or process is demo.agent else ""
            demo.report.text(f"{process.name} has ended (log: {process.log}); the other parts go on")
            if command:
                demo.report.text(f"  start it again: cd {REPOSITORY} && {command}")
        if time.monotonic() - refreshed > _REFRESH:
            write_tokens(demo.layout, demo.cluster)
            write_user_tokens(demo)
            refreshed = time.monotonic()
