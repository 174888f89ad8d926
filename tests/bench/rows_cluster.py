"""Mode kubernetes: the agent's memory with a full node whose proxies hold a large mesh."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from envoy.service.discovery.v3 import discovery_pb2

from mesh.envoy.resources import CLUSTER, ENDPOINT
from tests.bench.h2client import Fleet, Stream
from tests.bench.measure import Row, memory_split, rss_mb
from tests.bench.real_ca import real_ca
from tests.bench.rows_csi import Node, Volume, node
from tests.fakes.kube_api import FakeKube
from tests.fakes.kube_objects import kube_pod, kube_service, kube_slice

PODS, SERVICES = 110, 1000
STREAM = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
_PREFIX = "csi.storage.k8s.io/pod."


def rows() -> Iterator[Row]:
    """Told, without a goal: it grows with services times proxies, as the proxies' own memory does."""
    with (
        tempfile.TemporaryDirectory(prefix="gh-", dir="/tmp") as directory,
        real_ca(Path(directory)) as ca,
        FakeKube(minor=29) as kube,
    ):
        for number in range(SERVICES):
            address = f"{number // 250}.{number % 250 + 1}"
            kube.add(
                kube_service(f"svc{number}", address=f"10.96.{address}"),
                kube_slice(f"svc{number}", (f"10.1.{address}", f"pod{number}")),
            )
        with node(Path(directory), ca, kube) as running:
            volumes = [running.scheduled() for _ in range(PODS)]
            for number, volume in enumerate(volumes):
                context = volume.message.volume_context
                name, uid = context[f"{_PREFIX}name"], context[f"{_PREFIX}uid"]
                kube.add(kube_pod(name, uid=uid, ip=f"10.2.0.{number + 1}"))
            yield _memory(running, volumes)


def _memory(running: Node, volumes: list[Volume]) -> Row:
    running.publish(volumes)
    hosts = [f"outbound|80||svc{number}.demo.svc.cluster.local" for number in range(SERVICES)]
    streams = [Stream.open(volume.socket, STREAM, _request(CLUSTER)) for volume in volumes]
    fleet = Fleet(streams)
    try:
        for stream in streams:
            stream.send(_request(CLUSTER, _all_of(stream, CLUSTER)))
            stream.send(_request(ENDPOINT, names=hosts))
        for stream in streams:
            stream.send(_request(ENDPOINT, _all_of(stream, ENDPOINT), hosts))
        memory, split = rss_mb(running.pid), memory_split(running.pid)
    finally:
        fleet.close()
    name = f"agent memory, {PODS} proxies, {SERVICES:,} services"
    return Row(name, memory, "MB", memory, 1.0, "(told)", ok=True, evidence=split)


def _request(
    type_url: str, answered: discovery_pb2.DiscoveryResponse | None = None, names: Sequence[str] = ()
) -> bytes:
    """A request as Envoy sends it: the first of a type, or the ACK of a response."""
    request = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names)
    request.node.id = "bench"
    if answered is not None:
        request.version_info, request.response_nonce = answered.version_info, answered.nonce
    data: bytes = request.SerializeToString()
    return data


def _all_of(stream: Stream, type_url: str) -> discovery_pb2.DiscoveryResponse:
    """The response with all services; those before it were made while the agent still listed them."""
    fleet = Fleet([stream])
    while True:
        if stream.messages:
            last = discovery_pb2.DiscoveryResponse.FromString(stream.last)
            if last.type_url == type_url and len(last.resources) >= SERVICES:
                return last
        fleet.wait(stream.messages + 1, 60)
