"""Sockets: where they are bound, who may have made the directory, how they come and go (F-77, R1, R2)."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import stat
from pathlib import Path

import grpc
import grpc.aio
import pytest
from envoy.service.secret.v3 import sds_pb2_grpc

from mesh.errors import Category
from nodeagent.cache import WorkloadCache
from nodeagent.sockets import (
    MARKER_NAME,
    SOCKET_NAME,
    SocketCode,
    SocketError,
    SocketOptions,
    WorkloadSocket,
    open_directory,
    prepare_base,
    sweep_orphans,
)
from tests.fakes.agent_server import DEADLINE, ask, read, served
from tests.fakes.agent_session import IDENTITY, secrets

pytestmark = pytest.mark.asyncio


def web_cache() -> WorkloadCache:
    cache = WorkloadCache("demo/web")
    cache.publish_identity(IDENTITY, secrets())
    return cache


def listed(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def descriptors() -> list[str]:
    """What this process has open."""
    return [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]


async def answers(path: Path) -> bool:
    """A fetch over the socket at a path of any length."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        async with grpc.aio.insecure_channel(f"unix:/proc/self/fd/{fd}/{path.name}") as channel:
            stub = sds_pb2_grpc.SecretDiscoveryServiceStub(channel)
            response = await stub.FetchSecrets(ask("ROOTCA"), timeout=DEADLINE)
            return len(response.resources) == 1
    except grpc.aio.AioRpcError:
        return False
    finally:
        os.close(fd)


async def test_modes_of_base_directory_and_socket(short_dir: Path) -> None:
    base = short_dir / "run" / "gatehouse"
    prepare_base(base)
    prepare_base(base)
    socket = WorkloadSocket(base / "w", web_cache())
    await socket.start()
    try:
        modes = [stat.S_IMODE(p.stat().st_mode) for p in (base, socket.directory, socket.path)]
        assert modes == [0o711, 0o755, 0o666]
        assert stat.S_ISSOCK(socket.path.stat().st_mode)
        assert listed(socket.directory) == [MARKER_NAME, SOCKET_NAME]
        assert socket.intact()
        assert await answers(socket.path)
    finally:
        await socket.stop()
    assert listed(socket.directory) == [MARKER_NAME], "R2: never an empty directory under a running pod"
    assert not socket.intact()
    assert socket.open_streams == 0


async def test_configured_modes_and_owner(short_dir: Path) -> None:
    options = SocketOptions(directory_mode=0o700, socket_mode=0o600, socket_uid=os.geteuid())
    socket = WorkloadSocket(short_dir / "w", web_cache(), options=options)
    await socket.start()
    try:
        assert stat.S_IMODE(socket.directory.stat().st_mode) == 0o700
        assert (stat.S_IMODE(socket.path.stat().st_mode), socket.path.stat().st_uid) == (0o600, os.geteuid())
    finally:
        await socket.stop()


async def test_r1_path_longer_than_a_unix_address(short_dir: Path) -> None:
    directory = short_dir / ("k" * 100) / ("v" * 100)
    directory.parent.mkdir()
    socket = WorkloadSocket(directory, web_cache())
    await socket.start()
    try:
        assert len(str(socket.path)) > 107
        assert await answers(socket.path)
    finally:
        await socket.stop()


async def test_start_twice_is_refused_and_stop_twice_is_not(short_dir: Path) -> None:
    socket = WorkloadSocket(short_dir / "w", web_cache())
    await socket.start()
    with pytest.raises(SocketError, match="served already") as caught:
        await socket.start()
    assert caught.value.code is SocketCode.RUNNING
    assert await answers(socket.path)
    await socket.stop()
    await socket.stop()


@pytest.mark.parametrize("left", ["socket", "file", "link", "temporary"])
async def test_what_an_earlier_agent_left_is_replaced(short_dir: Path, left: str) -> None:
    directory = short_dir / "w"
    directory.mkdir(mode=0o755)
    victim = short_dir / "victim"
    victim.write_text("precious")
    path = directory / SOCKET_NAME
    if left == "socket":
        with sockets.socket(sockets.AF_UNIX) as stale:
            stale.bind(str(path))
    elif left == "file":
        path.write_text("x")
    elif left == "link":
        path.symlink_to(victim)
    else:
        (directory / ".agent.sock.0123").write_text("x")
    socket = WorkloadSocket(directory, web_cache())
    await socket.start()
    try:
        assert listed(directory) == [MARKER_NAME, SOCKET_NAME]
        assert await answers(path)
        assert victim.read_text() == "precious", "F-77: a planted link is replaced, not followed"
        assert stat.S_IMODE(victim.stat().st_mode) & 0o022 == 0
    finally:
        await socket.stop()


