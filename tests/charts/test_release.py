"""`make release`: the list of images is the chart's, the package is the chart, and the sums are right."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.helm import CHART, ROOT, helm, helm_path, render


def release(dist: Path, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`scripts/release` with these settings, and none of this shell's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("IMAGE_")}
    return subprocess.run(
        [ROOT / "scripts" / "release", *parts],
        env={**inherited, "HELM": str(helm_path()), "DIST": str(dist), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def images(item: Any) -> set[str]:
    """Every image in an object, those in settings files too."""
    if isinstance(item, dict):
        own = {item[key] for key in ("image", "proxy_image") if isinstance(item.get(key), str)}
        return own.union(*map(images, item.values()))
    if isinstance(item, list):
        return set().union(*map(images, item))
    if isinstance(item, str) and "proxy_image:" in item:
        return images(yaml.safe_load(item))
    return set()


@pytest.mark.parametrize(
    ("settings", "prefix", "tag"),
    [
        ({}, "", "0.1.0"),
        ({"IMAGE_REGISTRY": "r.example:5000/team", "IMAGE_TAG": "1e3"}, "r.example:5000/team/", "1e3"),
        ({"IMAGE_REGISTRY": "r.example/", "IMAGE_TAG": "20250101"}, "r.example/", "20250101"),
    ],
    ids=["defaults", "port", "number"],
)
def test_the_list_is_what_the_chart_asks_for(
    tmp_path: Path, settings: dict[str, str], prefix: str, tag: str
) -> None:
    done = release(tmp_path, "images", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{tmp_path}/images.txt", f"{tmp_path}/SHA256SUMS"]
    listed = (tmp_path / "images.txt").read_text().splitlines()
    values = {"image": {"registry": settings.get("IMAGE_REGISTRY", ""), "tag": settings.get("IMAGE_TAG", "")}}
    assert set(listed) == images(list(render(values=values, with_tests=True).objects))
    assert listed == sorted(f"{prefix}gatehouse/{name}:{tag}" for name in ("control", "proxy"))


def test_the_package_is_the_chart_and_the_sums_are_right(tmp_path: Path) -> None:
    (tmp_path / "gatehouse-0.0.9.tgz").write_bytes(b"an older one")
    done = release(tmp_path, "images", "chart")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"images.txt", "gatehouse-0.1.0.tgz", "SHA256SUMS"}
    package, options = tmp_path / "gatehouse-0.1.0.tgz", ("--namespace=istio-system", "--kube-version=1.32.0")
    assert helm("template", "gatehouse", str(package), *options) == helm(
        "template", "gatehouse", str(CHART), *options
    )
    check = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path, check=True, timeout=10, capture_output=True)
    (tmp_path / "images.txt").write_text("others\n")
    done = subprocess.run(check, cwd=tmp_path, check=False, timeout=10, capture_output=True, text=True)
    assert "images.txt: FAILED" in done.stdout


@pytest.mark.parametrize(
    ("parts", "settings", "says"),
    [
        (["archive"], {}, "next: IMAGE_REGISTRY=registry.example.com/team"),
        (["archive"], {"IMAGE_REGISTRY": "r.example", "IMAGE_TOOL": "x"}, "next: docker or buildah"),
        (["everything"], {}, "there is no part everything; there are: images, chart, archive"),
        (["images"], {"HELM": "no-helm"}, "next: install Helm 3.10 or newer"),
        (["images"], {"IMAGE_TAG": "a b"}, "image.tag"),
    ],
    ids=["short-names", "tool", "part", "no-helm", "bad-tag"],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    tmp_path: Path, parts: list[str], settings: dict[str, str], says: str
) -> None:
    done = release(tmp_path, *parts, **settings)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stdout == ""
