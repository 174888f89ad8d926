"""`make docs`: reference pages that are read off the code, and the chart's dashboards and rules of its kinds.

`--check` writes nothing and fails when a page is not what the code says.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import yaml

from ca.metrics import CaMetrics
from injector.metrics import CaptureMetrics, UpkeepMetrics, WebhookMetrics
from mesh.obs.metrics import MetricSet, describe
from mesh.policy.rules import schema_rules
from nodeagent.kube_watches import KubeMetrics
from nodeagent.metrics import AgentMetrics
from scripts.dashboards.files import files

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mesh", "ca", "nodeagent", "injector", "meshctl", "examples")
HEAD = "<!-- Written by `make docs` from the code; edit the docstrings there. -->\n\n"


def modules(package: str) -> Iterator[Path]:
    """The modules of a package, without generated ones, in a stable order."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if "_proto" not in path.parts and path.name != "__init__.py":
            yield path.relative_to(ROOT)


def summary(path: Path) -> str:
    """First sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def modules_page() -> str:
    """Every module with what it says of itself."""
    lines = [HEAD + "# Modules\n"]
    for package in PACKAGES:
        found = list(modules(package))
        if found:
            lines += [f"\n## {package}\n", "| module | what it does |", "| --- | --- |"]
            lines += [f"| `{path}` | {summary(path)} |" for path in found]
    return "\n".join(lines) + "\n"


def codes(path: Path) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Each enum of reason codes in a module: its name, what it is about, its members with comments."""
    source = (ROOT / path).read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Code" for b in node.bases):
            members = []
            for item in node.body:
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant):
                    comment = lines[item.lineno - 1].partition("  # ")[2].partition("noqa")[0]
                    members.append((str(item.value.value), comment.strip()))
            about = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            yield node.name, about, members


def codes_page() -> str:
    """Every reason code: the same word stands in the log, the metric, the event and the CLI."""
    lines = [
        HEAD + "# Reason codes\n",
        "One code names one refusal everywhere: in the log, the metric, the status and the command line. The",
        "sentence beside it says what was found and what to do.",
    ]
    for package in PACKAGES:
        for path in modules(package):
            for _, about, members in codes(path):
                if members:
                    lines += [f"\n## {about.rstrip('.')} (`{path}`)\n"]
                    lines += [
                        f"- `{value}`" + (f": {comment}" if comment else "") for value, comment in members
                    ]
    return "\n".join(lines) + "\n"


PROCESSES: dict[str, tuple[type[MetricSet], ...]] = {
    "Certificate authority": (CaMetrics,),
    "Webhook": (WebhookMetrics,),
    "Upkeep, and the keeper of the webhook's certificate": (UpkeepMetrics,),
    "Node agent": (AgentMetrics, KubeMetrics),
    "Capture agent": (CaptureMetrics,),
}


def metrics_page() -> str:
    """Every metric of every process."""
    lines = [
        HEAD + "# Metrics\n",
        "Labels' values come from small closed sets: codes, kinds, and the names of a node's own workloads.",
        "All processes but the webhook also show `process_*` (memory, CPU time, start, open files).",
    ]
    for process, sets in PROCESSES.items():
        lines += [f"\n## {process}\n", "| metric | kind | labels | what it counts |"]
        lines.append("| --- | --- | --- | --- |")
        for doc in sorted((doc for one in sets for doc in describe(one)), key=lambda doc: doc.name):
            text = doc.help.replace("|", "\\|")
            lines.append(f"| `{doc.name}` | {doc.kind} | {', '.join(doc.labels) or '-'} | {text} |")
    return "\n".join(lines) + "\n"


def crd_rules() -> str:
    """The CEL rules of the policy kinds, for the chart."""
    head = "# Written by `make docs` from mesh/policy/rules.py; templates/crds.yaml places them.\n"
    return head + yaml.safe_dump(schema_rules(), width=110, allow_unicode=False)


PAGES: dict[str, Callable[[], str]] = {
    **{name: partial(str, text) for name, text in files().items()},
    "charts/gatehouse/files/crd-rules.yaml": crd_rules,
    "docs/reference/modules.md": modules_page,
    "docs/reference/codes.md": codes_page,
    "docs/reference/metrics.md": metrics_page,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which are not as the code is."""
    stale = []
    for name, page in PAGES.items():
        path, text = ROOT / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in stale:
        sys.stdout.write(
            f"{name}: {'is not as the code is; next: make docs' if '--check' in arguments else 'written'}\n"
        )
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
