"""Trust bundles as values: one name for one set of roots, whatever order they are told in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def bundle_digest(roots_der: Iterable[bytes]) -> str:
    """SHA-256 over the sorted SHA-256 values of the roots' DER, lower-case hexadecimal.

    Two bundles with the same roots have the same digest. Empty for no roots.
    """
    digests = sorted({hashlib.sha256(der).digest() for der in roots_der})
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else ""
