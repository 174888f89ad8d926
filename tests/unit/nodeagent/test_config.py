"""The agent's configuration: defaults, forms, refusals."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from mesh.settings import SettingsError
from nodeagent.config import ENV_PREFIX, Listen, load_settings, parse_ca_address

GOOD = "directory: docs\nca: {address: 'ca:15012', root_file: r/root.pem}\n"


def load(tmp_path: Path, text: str, env: dict[str, str] | None = None, **overrides: object):
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    return load_settings(file, env or {}, overrides)


def test_defaults_and_paths_relative_to_the_file(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    assert found.directory == tmp_path / "docs"
    assert found.ca.root_file == tmp_path / "r" / "root.pem"
    assert found.sockets == Path("/run/gatehouse/sockets")
    assert str(found.listen) == "127.0.0.1:15094"
    assert (found.ca.in_flight, found.ca.deadline) == (8, dt.timedelta(seconds=10))
    assert (found.rotation.ratio, found.rotation.jitter, found.rotation.lifetime) == (0.5, 0.1, None)
    assert found.debounce == dt.timedelta(milliseconds=50)


def test_the_environment_and_options_win(tmp_path: Path) -> None:
    env = {f"{ENV_PREFIX}CA__ADDRESS": "other:1", f"{ENV_PREFIX}LOG_LEVEL": "debug", "HOME": "/x"}
    found = load(tmp_path, GOOD, env, log_level="error")
    assert (found.ca.address, found.log_level) == ("other:1", "error")


def test_without_a_file(tmp_path: Path) -> None:
    found = load_settings(
        None, {}, {"directory": str(tmp_path), "ca.address": "a:1", "ca.root_file": "root.pem"}
    )
    assert found.directory == tmp_path
    assert found.ca.root_file == Path.cwd() / "root.pem"


BAD = [
    ("typo", GOOD + "sokets: x\n", "did you mean 'sockets'"),
    ("nested-typo", GOOD.replace("root_file", "rootfile"), "did you mean 'root_file'"),
    ("no-directory", "ca: {address: 'a:1', root_file: r}\n", "directory"),
    ("no-ca", "directory: d\n", "ca.address"),
    ("ca-address", GOOD.replace("ca:15012", "https://ca"), "host:port"),
    ("ca-port", GOOD.replace("ca:15012", "ca:70000"), "host:port"),
    ("listen", GOOD + "listen: localhost:1\n", "must be an IP address"),
    ("listen-port", GOOD + "listen: 127.0.0.1\n", "host:port"),
    ("listen-unix", GOOD + "listen: 'unix:rel'\n", "unix:/absolute/path"),
    ("level", GOOD + "log_level: loud\n", "debug, info"),
    ("ratio", GOOD + "rotation: {ratio: 1.5}\n", "0.9"),
    ("lifetime", GOOD + "rotation: {lifetime: 0s}\n", "rotation.lifetime"),
    ("in-flight", GOOD + "listen: '127.0.0.1:0'\nca: {}\n", "ca"),
]


@pytest.mark.parametrize(("text", "message"), [pytest.param(*case[1:], id=case[0]) for case in BAD])
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert message in caught.value.public


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:80", "unix:/run/a.sock"])
def test_listen_addresses_are_written_as_they_are_read(text: str) -> None:
    assert str(Listen.parse(text)) == text


def test_ca_addresses() -> None:
    assert parse_ca_address("ca.example:15012") == "ca.example:15012"
    for bad in ("", "ca", ":1", "ca:", "ca:x", "ca/x:1", "ca:0"):
        with pytest.raises(ValueError, match="host:port"):
            parse_ca_address(bad)
