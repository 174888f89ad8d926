"""Users of an OpenShift namespace: the range that its security context constraints allow.

`restricted` gives the applications of a namespace the first user of the range in an annotation, and refuses
users outside of it, the usual one of the proxy too. The proxy then takes the last one: far from the
applications' and the same in every pod of the namespace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

UID_RANGE: Final = "openshift.io/sa.scc.uid-range"
_RANGE: Final = re.compile(r"([0-9]{1,10})([/-])([0-9]{1,10})")
_MAX_UID: Final = 2**31 - 1


def proxy_user(namespace_annotations: Mapping[str, str]) -> int | None:
    """The proxy's user in such a namespace; None when it has no range.

    Raises:
        ValueError: the annotation is neither START/LENGTH nor START-END.
    """
    text = namespace_annotations.get(UID_RANGE)
    if text is None:
        return None
    found = _RANGE.fullmatch(text.strip())
    if found is not None:
        first, second = int(found[1]), int(found[3])
        last = first + second - 1 if found[2] == "/" else second
        if 0 < first <= last <= _MAX_UID:
            return last
    raise ValueError(
        f"namespace annotation {UID_RANGE} is {text[:60]!r}; expected START/LENGTH or START-END, e.g."
        " 1000650000/10000; next: have a cluster administrator put it right"
    )
