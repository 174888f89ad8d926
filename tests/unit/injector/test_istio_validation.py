"""The container that waits for its rules, without a network namespace: addresses, time, what it says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from injector import istio_validation
from injector.core.capture import CaptureConfig, PortRange
from injector.istio_validation import ValidationCode, ValidationError, arrives, main, pod_addresses, wait

GLOBAL = "20010db8000000000000000000000002 02 40 00 80     eth0\n"
LOOPBACK = "00000000000000000000000000000001 01 80 10 80       lo\n"
PASSTHROUGH = "00000000000000000000000000000006 01 80 00 80       lo\n"
LINK = "fe80000000000000aaaaaafffeaaaaaa 02 40 20 80     eth0\n"


@pytest.mark.parametrize(
    ("text", "interfaces", "found"),
    [
        ("10.1.0.7", None, ("10.1.0.7",)),
        ("10.1.0.7,2001:db8::2", GLOBAL, ("10.1.0.7", "2001:db8::2")),
        ("10.1.0.7", LOOPBACK + PASSTHROUGH + LINK, ("10.1.0.7",)),
        ("10.1.0.7", GLOBAL, ("10.1.0.7", "2001:db8::2")),
        ("2001:db8::2", GLOBAL, ("2001:db8::2",)),
    ],
    ids=["ipv4", "dual", "no-address-of-ipv6", "not-told", "ipv6"],
)
def test_addresses(tmp_path: Path, text: str, interfaces: str | None, found: tuple[str, ...]) -> None:
    file = tmp_path / "if_inet6"
    if interfaces is not None:
        file.write_text(interfaces)
    assert pod_addresses(text, file) == found


@pytest.mark.parametrize(
    ("text", "said"), [("", "POD_IPS is empty"), ("10.1.0.7,x", "'x', which is no address")]
)
def test_no_address(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        pod_addresses(text, tmp_path / "none")
    assert caught.value.code is ValidationCode.NO_ADDRESS


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.setblocking(False)
        yield found


def test_an_arrival_is_that_very_connection(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    stranger = socket.create_connection(("127.0.0.1", port))
    listeners: dict[int, socket.socket] = {socket.AF_INET: listener}
    assert arrives("127.0.0.1", port, listeners), "also behind somebody else's"
    stranger.close()
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        assert not arrives("127.0.0.1", port, listeners)
    assert not arrives("127.0.0.1", port, listeners), "refused"


def test_what_it_says_while_it_waits_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(istio_validation, "INBOUND_PORT", 0)
    monkeypatch.setenv("NODE_NAME", "node7")
    now = [0.0]
    said: list[str] = []
    with pytest.raises(ValidationError) as caught:
        wait(
            CaptureConfig(),
            ["127.0.0.1"],
            25.0,
            tell=said.append,
            monotonic=lambda: now[0],
            sleep=lambda _: now.__setitem__(0, now[0] + 1.0),
        )
    assert caught.value.code is ValidationCode.NOT_CAPTURED
    assert len(said) == 2
    assert (
        "waiting for the node's capture agent: a connection to 127.0.0.1 port 15002 is not redirected"
        in said[0]
    )
    for part in ("not captured after 25 s", "node7", "component=capture", "spec.nodeName=node7", "next:"):
        assert part in caught.value.public


def test_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IPS", "127.0.0.1")
    assert main(["--config", '{"proxy_uid":0}']) == 2
    assert "capture_format" in capsys.readouterr().err
    every = CaptureConfig(exclude_outbound_ports=(PortRange(1, 65535),))
    assert main(["--config", every.to_json(), "--timeout", "0"]) == 1
    assert "validation_unverifiable" in capsys.readouterr().err


def test_somebody_else_on_the_proxys_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(istio_validation, "INBOUND_PORT", taken.getsockname()[1])
        monkeypatch.setenv("POD_IPS", "127.0.0.1")
        assert main(["--timeout", "0"]) == 1
    assert "validation_cannot_listen" in capsys.readouterr().err
