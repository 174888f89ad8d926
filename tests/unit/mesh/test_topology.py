"""The types that describe the mesh."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.topology import AppProtocol, Service, ServicePort, SocketAddress, Workload, WorkloadPort

APP = SocketAddress("127.0.0.1", 18080)


def test_socket_addresses_print_as_they_are_dialled() -> None:
    assert str(APP) == "127.0.0.1:18080"
    assert str(SocketAddress("fd00::1", 80)) == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("protocol", "http"),
    [
        (AppProtocol.HTTP, True),
        (AppProtocol.HTTP2, True),
        (AppProtocol.TCP, False),
        (AppProtocol.AUTO, False),
    ],
)
def test_protocols_that_have_requests(protocol: AppProtocol, http: bool) -> None:
    assert protocol.is_http is http


def test_ports_are_found_by_number() -> None:
    port = WorkloadPort(number=8080, protocol=AppProtocol.HTTP, app=APP)
    workload = Workload(
        uid="u", namespace="n", name="w", service_account="s", address="10.0.0.1", ports=(port,)
    )
    assert workload.port(8080) is port
    assert workload.port(80) is None
    service_port = ServicePort(number=80, protocol=AppProtocol.TCP)
    service = Service(host="a.n.svc", namespace="n", ports=(service_port,))
    assert service.port(80) is service_port
    assert service.port(8080) is None


def test_values_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        APP.port = 1  # type: ignore[misc]  # that it is an error is the test
