"""Check 8: secure naming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from examples.demo import layout as at
from examples.demo.forge import outsider
from examples.demo.harness import Demo
from examples.demo.meshfiles import host_name, write_service
from examples.demo.model import Check, DemoError
from examples.demo.plain import Answer, call
from examples.demo.processes import wait_for
from examples.demo.server import TlsServer

NAME = "an impostor that answers for ratings is refused by its caller (secure naming)"
INTENT = (
    "The endpoint of the service ratings is pointed at somebody else. reviews' proxy knows which identity"
    " must answer for ratings, and does not send a request to another."
)
_PATH = "/ratings/2"
_REFUSED = 503
_SECONDS = 5.0


def run(demo: Demo, check: Check) -> None:
    target = demo.egress("reviews", at.EGRESS_RATINGS)
    check.expect("before", "reviews: GET ratings", expected="200 ratings", got=_who(call(target, _PATH)))
    intruder = "{}:{}".format(*demo.layout.proxy("intruder"))
    failures = _san_failures(demo)
    with _endpoint(demo, {"address": intruder, "serviceAccount": "ratings"}):
        answer = _settle(target, "503")
        check.expect(
            "impostor",
            "ratings' endpoint is intruder's proxy",
            expected="503",
            got=_who(answer),
            evidence=f"{answer.body[:110]}; refused certificates (ssl.fail_verify_san): {failures}"
            f" -> {_san_failures(demo)}",
        )
    with _endpoint(demo, {"address": intruder, "serviceAccount": "intruder"}):
        check.expect(
            "twin: declared",
            "the same, but intruder is declared as the identity",
            expected="200 intruder",
            got=_who(_settle(target, "200 intruder")),
            evidence="so nothing but the name was the reason",
        )
    impostor = (demo.layout.host("impostor"), at.HTTP["ratings"])
    with (
        TlsServer(impostor, outsider().issue(at.spiffe_id("ratings"))) as server,
        _endpoint(demo, {"address": "{}:{}".format(*server.address), "serviceAccount": "ratings"}),
    ):
        check.expect(
            "other CA",
            "a server with ratings' name, certified by another CA",
            expected="503",
            got=_who(_settle(target, "503")),
        )
    check.expect(
        "after",
        "the endpoint is put back",
        expected="200 ratings",
        got=_who(_settle(target, "200 ratings")),
    )


@contextmanager
def _endpoint(demo: Demo, endpoint: dict[str, Any]) -> Iterator[None]:
    write_service(demo.layout, "ratings", [{**endpoint, "namespace": at.NAMESPACE, "inMesh": True}])
    try:
        yield
    finally:
        write_service(demo.layout, "ratings")


def _settle(target: tuple[str, int], wanted: str) -> Answer:
    """The answer once the edit has arrived, or the last one when it does not come."""
    try:
        return wait_for(wanted, lambda: _matching(call(target, _PATH), wanted), seconds=_SECONDS)
    except DemoError:
        return call(target, _PATH)


def _matching(answer: Answer, wanted: str) -> Answer | None:
    return answer if _who(answer) == wanted else None


def _who(answer: Answer) -> str:
    if answer.status == _REFUSED:
        return str(_REFUSED)
    service = answer.json.get("service")
    return f"{answer.status} {service}" if service else answer.short


def _san_failures(demo: Demo) -> int:
    name = f"outbound|{at.HTTP['ratings']}||{host_name('ratings')}.ssl.fail_verify_san"
    return demo.stat("reviews", name)
