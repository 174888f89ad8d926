"""The tables of rights and values in the documentation are the chart's."""

from __future__ import annotations

import re

import pytest

from tests.charts.chart_docs import README, SECURITY_MODEL, check
from tests.fakes.helm import ROOT, helm, render

INSTALL = ROOT / "docs" / "install.md"


def test_golden_rights() -> None:
    check(SECURITY_MODEL)


def test_golden_values() -> None:
    check(README)


@pytest.mark.parametrize("page", [INSTALL, README], ids=["install", "readme"])
def test_every_value_that_a_page_sets_exists(page: object) -> None:
    """`--set x=y` in the pages renders."""
    text = INSTALL.read_text() if page is INSTALL else README.read_text()
    settings = re.findall(r"--set ([a-zA-Z.]+=[^\s`]+)", text)
    assert settings or page is README
    for setting in settings:
        if setting.endswith("..."):
            continue
        helm("template", "gatehouse", str(README.parent), "--kube-version=1.32.0", f"--set={setting}")


def test_what_is_left_behind_is_what_the_page_says() -> None:
    """Objects that the processes fill are the chart's own, so that they go with it."""
    text = INSTALL.read_text()
    for kind, name in (
        ("Secret", "gatehouse-ca"),
        ("ConfigMap", "gatehouse-ca"),
        ("ConfigMap", "gatehouse-ca-agents"),
        ("ConfigMap", "gatehouse-jwks"),
        ("ConfigMap", "gatehouse-nodes"),
        ("Lease", "gatehouse-ca"),
        ("Lease", "gatehouse-upkeep"),
    ):
        assert render().one(kind, name)
        assert f"{kind} `{name}`" in text
