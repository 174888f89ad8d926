"""What is said about policies, and how often."""

from __future__ import annotations

from typing import Any

from injector.events import EventSink, Saying, Subject
from injector.policy_events import PolicyEvents
from injector.policy_records import Remark, read_record


class Sink(EventSink):
    def __init__(self) -> None:
        super().__init__(None)
        self.said: list[tuple[Subject, Saying]] = []

    def say(self, about: Subject, said: Saying) -> None:
        self.said.append((about, said))


def item(spec: Any, generation: int = 1, name: str = "p") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": "u", "generation": generation},
        "spec": spec,
    }


def remark(spec: Any, kind: str = "PeerAuthentication", **fields: Any) -> Remark | None:
    return read_record(kind)(item(spec, **fields)).remark


def test_a_good_policy_needs_no_word() -> None:
    assert remark({"mtls": {"mode": "STRICT"}}) is None


def test_a_refused_policy() -> None:
    found = remark({"mtls": {"mode": "SOMETIMES"}})
    assert found is not None
    assert (found.said.word, found.said.kind) == ("PolicyRefused", "Warning")
    assert found.said.message.startswith("spec.mtls.mode: ")
    assert found.said.message.endswith("it is not in force, what was accepted before stays")


def test_a_policy_that_does_something_unexpected() -> None:
    """In force, but one of its patterns can never match."""
    rule = {"to": [{"operation": {"paths": ["no-slash"]}}]}
    found = remark({"action": "DENY", "rules": [rule]}, "AuthorizationPolicy")
    assert found is not None
    assert (found.said.word, found.said.kind, found.said.code) == (
        "PolicyRemark",
        "Warning",
        "policy_never_matches",
    )


def test_several_mistakes_are_one_event() -> None:
    found = remark({"mtls": {"mode": "X"}, "portLevelMtls": {"80": {"mode": "Y"}}})
    assert found is not None
    assert " more)" in found.said.message


def test_each_form_is_told_once_and_a_new_one_again() -> None:
    sink, current = Sink(), [remark({"mtls": {"mode": "X"}})]
    events = PolicyEvents(sink, lambda: [r for r in current if r is not None])
    events.step()
    events.step()
    assert len(sink.said) == 1
    current[:] = [remark({"mtls": {"mode": "X"}}, generation=2)]
    events.step()
    assert len(sink.said) == 2
    assert len({said.key for _, said in sink.said}) == 2
    current[:] = []
    events.step()
    current[:] = [remark({"mtls": {"mode": "X"}}, generation=3)]
    events.step()
    assert len(sink.said) == 3
