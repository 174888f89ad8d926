"""Which pod a process belongs to, from its control groups: as kubelets spell them.

| driver | component of the path |
| --- | --- |
| cgroupfs | `pod12345678-1234-1234-1234-123456789abc` |
| systemd | `kubepods-burstable-pod12345678_1234_1234_1234_123456789abc.slice` |

Both occur with version 1 (a line for each hierarchy) and version 2 (one line, `0::/...`), below any root,
and as a path that begins with `/..` when the reader has a control group namespace of its own.
"""

from __future__ import annotations

import re

_UID = r"[0-9a-f]{8}(?P<s>[-_])[0-9a-f]{4}(?P=s)[0-9a-f]{4}(?P=s)[0-9a-f]{4}(?P=s)[0-9a-f]{12}"
POD_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_COMPONENT = re.compile(rf"(?:[a-z0-9-]*kubepods(?:-[a-z]+)?-)?pod(?P<uid>{_UID})(?:\.slice)?")
MAX_BYTES = 64 << 10


def pod_uid(cgroup: str) -> str | None:
    """The pod of a process; None for processes of the node, and when hierarchies disagree.

    In each path the outermost pod counts: what is inside of it may have been made by the pod itself.

    Args:
        cgroup: the text of `/proc/PID/cgroup`.
    """
    found = {uid for line in cgroup.splitlines() if (uid := _of_path(line.split(":", 2)[-1])) is not None}
    return found.pop() if len(found) == 1 else None


def _of_path(path: str) -> str | None:
    for component in path.split("/"):
        match = _COMPONENT.fullmatch(component)
        if match:
            return match["uid"].replace("_", "-")
    return None


def state_and_start(stat: str) -> tuple[str, int] | None:
    """State (a letter) and time of start (clock ticks since boot) of a process; None for other texts.

    Args:
        stat: the text of `/proc/PID/stat`; the name in it may hold anything.
    """
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or not re.fullmatch(r"[0-9]{1,20}", fields[19]):
        return None
    return fields[0], int(fields[19])
