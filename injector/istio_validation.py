"""The init container `istio-validation`: wait, without any right, until the pod's traffic is captured.

Where nodes capture, the node's capture agent writes the rules from outside. This container runs before the
application's and lets the pod start only once the rules are in force: it connects, as the proxy's user, to
the pod's own address at a port where nobody listens, and listens itself where only the rules lead. As long
as that connection is refused nothing is captured, and after a bounded time the container fails (exit code
1; bad options are 2): the pod does not start its application. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from injector.core.capture import INBOUND_PORT, CaptureConfig, probe_port
from mesh import ports
from mesh.errors import Category, Code, MeshError

EXIT_FAILED, EXIT_USAGE = 1, 2
_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 2.0
_LONGEST_SECONDS = 3600.0
_TELL_SECONDS = 10.0
_MAX_ADDRESSES = 16
_GLOBAL_SCOPE = "00"


class ValidationCode(Code):
    """Why a pod whose node captures does not start."""

    NOT_CAPTURED = "validation_not_captured"
    NO_ADDRESS = "validation_no_address"
    LISTEN = "validation_cannot_listen"
    UNVERIFIABLE = "validation_unverifiable"


class ValidationError(MeshError):
    """The capture of the pod's traffic is not proved."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="istio-validation",
        description="Waits until the node's capture agent captures the pod's traffic.",
    )
    parser.add_argument(
        "--config", default="{}", metavar="JSON", help="what is captured (the injector writes it)"
    )
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="at most 3600")
    options = parser.parse_args(argv)
    try:
        config = CaptureConfig.from_json(options.config)
        addresses = pod_addresses(os.environ.get("POD_IPS", ""))
        took = wait(config, addresses, max(0.0, min(options.timeout, _LONGEST_SECONDS)), tell=_tell)
    except ValidationError as error:
        _tell(f"{error}")
        return EXIT_FAILED
    except MeshError as error:
        _tell(f"{error}")
        return EXIT_USAGE
    sys.stdout.write(
        f"istio-validation: traffic is captured, proved at {', '.join(addresses)} after {took:.1f} s\n"
    )
    return 0


def pod_addresses(text: str, interfaces: Path = Path("/proc/net/if_inet6")) -> tuple[str, ...]:
    """The pod's own addresses: of the list that the kubelet gives, and each other one of IPv6.

    Raises:
        ValidationError: there is none, or one that is no address.
    """
    found: list[str] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(str(ipaddress.ip_address(item)))
        except ValueError as error:
            raise ValidationError(
                ValidationCode.NO_ADDRESS, f"POD_IPS has {item[:60]!r}, which is no address"
            ) from error
    with contextlib.suppress(OSError):
        for line in interfaces.read_text(encoding="ascii").splitlines():
            digits, _, _, scope, *_ = line.split()
            address = str(ipaddress.IPv6Address(bytes.fromhex(digits)))
            if scope == _GLOBAL_SCOPE and address not in {"::1", ports.PASSTHROUGH_V6}:
                found.append(address)
    unique = tuple(dict.fromkeys(found))[:_MAX_ADDRESSES]
    if not unique:
        raise ValidationError(
            ValidationCode.NO_ADDRESS,
            "the pod has no address: POD_IPS is empty; next: let the injector make this container",
        )
    return unique


def wait(
    config: CaptureConfig,
    addresses: Sequence[str],
    timeout: float,
    *,
    tell: Callable[[str], None],
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Try until every address is captured; returns the seconds that it took.

    Args:
        timeout: seconds; each address is tried at least once.
        tell: told from time to time what is waited for.

    Raises:
        ValidationError: the time is over, or it could never be told.
    """
    port = probe_port(config)
    if port is None:
        raise ValidationError(
            ValidationCode.UNVERIFIABLE,
            "the rules leave out loopback or every port, so nobody could tell whether they are in force",
        )
    began = told = monotonic()
    with listening(addresses) as listeners:
        while True:
            left = [address for address in addresses if not arrives(address, port, listeners)]
            now = monotonic()
            if not left:
                return now - began
            if now - began >= timeout:
                raise ValidationError(
                    ValidationCode.NOT_CAPTURED,
                    _advice(left, port, now - began),
                    category=Category.UNAVAILABLE,
                )
            if now - told >= _TELL_SECONDS:
                told = now
                tell(f"waiting for the node's capture agent: {_found(left, port)} ({now - began:.0f} s)")
            sleep(_POLL_SECONDS)


@contextlib.contextmanager
def listening(addresses: Sequence[str]) -> Iterator[dict[int, socket.socket]]:
    """Listeners where the rules lead, by address family; on loopback, where a redirect of one's own goes.

    Raises:
        ValidationError: somebody else listens there already.
    """
    with contextlib.ExitStack() as stack:
        found: dict[int, socket.socket] = {}
        for family in dict.fromkeys(_family(address) for address in addresses):
            host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, INBOUND_PORT))
                listener.listen(16)
            except OSError as error:
                raise ValidationError(
                    ValidationCode.LISTEN,
                    f"{host}:{INBOUND_PORT} cannot be listened on ({error.strerror}); next: no other init"
                    " container may use the proxy's ports",
                ) from error
            listener.setblocking(False)
            found[family] = listener
        yield found


def arrives(address: str, port: int, listeners: dict[int, socket.socket]) -> bool:
    """Whether a connection to the pod's own address arrives at our listener, which only the rules can do."""
    family = _family(address)
    listener = listeners[family]
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(_CONNECT_SECONDS)
        try:
            client.connect((address, port))
        except OSError:
            return False
        own = client.getsockname()[:2]
        while select.select([listener], [], [], _POLL_SECONDS)[0]:
            with contextlib.suppress(OSError):
                accepted, peer = listener.accept()
                accepted.close()
                if peer[:2] == own:
                    return True
    return False


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _found(left: Sequence[str], port: int) -> str:
    return f"a connection to {', '.join(left)} port {port} is not redirected"


def _advice(left: Sequence[str], port: int, seconds: float) -> str:
    node = os.environ.get("NODE_NAME", "") or "of this pod"
    return (
        f"this pod's traffic is not captured after {seconds:.0f} s ({_found(left, port)}), so it does not"
        f" start. The capture agent of node {node} writes the rules: is there one, and what does it say?"
        f" next: kubectl get pods -A -o wide -l app.kubernetes.io/component=capture --field-selector"
        f" spec.nodeName={node}; its log; the Events of this pod"
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"istio-validation: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
