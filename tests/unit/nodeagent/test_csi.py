"""The CSI driver without gRPC: what a kubelet asks, in every order (F-77 to F-82, R1, R2)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.errors import Category, MeshError
from nodeagent.core.volume import VolumeCode, VolumeError
from nodeagent.csi import DriverOptions, NodeDriver
from nodeagent.sockets import MARKER_NAME, SOCKET_NAME
from nodeagent.state import VolumeState
from nodeagent.volumes import Volumes
from tests.fakes.csi_kubelet import (
    CSI_UID,
    csi_context,
    csi_make_parent,
    csi_request,
    csi_target,
    csi_tokens,
)

pytestmark = pytest.mark.asyncio


def make_files(target: str) -> None:
    Path(target).mkdir(exist_ok=True)
    for name in (SOCKET_NAME, MARKER_NAME):
        (Path(target) / name).touch()


class CsiHost:
    """Serves by making the files that a real one makes."""

    def __init__(self) -> None:
        self.volumes: Volumes | None = None
        self.fresh: list[str] = []
        self.served: list[str] = []
        self.problem: Exception | None = None

    async def serving(self, uid: str) -> None:
        if self.problem is not None:
            raise self.problem
        assert self.volumes is not None
        (held,) = (h for h in self.volumes.items() if h.volume.uid == uid)
        make_files(held.volume.target)
        self.served.append(uid)

    async def released(self, uid: str) -> None:
        self.served = [name for name in self.served if name != uid]

    def fresh_token(self, uid: str) -> None:
        self.fresh.append(uid)


class Node:
    def __init__(self, base: Path) -> None:
        self.pods = base / "pods"
        self.pods.mkdir()
        self.host = CsiHost()
        state = VolumeState(base / "state", boot_id="b", is_memory=lambda _: True)
        self.volumes = self.host.volumes = Volumes(state, lambda: None)
        self.volumes.restore()
        self.driver = NodeDriver(
            DriverOptions(name="csi.gatehouse.dev", node="node1", pods=self.pods), self.volumes, self.host
        )
        self.target = csi_target(self.pods)
        self.place = Path(self.target)
        self.request = csi_request(self.target)
        csi_make_parent(self.target)

    async def refused(self, **changes: object) -> MeshError:
        with pytest.raises(MeshError) as caught:
            await self.driver.publish(replace(self.request, **changes))  # type: ignore[arg-type]  # a table's row
        return caught.value


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_publish_republish_unpublish(node: Node) -> None:
    await node.driver.publish(node.request)
    (held,) = node.volumes.items()
    assert (held.token.read(), node.host.served) == ("tok-1", [CSI_UID])
    fresh = replace(node.request, context=csi_context(serviceAccount__tokens=csi_tokens("tok-2")))
    await node.driver.publish(fresh)
    assert node.volumes.items() == (held,)
    assert held.token.read() == "tok-2"
    assert node.host.fresh == [CSI_UID, CSI_UID]
    await node.driver.unpublish("csi-1", node.target)
    assert (node.volumes.items(), node.host.served) == ((), [])
    assert not node.place.exists()
    assert node.place.parent.exists()


async def test_f80_unpublish_is_idempotent(node: Node) -> None:
    await node.driver.unpublish("csi-never-seen", node.target)
    await node.driver.publish(node.request)
    for _ in range(2):
        await node.driver.unpublish("csi-1", node.target)
    await node.driver.unpublish("csi-1", csi_target(node.pods, "no-such-pod"))


async def test_f80_after_a_reboot_files_are_left_and_the_volume_is_not_known(node: Node) -> None:
    target = node.place
    target.mkdir()
    for name in (SOCKET_NAME, MARKER_NAME, ".agent.sock.0123456789abcdef"):
        (target / name).touch()
    await node.driver.unpublish("csi-1", node.target)
    assert not target.exists()


async def test_unpublish_removes_nothing_that_is_not_ours(node: Node) -> None:
    await node.driver.publish(node.request)
    (node.place / "data").touch()
    await node.driver.unpublish("csi-1", node.target)
    assert [path.name for path in node.place.iterdir()] == ["data"]


async def test_f77_unpublish_does_not_follow_links(node: Node, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / SOCKET_NAME).touch()
    node.place.symlink_to(elsewhere)
    await node.driver.unpublish("csi-1", node.target)
    assert (elsewhere / SOCKET_NAME).exists()


async def test_unpublish_of_a_directory_that_another_volume_has(node: Node) -> None:
    await node.driver.publish(node.request)
    await node.driver.unpublish("csi-other", node.target)
    assert (node.place / SOCKET_NAME).exists()
    assert len(node.volumes) == 1


@pytest.mark.parametrize(
    ("volume_id", "path"),
    [("", "TARGET"), ("csi-1", ""), ("csi-1", "/etc"), ("csi-1", "PODS/../x"), ("x" * 200, "TARGET")],
    ids=["no-id", "no-target", "f79-outside", "f79-dots", "long-id"],
)
async def test_unpublish_with_nonsense(node: Node, volume_id: str, path: str) -> None:
    target = path.replace("TARGET", node.target).replace("PODS", str(node.pods))
    with pytest.raises(VolumeError) as caught:
        await node.driver.unpublish(volume_id, target)
    assert caught.value.category is Category.INVALID_ARGUMENT


NEW_POD = [
    ("f82-no-token", {"context": csi_context(serviceAccount__tokens="")}, Category.FAILED_PRECONDITION),
    ("writable", {"readonly": False}, Category.INVALID_ARGUMENT),
    ("f79", {"target_path": "/etc/x"}, Category.INVALID_ARGUMENT),
    ("no-facts", {"context": csi_context(pod__name="")}, Category.FAILED_PRECONDITION),
    ("bad-token", {"context": csi_context(serviceAccount__tokens="{")}, Category.INVALID_ARGUMENT),
    ("not-ephemeral", {"context": {}}, Category.INVALID_ARGUMENT),
]


@pytest.mark.parametrize(("change", "category"), [pytest.param(*row[1:], id=row[0]) for row in NEW_POD])
async def test_a_new_pod_may_be_refused(node: Node, change: dict[str, object], category: Category) -> None:
    error = await node.refused(**change)
    assert error.category is category
    assert node.volumes.items() == ()
    assert not node.place.exists()


@pytest.mark.parametrize(
    "change",
    [pytest.param(row[1], id=row[0]) for row in NEW_POD if "target_path" not in row[1]],
)
@pytest.mark.parametrize("remembered", [True, False], ids=["known", "state-lost"])
async def test_r2_a_republish_is_never_refused_for_good(
    node: Node, change: dict[str, object], remembered: bool
) -> None:
    await node.driver.publish(node.request)
    if not remembered:
        node.volumes.drop("csi-1")
    error = await node.refused(**change)
    assert error.category is Category.UNAVAILABLE
    assert "the volume stays as it is" in error.public
    assert (node.place / MARKER_NAME).exists()
    if remembered:
        assert node.volumes.items()[0].token.read() == "tok-1"


async def test_r2_even_a_fault_of_ours_is_not_final(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    await node.driver.publish(node.request)
    node.host.problem = ZeroDivisionError("tok-1")
    error = await node.refused()
    assert (error.code, error.category) == (VolumeCode.UNEXPECTED, Category.UNAVAILABLE)
    assert "ZeroDivisionError" in error.public
    assert "tok-1" not in error.public + caplog.text


async def test_a_socket_that_cannot_be_served_yet_is_tried_again(node: Node) -> None:
    node.host.problem = VolumeError(VolumeCode.NOT_READY, "not yet", category=Category.UNAVAILABLE)
    assert (await node.refused()).category is Category.UNAVAILABLE
    node.host.problem = None
    await node.driver.publish(node.request)
    assert node.host.served == [CSI_UID]


async def test_f79_no_part_of_the_path_may_be_a_link(node: Node, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plugin = node.place.parents[1]
    node.place.parent.rmdir()
    plugin.rmdir()
    plugin.symlink_to(elsewhere)
    (elsewhere / "gatehouse").mkdir()
    error = await node.refused()
    assert (error.code, error.category) == (VolumeCode.TARGET, Category.FAILED_PRECONDITION)
    assert "may be a link" in error.public


async def test_f77_the_target_may_not_be_a_link(node: Node, tmp_path: Path) -> None:
    node.place.symlink_to(tmp_path)
    assert (await node.refused()).code is VolumeCode.TARGET


async def test_the_kubelet_makes_the_directories_above(node: Node) -> None:
    node.place.parent.rmdir()
    assert (await node.refused()).code is VolumeCode.TARGET


async def test_calls_for_one_volume_come_one_after_the_other(node: Node) -> None:
    order: list[str] = []
    started, go = asyncio.Event(), asyncio.Event()
    serving = node.host.serving

    async def slow(uid: str) -> None:
        started.set()
        await go.wait()
        await serving(uid)
        order.append("published")

    node.host.serving = slow  # type: ignore[method-assign]  # this one waits
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(node.driver.publish(node.request))
        await started.wait()
        ending = tasks.create_task(node.driver.unpublish("csi-1", node.target))
        ending.add_done_callback(lambda _: order.append("unpublished"))
        go.set()
    assert order == ["published", "unpublished"]
    assert not node.place.exists()


async def test_tokens_are_not_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await node.driver.publish(node.request)
    await node.refused(readonly=False)
    await node.driver.unpublish("csi-1", node.target)
    assert "volume published" in caplog.text
    assert "tok-1" not in caplog.text


async def test_a_directory_that_cannot_be_cleared_is_tried_again(node: Node) -> None:
    await node.driver.publish(node.request)
    (node.place / SOCKET_NAME).unlink()
    (node.place / SOCKET_NAME).mkdir()  # unlink refuses a directory
    with pytest.raises(VolumeError) as caught:
        await node.driver.unpublish("csi-1", node.target)
    assert (caught.value.code, caught.value.category) == (VolumeCode.TARGET, Category.UNAVAILABLE)
