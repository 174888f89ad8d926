"""DNS of the test cluster: A records of Services and of the pods of headless ones. Standard library only.

`dns.py ADDRESS DOMAIN API_URL CA CERTIFICATE KEY`. A real cluster has CoreDNS; this answers the same names
from the same objects, read twice a second.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.request
from typing import Any

_A, _IN, _TTL = 1, 1, 1
_NO_ERROR, _NO_SUCH_NAME, _NOT_IMPLEMENTED = 0, 3, 4
_PERIOD = 0.5  # seconds

Records = dict[str, list[str]]


def records(services: list[dict[str, Any]], endpoints: list[dict[str, Any]], domain: str) -> Records:
    """Name -> addresses, of all Services: the cluster IP, or those of the ready pods of a headless one."""
    found: Records = {}
    ready = {_key(item): item for item in endpoints}
    for service in services:
        meta = service["metadata"]
        name = f"{meta['name']}.{meta['namespace']}.svc.{domain}"
        address = service["spec"].get("clusterIP")
        if address and address != "None":
            found[name] = [address]
            continue
        pods = [
            pod
            for subset in ready.get(_key(service), {}).get("subsets") or []
            for pod in subset.get("addresses") or []
        ]
        found[name] = [pod["ip"] for pod in pods]
        found |= {f"{pod['hostname']}.{name}": [pod["ip"]] for pod in pods if pod.get("hostname")}
    return found


def answer(query: bytes, known: Records) -> bytes:
    """The response to one query message (RFC 1035, 4.1)."""
    identity, flags, questions = struct.unpack("!HHH", query[:6])
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace").lower())
        at += query[at] + 1
    kind, _ = struct.unpack("!HH", query[at + 1 : at + 5])
    question = query[12 : at + 5]
    addresses = known.get(".".join(labels))
    status = _NOT_IMPLEMENTED if questions != 1 else _NO_SUCH_NAME if addresses is None else _NO_ERROR
    answers = [
        struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL, 4) + socket.inet_aton(address)
        for address in (addresses or [] if kind == _A else [])
    ]
    # A response (QR), authoritative (AA), recursion as asked for (RD) and offered (RA).
    header = struct.pack("!HHHHHH", identity, 0x8480 | (flags & 0x0100) | status, 1, len(answers), 0, 0)
    return header + question + b"".join(answers)


def main() -> None:
    address, domain, server, ca, certificate, key = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    known: Records = {}

    def follow() -> None:
        nonlocal known
        while True:
            try:
                known = records(
                    _items(f"{server}/api/v1/services", context),
                    _items(f"{server}/api/v1/endpoints", context),
                    domain,
                )
            except OSError as error:  # the API server is not there yet, or not now: keep what is known
                print(error, flush=True)
            time.sleep(_PERIOD)

    threading.Thread(target=follow, daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server_socket:
        server_socket.bind((address, 53))
        while True:
            query, peer = server_socket.recvfrom(512)
            try:
                server_socket.sendto(answer(query, known), peer)
            except (struct.error, IndexError, OSError) as error:
                print(f"{peer}: {error}", flush=True)


def _items(url: str, context: ssl.SSLContext) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url, context=context, timeout=5) as response:
        found: list[dict[str, Any]] = json.load(response)["items"]
        return found


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


if __name__ == "__main__":
    main()
