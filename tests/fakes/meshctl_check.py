"""Runs `meshctl check` against the fake API server and reads its rows."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.kube_api import FakeKube
from tests.fakes.meshctl_cli import Ran, ctl


def check(kube: FakeKube, tmp_path: Path, *arguments: str) -> Ran:
    return ctl("check", *arguments, "--kubeconfig", str(kube.kubeconfig(tmp_path)))


def rows(ran: Ran) -> dict[str, dict[str, object]]:
    return {row["check"]: row for row in json.loads(ran.out)["rows"]}
