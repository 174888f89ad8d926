"""A node agent's view of the authority's Sync API, with gRPC's own client."""

from __future__ import annotations

from typing import Any

import grpc

from ca.trust_handler import METHOD
from mesh._proto import trust_pb2
from tests.fakes.ca_running import Answer, Client, Metadata, answer_of

AGENTS = "istio-system/gatehouse-nodeagent"
AGENT_UID = "aaaaaaaa-0000-4000-8000-0000000000a1"


def agent_pod(
    name: str = "agent-1", *, uid: str = AGENT_UID, node: str = "node-17", **status: Any
) -> dict[str, Any]:
    """A running pod of the agents."""
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "istio-system", "uid": uid},
        "spec": {"serviceAccountName": "gatehouse-nodeagent", "nodeName": node},
        "status": {"phase": "Running", **status},
    }


AGENT_CLAIMS: dict[str, Any] = {
    "namespace": "istio-system",
    "name": "gatehouse-nodeagent",
    "pod": "agent-1",
    "uid": AGENT_UID,
}
"""For `RunningCa.token`: the token of `agent_pod`."""


def sync(
    client: Client, headers: Metadata, message: bytes | None = None, **fields: Any
) -> tuple[Answer, trust_pb2.SyncResponse]:
    """One call; the message as given, or made of the fields."""
    if message is None:
        message = trust_pb2.SyncRequest(**fields).SerializeToString()
    response = trust_pb2.SyncResponse()
    call = client.channel.unary_unary(METHOD, response_deserializer=trust_pb2.SyncResponse.FromString)
    try:
        response, done = call.with_call(message, metadata=headers, timeout=30)
    except grpc.RpcError as e:
        return answer_of(e), response
    return Answer(grpc.StatusCode.OK, trailers=dict(done.trailing_metadata())), response
