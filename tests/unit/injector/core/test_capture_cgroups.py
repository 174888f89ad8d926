"""Control groups as kubelets spell them: both drivers, both versions, seen from inside and from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.core.capture_cgroups import pod_uid, state_and_start

UID = "0b7d1e5c-3f2a-4c7e-9a41-6d5b8f0e2c11"
OTHER = "ffffffff-3f2a-4c7e-9a41-6d5b8f0e2c11"
UNDER = UID.replace("-", "_")
CONTAINER = "3c1f" * 16


@pytest.mark.parametrize(
    "text",
    [
        f"12:memory:/kubepods/burstable/pod{UID}/{CONTAINER}\n1:cpu:/kubepods/burstable/pod{UID}/{CONTAINER}\n0::/\n",
        f"0::/kubepods/besteffort/pod{UID}/{CONTAINER}\n",
        f"0::/kubepods/pod{UID}/{CONTAINER}\n",
        f"0::/node1/kubepods/pod{UID}/{CONTAINER}\n",
        f"0::/../../pod{UID}/{CONTAINER}\n",
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/cri-containerd-{CONTAINER}.scope\n",
        f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{CONTAINER}.scope\n",
        f"0::/../../kubepods-besteffort-pod{UNDER}.slice/cri-containerd-{CONTAINER}.scope/init\n",
        f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDER}.slice/cri-containerd-{CONTAINER}.scope\n",
        f"9:name=systemd:/kubepods/pod{UID}/a:b:c\n",
    ],
    ids=[
        *("v1-cgroupfs", "v2-cgroupfs", "guaranteed", "cgroup-root", "namespaced"),
        *("v2-systemd", "crio", "namespaced-systemd", "kind", "colons"),
    ],
)
def test_the_pod_of_a_process(text: str) -> None:
    assert pod_uid(text) == UID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0::/\n",
        "0::/system.slice/kubelet.service\n",
        f"0::/kubepods/pod{UID[:-1]}/x\n",
        f"0::/kubepods/pod{UID}x/x\n",
        f"0::/kubepods/xpod{UID}/x\n",
        f"0::/kubepods/pod{UID[:8]}_{UID[9:]}/x\n",
        f"0::/user.slice/pod{UID.upper()}/x\n",
        f"2:cpu:/kubepods/pod{UID}/x\n1:memory:/kubepods/pod{OTHER}/x\n",
        "0::/kubepods/pod6f1ed002ab5595859014ebf0951522d9/x\n",
    ],
    ids=[
        *("empty", "root", "node", "short", "longer", "other-name", "mixed", "capitals", "disagree"),
        "static-pod",
    ],
)
def test_no_pod(text: str) -> None:
    assert pod_uid(text) is None


def test_what_a_pod_makes_below_its_own_group_names_nobody_else() -> None:
    assert pod_uid(f"0::/kubepods/pod{UID}/{CONTAINER}/kubepods/pod{OTHER}/x\n") == UID


@given(st.text())
def test_any_text_is_a_uid_or_nothing(text: str) -> None:
    found = pod_uid(text)
    assert found is None or len(found) == 36


STAT = "42 (%s) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 987654 1000 10 18446744073709551615 1 1\n"


@pytest.mark.parametrize("name", ["pause", "a b", ") Z 1 2 3", "(("])
def test_state_and_start(name: str) -> None:
    assert state_and_start(STAT % name) == ("S", 987654)


@pytest.mark.parametrize("text", ["", "42 (x) S 1", "42 (x) " + "a " * 30])
def test_no_stat(text: str) -> None:
    assert state_and_start(text) is None
