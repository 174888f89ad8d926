"""The chart with Helm 4: it renders the same objects as with Helm 3.10, and refuses the same values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.test_golden_chart import PRODUCTION
from tests.charts.test_values_schema import PROFILES, REFUSED
from tests.fakes.helm import CHART, HelmError, helm, render
from tests.fakes.helm4 import VERSION, helm4_path, why_not_here

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())


def helm4(*words: str) -> str:
    return helm(*words, program=helm4_path())


def template(directory: Path, values: dict[str, Any], kube: str) -> str:
    file = directory / "values.json"
    file.write_text(json.dumps(values))
    place = ("--namespace=istio-system", f"--kube-version={kube}", "--skip-tests")
    return helm4("template", "gatehouse", str(CHART), *place, f"--values={file}")


def test_it_is_the_version_that_is_said() -> None:
    assert VERSION in helm4("version", "--short")


@pytest.mark.parametrize("profile", PROFILES)
def test_lint(profile: str) -> None:
    values = [f"--values={CHART / profile}"] if profile else []
    output = helm4("lint", "--strict", str(CHART), "--namespace=istio-system", *values)
    assert "0 chart(s) failed" in output
    for level in ("[INFO]", "[WARNING]", "[ERROR]"):
        assert level not in output


@pytest.mark.parametrize("kube", ["1.20.2", "1.32.0"])
@pytest.mark.parametrize("values", [{}, PRODUCTION], ids=["defaults", "production"])
def test_the_release_is_the_same_as_with_helm_3(tmp_path: Path, values: dict[str, Any], kube: str) -> None:
    """In another order: Helm 4 sorts kinds anew."""
    text = template(tmp_path, values, kube)
    found = [item for item in yaml.safe_load_all(text) if item]
    assert sorted(found, key=_name) == sorted(render(values=values, kube=kube).objects, key=_name)
    assert template(tmp_path, values, kube) == text


def _name(item: dict[str, Any]) -> tuple[str, str, str]:
    metadata = item["metadata"]
    return item["kind"], metadata.get("namespace", ""), metadata["name"]


@pytest.mark.parametrize("values", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_values_are_refused_with_the_field(tmp_path: Path, values: dict[str, Any]) -> None:
    """Helm 4 names the place as a JSON pointer; what is not known, or missing, by its name at that place."""
    with pytest.raises(HelmError) as refused:
        template(tmp_path, values, "1.32.0")
    said = str(refused.value)
    assert any(place in said for place in places(values)), said


def places(values: Any, pointer: str = "") -> Iterator[str]:
    """How a message may name the one wrong place: `at '/a/b'`."""
    items = list(values.items() if isinstance(values, dict) else enumerate(values))
    for key, value in items:
        here = f"{pointer}/{key}"
        yield f"at '{pointer}': additional properties '{key}' not allowed"
        yield f"at '{here}': missing propert"
        if isinstance(value, (dict, list)) and value:
            yield from places(value, here)
        else:
            yield f"at '{here}': "
