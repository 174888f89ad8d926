"""The commands behind `python -m nodeagent`; each returns its exit code."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import resource
import shlex
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from mesh import settings as mesh_settings
from mesh.errors import Category, Code, MeshError
from mesh.obs import logs
from mesh.obs.table import render_table
from nodeagent.config import ENV_PREFIX, AgentSettings, load_settings

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_UNREACHABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_M_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 128 * 1024


class CommandCode(Code):
    """Why a command was refused."""

    ARGUMENT = "command_argument"
    WORKLOAD = "command_unknown_workload"


class CommandError(MeshError):
    """Arguments that do not fit what is there."""


def _fail(code: CommandCode, message: str) -> CommandError:
    return CommandError(code, message, category=Category.INVALID_ARGUMENT)


def _settings(options: argparse.Namespace) -> AgentSettings:
    overrides: dict[str, object] = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise _fail(CommandCode.ARGUMENT, f"--set {item!r}: written NAME=VALUE, e.g. log_level=debug")
        overrides[name] = value
    return load_settings(options.config, os.environ, overrides)


# --- serve -----------------------------------------------------------------------------------------


def serve(options: argparse.Namespace) -> int:
    """Run the agent until TERM or INT."""
    configuration = _settings(options)
    logs.configure(service="nodeagent", level=configuration.log_level)
    keep_secrets_in_memory()
    give_large_buffers_back()
    log = logs.logger("nodeagent")
    failures: list[BaseException] = []
    try:
        asyncio.run(_serve(configuration))
    except* (MeshError, OSError) as group:
        failures = _leaves(group)
    for error in failures:
        log.error("the agent cannot run", error=error)
    return EXIT_PROBLEM if failures else EXIT_OK


async def _serve(configuration: AgentSettings) -> None:
    from nodeagent.agent import Agent

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    await Agent(configuration).run(stop)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def keep_secrets_in_memory() -> None:
    """No core dumps and no debugger: workload keys live in this process. New files are private."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.umask(0o077)


def give_large_buffers_back() -> None:
    """Have the C library return large buffers to the system as soon as they are free.

    A state of the world of a thousand clusters is a megabyte, written to each proxy of the node at once.
    By default glibc raises its limit (mallopt(3), M_MMAP_THRESHOLD) after the first of them and keeps
    the rest in its heap. Other C libraries have no such limit.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


# --- check -----------------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> int:
    """Validate a directory: documents, policies, references, rendering."""
    from prometheus_client import CollectorRegistry

    from mesh.policy.effective import Severity
    from nodeagent.compiler import Compiler
    from nodeagent.files import FileSource
    from nodeagent.metrics import AgentMetrics
    from nodeagent.status import finding_dict

    state = FileSource(options.dir).load()
    compiled = Compiler(AgentMetrics(CollectorRegistry())).compile(state.world, state.key_sets)
    findings = [*state.findings, *compiled.findings]
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    rows = [finding_dict(finding) for finding in findings]
    summary = {
        "workloads": len(state.world.workloads),
        "services": len(state.world.services),
        "policies": len(state.world.policies),
        "key_sets": len(state.world.key_sets),
        "errors": errors,
        "warnings": len(findings) - errors,
    }
    if options.output == "json":
        _print(json.dumps({"ok": not errors, "summary": summary, "findings": rows}, indent=2))
    else:
        _print_findings(rows)
        _print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary.items()))
    return EXIT_PROBLEM if errors else EXIT_OK


def _print_findings(rows: list[dict[str, str]]) -> None:
    for row in rows:
        _print(
            f"{row['place']}: {row['severity']}: {row['object']}"
            + (f": {row['field']}" if row["field"] else "")
        )
        _print(f"    {row['message']} [{row['code']}]")


# --- bootstrap -------------------------------------------------------------------------------------


def print_bootstrap(options: argparse.Namespace) -> int:
    """Print a workload's Envoy bootstrap, or with `--command` the whole command line."""
    from mesh.envoy.bootstrap import BootstrapOptions, bootstrap, envoy_arguments
    from nodeagent.files import FileSource
    from nodeagent.sockets import SOCKET_NAME
    from nodeagent.workloads import socket_directory

    configuration = _settings(options)
    if configuration.directory is None:
        raise _fail(CommandCode.ARGUMENT, "bootstrap needs `directory`: in a cluster the injector makes them")
    world = FileSource(configuration.directory).load().world
    namespace, _, name = options.workload.partition("/")
    workload = next(
        (s.workload for s in world.workloads if (s.workload.namespace, s.workload.name) == (namespace, name)),
        None,
    )
    if workload is None:
        known = ", ".join(sorted(f"{s.workload.namespace}/{s.workload.name}" for s in world.workloads))
        raise _fail(
            CommandCode.WORKLOAD,
            f"--workload {options.workload!r}: {configuration.directory} has {known or 'no workloads'}",
        )
    socket = configuration.sockets / socket_directory(namespace, name) / SOCKET_NAME
    admin = None
    if options.admin is not None:
        admin = options.admin if "/" in options.admin else _address("--admin", options.admin)
    text = bootstrap(
        BootstrapOptions(
            node_id=workload.uid,
            agent_socket=str(socket),
            node_cluster=f"{workload.name}.{workload.namespace}",
            metadata={"namespace": workload.namespace, "name": workload.name},
            admin=admin,
            admin_unrestricted=options.admin_all,
            stats=None if options.stats is None else _address("--stats", options.stats),
            readiness=None if options.readiness is None else _address("--readiness", options.readiness),
        )
    )
    if options.whole:
        arguments = envoy_arguments(
            text, drain_seconds=world.mesh.drain_seconds, concurrency=options.concurrency
        )
        text = shlex.join([options.envoy, *arguments])
    _print(text)
    return EXIT_OK


