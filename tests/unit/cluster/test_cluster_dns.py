"""The test cluster's DNS: what it knows of Services, and the messages that it sends."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from tests.cluster.dns import answer, records

KNOWN = {
    "details.shop.svc.cluster.local": ["10.97.1.2"],
    "db.shop.svc.cluster.local": ["10.1.0.1", "10.1.0.2"],
}


def service(name: str, address: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": {"clusterIP": address}}


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def read(message: bytes) -> tuple[int, list[str]]:
    """Status and addresses of a response."""
    identity, flags, questions, answers, _, _ = struct.unpack("!HHHHHH", message[:12])
    assert (identity, questions) == (7, 1)
    assert flags & 0x8000
    tail = message[len(message) - 16 * answers :]
    return flags & 0xF, [socket.inet_ntoa(tail[at + 12 : at + 16]) for at in range(0, len(tail), 16)]


def test_a_service_has_its_cluster_address() -> None:
    assert records([service("details", "10.97.1.2")], [], "cluster.local") == {
        "details.shop.svc.cluster.local": ["10.97.1.2"]
    }


def test_a_headless_service_has_its_ready_pods() -> None:
    endpoints = {
        "metadata": {"name": "db", "namespace": "shop"},
        "subsets": [{"addresses": [{"ip": "10.1.0.1", "hostname": "db-0"}, {"ip": "10.1.0.2"}]}, {}],
    }
    assert records([service("db", "None")], [endpoints], "cluster.local") == {
        "db.shop.svc.cluster.local": ["10.1.0.1", "10.1.0.2"],
        "db-0.db.shop.svc.cluster.local": ["10.1.0.1"],
    }


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("details.shop.svc.cluster.local", 1, (0, ["10.97.1.2"])),
        ("DETAILS.shop.svc.cluster.LOCAL", 1, (0, ["10.97.1.2"])),
        ("db.shop.svc.cluster.local", 1, (0, ["10.1.0.1", "10.1.0.2"])),
        ("details.shop.svc.cluster.local", 28, (0, [])),
        ("details", 1, (3, [])),
    ],
    ids=["service", "any-case", "headless", "no-ipv6", "unknown"],
)
def test_answers(name: str, kind: int, expected: tuple[int, list[str]]) -> None:
    assert read(answer(query(name, kind), KNOWN)) == expected


@pytest.mark.parametrize("message", [b"", b"\0" * 11, query("details")[:-3]], ids=["empty", "header", "cut"])
def test_a_broken_query_raises_what_the_server_catches(message: bytes) -> None:
    with pytest.raises((struct.error, IndexError)):
        answer(message, KNOWN)
