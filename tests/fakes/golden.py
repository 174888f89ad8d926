"""Golden files: the expected output of rendering, reviewed as data, compared by meaning."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).resolve().parents[1] / "golden"


def updating() -> bool:
    """`UPDATE_GOLDEN=1`, which CI refuses: a golden file is approved by a person who read the diff."""
    wanted = os.environ.get("UPDATE_GOLDEN", "") == "1"
    assert not (wanted and os.environ.get("CI")), "golden files are not rewritten in CI"
    return wanted


def semantic_diff(expected: Any, actual: Any, *, name: str = "golden") -> str:
    """Empty when two JSON-like values are equal, else a diff of their canonical form."""
    if expected == actual:
        return ""
    old, new = (_dump(value).splitlines() for value in (expected, actual))
    return "\n".join(
        difflib.unified_diff(old, new, f"{name} (expected)", f"{name} (actual)", lineterm="", n=4)
    )


def check_golden(name: str, actual: Any, *, directory: Path = DIRECTORY) -> None:
    """Compare with `tests/golden/<name>`, which ends in .json, .yaml or .txt.

    JSON and YAML are compared as data, so that layout and key order do not matter.
    """
    path = directory / name
    if updating():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual if path.suffix == ".txt" else _dump(actual, path.suffix))
        return
    assert path.exists(), f"{path} is missing; write it with `make golden` and read the diff"
    expected = _load(path)
    difference = semantic_diff(expected, actual, name=name)
    assert not difference, f"{difference}\nif this is right: make golden"


def _load(path: Path) -> Any:
    text = path.read_text()
    match path.suffix:
        case ".json":
            return json.loads(text)
        case ".yaml":
            return yaml.safe_load(text)
        case ".txt":
            return text
        case _:
            raise ValueError(f"golden file {path.name}: must end in .json, .yaml or .txt")


def _dump(value: Any, suffix: str = ".json") -> str:
    if isinstance(value, str):
        return value
    if suffix == ".yaml":
        return str(yaml.safe_dump(value, sort_keys=True, width=110))
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
