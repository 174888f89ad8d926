"""What every method of the authority does with a call: headers first, one bounded message, one answer.

A thread per request is the fastest way to serve here, but a thread that waits for a message that never
comes is lost to everybody (F-29). So each method is served as if its request were a stream: the headers
arrive first, the caller is authenticated and limited on them, and only then, and not for long, a thread
waits for the message. A peer without a credential can hold no thread.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import grpc

from ca.authn import Presented
from ca.grpc_refusals import STATUS, public_text, refusal_metadata
from ca.grpc_watch import Watch
from ca.limits import LimitCode, LimitError
from ca.requests import Refuse, RequestCode, RequestError, RequestHead
from mesh.clock import Clock
from mesh.errors import Category, MeshError

SERVER_TIME_KEY: Final = "gatehouse-server-time-ms"


class Calls:
    """Shared by the handlers of a server.

    Args:
        watch: cancels who does not send a message.
        waited: seconds that the job of this thread stood in line, e.g. `ca.pool.RequestPool.waited`.
        queue_wait: a call that stood in line for longer is refused.
        observe_queue: told how long each call stood in line.
        certificates: there may be client certificates.
        refuse: told of what is refused here.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        watch: Watch,
        waited: Callable[[], float],
        queue_wait: dt.timedelta,
        observe_queue: Callable[[float], None],
        certificates: bool,
        refuse: Refuse,
    ) -> None:
        self.clock = clock
        self._watch = watch
        self._waited = waited
        self._queue_wait = queue_wait.total_seconds()
        self._observe_queue = observe_queue
        self._certificates = certificates
        self._refuse = refuse

    def head(self, context: grpc.ServicerContext) -> RequestHead:
        """What came with the call, before its message."""
        authorization: list[str] = []
        clusters: list[str] = []
        for name, value in context.invocation_metadata():
            if name == "authorization":
                authorization.append(str(value))
            elif name == "clusterid":
                clusters.append(str(value))
        certificates = peer_certificates(context.auth_context()) if self._certificates else ()
        return RequestHead(Presented(authorization, certificates), clusters, context.peer())

    def check_wait(self, head: RequestHead, context: grpc.ServicerContext) -> None:
        """No work for a caller that has given up, or will have.

        Raises:
            RequestError, LimitError: audited and counted.
        """
        waited = self._waited()
        self._observe_queue(waited)
        error: MeshError
        if not context.is_active():
            error = RequestError(RequestCode.GONE, "the call was cancelled", category=Category.UNAVAILABLE)
        elif waited > self._queue_wait:
            retry_after = dt.timedelta(seconds=self._queue_wait)
            error = LimitError(LimitCode.QUEUE, "the authority is busy; try again later", retry_after)
        else:
            return
        self._refuse(error, None, peer=head.peer)
        raise error

    def read(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """The message of the call.

        Raises:
            RequestError: it did not come in time, or there is none.
        """
        with self._watch.guard(context.cancel):
            try:
                message = next(messages, None)
            except grpc.RpcError as e:
                raise RequestError(
                    RequestCode.LATE,
                    "the request did not arrive in time; send it with the call",
                    category=Category.UNAVAILABLE,
                    private="cancelled, or the message did not arrive in time",
                ) from e
        if message is None:
            raise RequestError(RequestCode.MALFORMED, "the call ended without a request message")
        return message

    def time(self) -> str:
        """The value of `SERVER_TIME_KEY`: milliseconds since the epoch."""
        return str(int(self.clock.now().timestamp() * 1000))

    def abort(self, context: grpc.ServicerContext, error: MeshError) -> NoReturn:
        """End the call with a refusal."""
        context.set_trailing_metadata(((SERVER_TIME_KEY, self.time()), *refusal_metadata(error)))
        context.abort(STATUS[error.category], public_text(error))


def peer_certificates(facts: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The client certificate chain, leaf first; empty on a port that asks for none.

    gRPC gives the leaf by itself, and a chain that may or may not repeat it.
    """
    leaf = tuple(facts.get("x509_pem_cert", ()))
    chain = b"".join(facts.get("x509_pem_cert_chain", ()))
    for block in leaf:
        chain = chain.replace(block, b"")
    return (*leaf, chain) if chain.strip() else leaf