async def test_restart_replaces_the_socket_at_once(short_dir: Path) -> None:
    """The path never vanishes while a second agent takes over from the first."""
    first = WorkloadSocket(short_dir / "w", web_cache())
    second = WorkloadSocket(short_dir / "w", web_cache())
    await first.start()
    before = first.path.stat().st_ino
    await second.start()
    try:
        assert second.path.stat().st_ino != before
        assert (first.intact(), second.intact()) == (False, True)
        await first.stop()
        assert second.intact(), "the old one removes only its own socket"
        assert await answers(second.path)
    finally:
        await second.stop()


async def test_f77_link_instead_of_the_directory_is_refused(short_dir: Path) -> None:
    (short_dir / "elsewhere").mkdir()
    (short_dir / "w").symlink_to(short_dir / "elsewhere")
    with pytest.raises(SocketError, match="must be a directory and not a link") as caught:
        await WorkloadSocket(short_dir / "w", web_cache()).start()
    assert (caught.value.code, caught.value.category) == (
        SocketCode.NOT_A_DIRECTORY,
        Category.FAILED_PRECONDITION,
    )
    assert listed(short_dir / "elsewhere") == []


async def test_f77_directory_that_others_may_write_is_refused(short_dir: Path) -> None:
    (short_dir / "w").mkdir()
    (short_dir / "w").chmod(0o777)
    with pytest.raises(SocketError, match="0777 lets others write") as caught:
        await WorkloadSocket(short_dir / "w", web_cache()).start()
    assert caught.value.code is SocketCode.WRITABLE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_f77_directory_of_another_user_is_refused(short_dir: Path) -> None:
    (short_dir / "w").mkdir()
    os.chown(short_dir / "w", 12345, -1)
    with pytest.raises(SocketError, match="belongs to uid 12345") as caught:
        await WorkloadSocket(short_dir / "w", web_cache()).start()
    assert caught.value.code is SocketCode.OWNER


async def test_f77_replaced_directory_is_noticed_and_not_followed(short_dir: Path) -> None:
    socket = WorkloadSocket(short_dir / "w", web_cache())
    await socket.start()
    (short_dir / "w").rename(short_dir / "moved")
    (short_dir / "w").mkdir()
    (short_dir / "w" / SOCKET_NAME).write_text("not ours")
    assert not socket.intact()
    assert await answers(short_dir / "moved" / SOCKET_NAME), "who holds the old directory is still served"
    await socket.stop(remove=True)
    assert (short_dir / "w" / SOCKET_NAME).read_text() == "not ours"
    assert not (short_dir / "moved" / SOCKET_NAME).exists()
    await socket.start()
    assert socket.intact()
    await socket.stop(remove=True)
    assert not socket.directory.exists()


@pytest.mark.parametrize("what", ["socket", "directory"])
async def test_removed_socket_is_noticed(short_dir: Path, what: str) -> None:
    socket = WorkloadSocket(short_dir / "w", web_cache())
    await socket.start()
    if what == "socket":
        socket.path.unlink()
    else:
        (short_dir / "w").rename(short_dir / "moved")
    assert not socket.intact()
    await socket.stop()
    await socket.start()
    assert socket.intact()
    await socket.stop()


async def test_failed_bind_is_explained_and_leaves_nothing_open(short_dir: Path) -> None:
    """The directory is deleted between its opening and the bind."""
    socket = WorkloadSocket(short_dir / "w", web_cache())
    bind = socket._bind

    def deleted(server: grpc.aio.Server, name: str) -> None:
        (short_dir / "w").rmdir()
        bind(server, name)

    socket._bind = deleted
    with pytest.raises(SocketError, match="cannot listen") as caught:
        await socket.start()
    assert (caught.value.code, caught.value.category) == (SocketCode.BIND, Category.UNAVAILABLE)
    assert not any(target.startswith(str(short_dir)) for target in descriptors())
    assert not socket.intact()


async def test_directory_without_a_parent_is_refused(short_dir: Path) -> None:
    with pytest.raises(SocketError, match="its parent must exist") as caught:
        await WorkloadSocket(short_dir / "nowhere" / "w", web_cache()).start()
    assert caught.value.code is SocketCode.NO_DIRECTORY


