"""The PyPI `spiffe` client, unmodified, in a process of its own: its messages collide with ours.

Prints one JSON object per line: `{"event": "svid", "id", "serial", "verified"}` at the start and after each
update, `{"event": "failed", "error"}` when no identity can be had (tried again until it can).

    python -m tests.fakes.agent_spiffe_client unix:///path/agent.sock
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import WorkloadApiClient, X509Source
from spiffe.errors import PySpiffeError


def tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def verified(context: Any) -> bool:
    """The chain leads to a root of the bundle that came with it, and the key is the leaf's (W-07)."""
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    chain: list[x509.Certificate] = list(svid.cert_chain)
    for child, parent in itertools.pairwise(chain):
        child.verify_directly_issued_by(parent)
    roots = [r for r in bundle.x509_authorities if r.subject == chain[-1].issuer]
    chain[-1].verify_directly_issued_by(roots[0])
    key = svid.private_key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key() == chain[0].public_key()


def main() -> None:
    path = sys.argv[1]
    while True:
        try:
            with WorkloadApiClient(socket_path=path) as client:
                client.fetch_x509_context()
            break
        except PySpiffeError as error:
            tell(event="failed", error=f"{type(error).__name__}: {error}")
            time.sleep(0.05)
    changed = threading.Event()
    with X509Source(socket_path=path) as source:
        source.subscribe_for_updates(changed.set)
        last = None
        while True:
            context = source.get_x509_context()
            leaf = context.default_svid.leaf
            if leaf.serial_number != last:
                last = leaf.serial_number
                tell(
                    event="svid",
                    id=str(context.default_svid.spiffe_id),
                    serial=f"{leaf.serial_number:x}",
                    verified=verified(context),
                )
            changed.wait()
            changed.clear()


if __name__ == "__main__":
    main()
