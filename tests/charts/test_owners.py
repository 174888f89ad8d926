"""What a cluster can have once is never taken from its owner. The look-up itself needs a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.helm import CHART, HelmError, helm

Refuse = Callable[..., None]
OURS = {"meta.helm.sh/release-name": "gatehouse", "meta.helm.sh/release-namespace": "istio-system"}
ISTIO = {"meta.helm.sh/release-name": "istio-base", "meta.helm.sh/release-namespace": "istio-system"}
ELSEWHERE = {**OURS, "meta.helm.sh/release-namespace": "mesh"}


@pytest.fixture
def refuse(tmp_path: Path) -> Refuse:
    """Ask one of the chart's refusals about an object, as if the API server had given it."""

    def ask(name: str, live: Mapping[str, Any], **values: Any) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(CHART, copy, dirs_exist_ok=True)
        probe = f'{{{{ include "gatehouse.{name}" (dict "root" $ "live" .Values.global.live) }}}}'
        (copy / "templates" / "probe.yaml").write_text(probe)
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump({"global": {"live": dict(live)}, **values}))
        helm("template", "gatehouse", str(copy), "--namespace=istio-system", f"--values={file}")

    return ask


def _object(annotations: Mapping[str, str] | None) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": "thing"}
    return {"metadata": meta if annotations is None else {**meta, "annotations": dict(annotations)}}


@pytest.mark.parametrize("name", ["refuse-second-driver", "refuse-foreign-kind", "refuse-shared-label"])
def test_a_cluster_without_it_is_fine(refuse: Refuse, name: str) -> None:
    refuse(name, {})


@pytest.mark.parametrize("name", ["refuse-second-driver", "refuse-foreign-kind"])
def test_an_upgrade_finds_its_own(refuse: Refuse, name: str) -> None:
    refuse(name, _object(OURS))


def test_a_second_gatehouse_is_refused_by_the_name_of_the_first(refuse: Refuse) -> None:
    with pytest.raises(HelmError, match="release gatehouse of namespace mesh is a Gatehouse already"):
        refuse("refuse-second-driver", _object(ELSEWHERE))
    refuse("refuse-second-driver", _object(None))  # Helm says what is missing for taking it over


@pytest.mark.parametrize(
    ("annotations", "owner"),
    [(ISTIO, "release istio-base of namespace istio-system"), (None, "nobody that Helm")],
)
def test_istios_kinds_are_not_taken_over(
    refuse: Refuse, annotations: Mapping[str, str] | None, owner: str
) -> None:
    with pytest.raises(HelmError, match=f"belongs to {owner}.*--set crds.install=false"):
        refuse("refuse-foreign-kind", _object(annotations))


def _webhook(key: str, operator: str, *values: str) -> dict[str, Any]:
    expression = {"key": key, "operator": operator, **({"values": list(values)} if values else {})}
    return {**_object(ISTIO), "webhooks": [{}, {"namespaceSelector": {"matchExpressions": [expression]}}]}


def test_a_label_that_istio_serves_is_not_served_twice(refuse: Refuse) -> None:
    live = _webhook("istio-injection", "In", "enabled")
    with pytest.raises(HelmError, match=r"istio-injection=enabled already.*injector\.revision"):
        refuse("refuse-shared-label", live)
    with pytest.raises(HelmError, match="serves the label"):
        refuse("refuse-shared-label", live, injector={"revision": "blue", "tags": ["default"]})
    refuse("refuse-shared-label", live, injector={"revision": "gatehouse"})


@pytest.mark.parametrize(
    "expression",
    [("istio.io/rev", "In", "1-24"), ("istio-injection", "DoesNotExist")],
    ids=["revision", "none"],
)
def test_an_istio_with_other_labels_is_no_obstacle(refuse: Refuse, expression: tuple[str, ...]) -> None:
    refuse("refuse-shared-label", _webhook(*expression))
