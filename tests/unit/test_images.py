"""The Dockerfiles, without building them: what they copy is enough, no more, and pinned."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "examples" / "bookshop" / "Dockerfile"]
OURS = ("ca", "injector", "mesh", "meshctl", "nodeagent")


def stages(text: str) -> dict[str, list[str]]:
    """Stage name -> its instructions, each on one line."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    found: dict[str, list[str]] = {}
    name = "before"
    for line in filter(None, map(str.strip, lines)):
        if line.startswith("FROM"):
            name = line.split()[-1]
        found.setdefault(name, []).append(line)
    return found


def copied(stage: list[str]) -> set[Path]:
    """The Python files of the repository that a stage copies."""
    patterns = [word for line in stage if line.startswith("COPY") for word in line.split()[1:-1]]
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return {file.relative_to(ROOT) for file in files if "__pycache__" not in file.parts}


def imported(file: Path) -> set[Path]:
    """The files of ours that a file imports anywhere, packages' own files included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] in OURS:
            module = Path(*parts).with_suffix(".py")
            packages = {Path(*parts[:depth]) / "__init__.py" for depth in range(1, len(parts) + 1)}
            found |= {path for path in {module, *packages} if (ROOT / path).exists()}
    return found


PROXY = copied(stages(DOCKERFILES[0].read_text(encoding="utf-8"))["proxy-code"])


def test_the_proxy_image_has_all_that_its_programs_import() -> None:
    assert Path("injector/istio_init.py") in PROXY
    missing = {f"{file} imports {needed}" for file in PROXY for needed in imported(file) - PROXY}
    assert not missing, "next: copy it in the Dockerfile's stage proxy-code"


def test_the_proxy_image_has_no_other_code() -> None:
    names = ("istio_init", "istio_validation", "until_finished", "wait_ready", "capture_worker")
    programs = {Path(f"injector/{name}.py") for name in names}
    needed, todo = set(programs), list(programs)
    while todo:
        new = imported(todo.pop()) - needed
        needed |= new
        todo += new
    assert {file for file in PROXY - needed if file.name != "__init__.py"} == set()


def test_the_proxy_image_has_every_program_that_a_pod_is_told_to_run() -> None:
    """`python3 -m injector.x` in the containers that the injector writes."""
    named = {
        match
        for file in (ROOT / "injector" / "core").glob("*.py")
        for match in re.findall(r'"injector\.([a-z_]+)"', file.read_text(encoding="utf-8"))
    }
    assert {Path(f"injector/{name}.py") for name in named} <= PROXY


def test_the_proxy_programs_need_the_standard_library_only() -> None:
    """The image has no environment for Python packages."""
    allowed = {*OURS, "__future__"}
    for file in PROXY:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, f"{file} imports {name}"


def test_control_has_every_package() -> None:
    control = stages(DOCKERFILES[0].read_text(encoding="utf-8"))["control-code"]
    assert {line.split()[1] for line in control if line.startswith("COPY")} == set(OURS)


@pytest.mark.parametrize("file", DOCKERFILES, ids=["gatehouse", "bookshop"])
def test_images_run_as_numbers_and_stop_on_sigterm(file: Path) -> None:
    """runAsNonRoot can only be checked by the kubelet when USER is a number."""
    final = {
        name: lines
        for name, lines in stages(file.read_text(encoding="utf-8")).items()
        if "LABEL" in str(lines)
    }
    assert final
    for lines in final.values():
        (user,) = [line.split()[1] for line in lines if line.startswith("USER")]
        assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", user)
        assert "STOPSIGNAL SIGTERM" in lines


def test_everything_is_installed_from_locks_with_hashes() -> None:
    text = DOCKERFILES[0].read_text(encoding="utf-8")
    assert text.count("-m pip ") == text.count("-m pip --python") == 1
    assert "--require-hashes" in text
    assert "--only-binary :all:" in text
    for lock in ("runtime", "envoy"):
        assert "--hash=sha256:" in (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8")
