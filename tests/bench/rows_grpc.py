"""Issuing over gRPC and TLS, by CPU seconds of the serving process."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ca.core.profile import SelfCheck
from ca.grpc_server import METHOD
from mesh._proto import istio_ca_pb2
from tests.bench.grpc_load import Call, Load
from tests.bench.measure import ROUNDS, Row, at_least, cpu_seconds, on_core, openssl_p256, pinned
from tests.bench.real_ca import RealCa, real_ca
from tests.fakes.ca_factory import make_csr

CONNECTIONS, STREAMS = 4, 8
SECONDS = 1.0
# A stand-in written in Go, which checks what it signs, did 0.28 of the same limit with one CSR a call; 0.7 of
# that is the goal of both rows.
GOAL = 0.196
NAMES = {
    SelfCheck.START_AND_KEY_CHANGE: "issue, gRPC+TLS, one CSR a call, checked at start",
    SelfCheck.ALWAYS: "issue, gRPC+TLS, one CSR a call, checked each time",
}


def rows() -> Iterator[Row]:
    """Row 3 of the goals, with and without a check of the own signature each time.

    Each call has a token and a key of its own. The servers and the limit take turns on one core; the
    load comes from the others.
    """
    core = min(os.sched_getaffinity(0))
    limits: list[float] = []
    issued: dict[SelfCheck, list[float]] = {mode: [] for mode in NAMES}
    with contextlib.ExitStack() as stack:
        servers = {}
        for mode in NAMES:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gh-")))
            ca = stack.enter_context(real_ca(directory, self_check=mode))
            servers[mode] = ca, stack.enter_context(contextlib.closing(_load(ca)))
            stack.enter_context(pinned(ca.pid, core))
        for _ in range(ROUNDS + 1):  # the first warms up
            with on_core(core):
                sign, verify = openssl_p256()
            limits.append(1 / (1 / sign + 1 / verify))
            for mode, (ca, load) in servers.items():
                cpu = cpu_seconds(ca.pid)
                total = load.run(SECONDS)
                issued[mode].append(total / (cpu_seconds(ca.pid) - cpu))
        for mode, (_, load) in servers.items():
            _check(load)
            yield at_least(NAMES[mode], issued[mode][1:], limits[1:], "certs/s/core", GOAL)


def _load(ca: RealCa) -> Load:
    calls = [
        Call(
            "localhost",
            METHOD,
            [("authorization", f"Bearer {ca.token(uid=f'uid-{n}')}")],
            istio_ca_pb2.IstioCertificateRequest(csr=make_csr()).SerializeToString(),
        )
        for n in range(CONNECTIONS * STREAMS)
    ]
    return Load(ca.port, ca.roots.read_text("ascii"), calls, connections=CONNECTIONS, streams=STREAMS)


def _check(load: Load) -> None:
    """Every call was answered with OK; the newest answers are what they should be."""
    for connection in load.connections:
        response = istio_ca_pb2.IstioCertificateResponse.FromString(connection.answer)
        if len(response.cert_chain) < 3:
            raise RuntimeError("short chain")