def _address(option: str, text: str) -> Any:
    from mesh.topology import SocketAddress
    from nodeagent.config import Listen

    try:
        listen = Listen.parse(text)
    except ValueError as error:
        raise _fail(CommandCode.ARGUMENT, f"{option} {text!r}: {error}") from error
    return SocketAddress(listen.host, listen.port)


# --- status ----------------------------------------------------------------------------------------


def status(options: argparse.Namespace) -> int:
    """Ask the running agent and print its state."""
    from nodeagent.config import Listen
    from nodeagent.status_client import StatusError, fetch_status

    if options.address is not None:
        try:
            listen = Listen.parse(options.address)
        except ValueError as error:
            raise _fail(CommandCode.ARGUMENT, f"--address {options.address!r}: {error}") from error
    else:
        listen = _settings(options).listen
    try:
        found = fetch_status(listen)
    except StatusError as error:
        _print(f"nodeagent: {error.public}", stream=sys.stderr)
        return EXIT_UNREACHABLE
    if options.output == "json":
        _print(json.dumps(found, indent=2))
    else:
        _print_status(found)
    return EXIT_OK if found["ready"] else EXIT_PROBLEM


def _print_status(found: dict[str, Any]) -> None:
    rows = [
        [
            w["workload"],
            w["state"],
            w["serial"][:12],
            _until(w["not_after"], found["time"]),
            _until(w["renew_at"], found["time"]),
            str(w["issued"]),
            str(w["streams"]),
            f"{w['accepted']}/{len(w['refused'])}",
        ]
        for w in found["workloads"]
    ]
    heads = ["WORKLOAD", "SVID", "SERIAL", "ENDS IN", "RENEWS IN", "ISSUED", "STREAMS", "ACK/NACK"]
    _print(render_table(heads, rows))
    for w in found["workloads"]:
        for text in filter(None, (w["error"], w["socket_error"])):
            _print(f"{w['workload']}: {text} [{w['code']}]")
        for refused in w["refused"]:
            _print(
                f"{w['workload']}: proxy refused {refused['type']} {refused['name']}: {refused['message']}"
            )
    _print_findings(found["findings"])
    state = "ready" if found["ready"] else "not ready: " + "; ".join(found["reasons"])
    _print(f"directory {found['directory']}, revision {found['revision']}, authority {found['ca']}: {state}")


def _until(at: str | None, now: str) -> str:
    import datetime as dt

    if at is None:
        return "-"
    seconds = int((dt.datetime.fromisoformat(at) - dt.datetime.fromisoformat(now)).total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return (
        f"{sign}{hours}h{minutes:02}m"
        if hours
        else f"{sign}{minutes}m{seconds:02}s"
        if minutes
        else f"{sign}{seconds}s"
    )


# --- settings --------------------------------------------------------------------------------------


def print_settings(options: argparse.Namespace) -> int:
    """List every setting."""
    docs = mesh_settings.describe(AgentSettings, ENV_PREFIX)
    if options.output == "json":
        _print(json.dumps([asdict(doc) for doc in docs], indent=2))
        return EXIT_OK
    for doc in docs:
        default = "required" if doc.default is None else f"default {doc.default or 'none'}"
        _print(f"{doc.path}  ({doc.type}; {default})\n    {doc.doc}\n    {doc.env}")
    return EXIT_OK


def _print(text: str, *, stream: Any = None) -> None:
    print(text, file=stream or sys.stdout)
