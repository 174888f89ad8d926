"""What Chart.yaml says about the chart is true."""

from __future__ import annotations

import base64
import tomllib
from typing import Any

import yaml

from tests.fakes.helm import CHART, ROOT, render

CHART_FILE: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
NOTES: dict[str, str] = CHART_FILE["annotations"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_icon_is_the_drawing() -> None:
    head, _, data = CHART_FILE["icon"].partition(",")
    assert head == "data:image/svg+xml;base64"
    assert base64.b64decode(data) == (ROOT / "docs" / "img" / "icon.svg").read_bytes()


def test_licence_and_version_are_the_projects() -> None:
    assert NOTES["artifacthub.io/license"] == PROJECT["license"]
    assert PROJECT["version"].partition(".dev")[0] == CHART_FILE["version"] == CHART_FILE["appVersion"]
    assert NOTES["artifacthub.io/prerelease"] == str(CHART_FILE["version"].startswith("0.")).lower()


def test_the_listed_kinds_are_those_that_are_installed() -> None:
    listed = yaml.safe_load(NOTES["artifacthub.io/crds"])
    found = {
        (item["metadata"]["name"], item["spec"]["names"]["kind"], version["name"])
        for item in render().all("CustomResourceDefinition")
        for version in item["spec"]["versions"]
        if version["storage"]
    }
    assert {(item["name"], item["kind"], item["version"]) for item in listed} == found