async def test_directory_in_the_place_of_the_socket_is_refused(short_dir: Path) -> None:
    """F-77: it is not removed either; nothing of ours is left behind but the directory."""
    (short_dir / "w" / SOCKET_NAME).mkdir(parents=True)
    socket = WorkloadSocket(short_dir / "w", web_cache())
    with pytest.raises(SocketError, match="Is a directory") as caught:
        await socket.start()
    assert caught.value.code is SocketCode.BIND
    assert listed(short_dir / "w") == [SOCKET_NAME]
    (short_dir / "w" / SOCKET_NAME).rmdir()
    await socket.start()
    assert socket.intact()
    await socket.stop()


async def test_f77_bound_socket_swapped_for_a_file_is_refused(short_dir: Path) -> None:
    socket = WorkloadSocket(short_dir / "w", web_cache())
    bind = socket._bind

    def swapped(server: grpc.aio.Server, name: str) -> None:
        bind(server, name)
        (short_dir / "w" / name).unlink()
        (short_dir / "w" / name).write_text("x")

    socket._bind = swapped
    with pytest.raises(SocketError, match="not a socket any more"):
        await socket.start()
    assert not socket.intact()


async def test_stopping_one_socket_leaves_its_neighbours(short_dir: Path) -> None:
    """gRPC removes what it bound when it stops: its descriptor must not be another's by then."""
    many = [WorkloadSocket(short_dir / f"w{i}", web_cache()) for i in range(20)]
    for socket in many:
        await socket.start()
    for socket in many[::2]:
        await socket.stop(remove=True)
    late = WorkloadSocket(short_dir / "late", web_cache())
    await late.start()
    for socket in (*many[1::2], late):
        assert socket.intact()
        assert await answers(socket.path)
    assert listed(short_dir) == sorted(["late", *(f"w{i}" for i in range(1, 20, 2))])
    for socket in (*many[1::2], late):
        await socket.stop()


async def test_remove_spares_what_is_not_ours(short_dir: Path) -> None:
    socket = WorkloadSocket(short_dir / "w", web_cache())
    await socket.start()
    (short_dir / "w" / "note").write_text("x")
    await socket.stop(remove=True)
    assert listed(short_dir / "w") == ["note"]


async def test_orphans_are_swept_and_nothing_else(short_dir: Path) -> None:
    for name in ("gone", "kept", "foreign", "mixed", "empty"):
        (short_dir / name).mkdir()
    for name in ("gone", "kept", "mixed"):
        (short_dir / name / MARKER_NAME).touch()
        (short_dir / name / SOCKET_NAME).touch()
    (short_dir / "mixed" / "data").touch()
    (short_dir / "foreign" / "data").touch()
    (short_dir / "file").touch()
    (short_dir / "link").symlink_to(short_dir / "kept")
    assert sweep_orphans(short_dir, {"kept"}) == ["gone"]
    assert listed(short_dir) == ["empty", "file", "foreign", "kept", "link", "mixed"]
    assert listed(short_dir / "kept") == [MARKER_NAME, SOCKET_NAME]
    assert sweep_orphans(short_dir / "nowhere", ()) == []


async def test_open_directory_does_not_change_what_exists(short_dir: Path) -> None:
    (short_dir / "w").mkdir(mode=0o750)
    os.close(open_directory(short_dir / "w", 0o755))
    assert stat.S_IMODE((short_dir / "w").stat().st_mode) == 0o750


async def test_pings_do_not_end_the_connection() -> None:
    """Envoy pings each 10 s; gRPC's default hangs up at the third idle ping (ENHANCE_YOUR_CALM)."""
    ping, goaway = 6, 7

    async def next_frame(reader: asyncio.StreamReader) -> tuple[int, int]:
        head = await reader.readexactly(9)
        length = int.from_bytes(head[:3])
        await reader.readexactly(length)
        return head[3], head[4]

    async with served() as web, asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_unix_connection(str(web.socket.path))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        acknowledged = 0
        for i in range(20):
            writer.write(b"\x00\x00\x08" + bytes([ping, 0]) + b"\x00" * 4 + i.to_bytes(8))
            while True:
                kind, flags = await next_frame(reader)
                assert kind != goaway, f"hung up after {acknowledged} pings"
                if kind == ping and flags & 1:
                    acknowledged += 1
                    break
        assert acknowledged == 20
        writer.close()
        await writer.wait_closed()


async def test_every_service_shares_the_socket() -> None:
    async with served() as web:
        web.cache.publish_identity(IDENTITY, secrets())
        sds, ads = web.sds.StreamSecrets(), web.ads.StreamAggregatedResources()
        await sds.write(ask("ROOTCA"))
        await ads.write(
            ask("ROOTCA", type_url="type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret")
        )
        assert [len((await read(call)).resources) for call in (sds, ads)] == [1, 1]
        assert web.socket.open_streams == 2
