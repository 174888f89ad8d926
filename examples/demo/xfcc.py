"""The `x-forwarded-client-cert` header: how the server's proxy tells its application who called."""

from __future__ import annotations

import re

_PARTS = re.compile(r'(?:[^,;"]|"(?:[^"\\]|\\.)*")+|[,;]')


def elements(values: list[str]) -> list[dict[str, str]]:
    """The elements of the header's values, each as a mapping of its fields."""
    found: list[dict[str, str]] = []
    for value in values:
        found.append({})
        for part in _PARTS.findall(value):
            if part == ",":
                found.append({})
            elif part != ";":
                name, _, text = part.partition("=")
                found[-1][name.strip()] = text.strip('"')
    return found


def peers(values: list[str]) -> str:
    """Identities of the callers, one for each element; `none` when there is no element."""
    return ", ".join(element.get("URI", "no URI") for element in elements(values)) or "none"
