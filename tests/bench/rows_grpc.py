"""Issuing over gRPC and TLS, by CPU seconds of the serving process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from mesh._proto import istio_ca_pb2, istio_ca_pb2_grpc
from tests.bench.measure import ROUNDS, Row, at_least, cpu_seconds, openssl_p256
from tests.bench.real_ca import real_ca
from tests.fakes.ca_factory import make_csr

CLIENT_THREADS = 8
# A stand-in written in Go did 0.28 of the same limit with one CSR a call; 0.7 of that is the goal.
GOAL = 0.196


def rows() -> Iterator[Row]:
    """Row 3 of the goals."""
    with tempfile.TemporaryDirectory(prefix="gh-") as directory, real_ca(Path(directory)) as ca:
        credentials = grpc.ssl_channel_credentials(ca.roots.read_bytes())
        headers = [(("authorization", f"Bearer {ca.token(uid=f'uid-{i}')}"),) for i in range(CLIENT_THREADS)]
        channels = [
            grpc.secure_channel(f"localhost:{ca.port}", credentials, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(2)
        ]
        stubs = [istio_ca_pb2_grpc.IstioCertificateServiceStub(channel) for channel in channels]
        request = istio_ca_pb2.IstioCertificateRequest(csr=make_csr())

        def work(client: int, until: float) -> int:
            stub, metadata, done = stubs[client % len(stubs)], headers[client], 0
            while time.perf_counter() < until:
                if len(stub.CreateCertificate(request, metadata=metadata).cert_chain) < 3:
                    raise RuntimeError("short chain")
                done += 1
            return done

        issued, limits = [], []
        with ThreadPoolExecutor(CLIENT_THREADS) as pool:
            for _ in range(ROUNDS + 1):
                sign, verify = openssl_p256()
                until, cpu = time.perf_counter() + 1.0, cpu_seconds(ca.pid)
                total = sum(pool.map(work, range(CLIENT_THREADS), [until] * CLIENT_THREADS))
                issued.append(total / (cpu_seconds(ca.pid) - cpu))
                limits.append(1 / (1 / sign + 1 / verify))
        for channel in channels:
            channel.close()
        yield at_least(
            "issue, one CSR and token a call, gRPC+TLS", issued[1:], limits[1:], "certs/s/core", GOAL
        )
