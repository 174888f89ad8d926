"""Key sets of all RequestAuthentications, fetched once for the mesh and published in one ConfigMap.

`data["keysets.json"]` is an object: address (`JwtRule.keys_address`) -> canonical key set, as text. A failed
fetch keeps the last good set, for as long as somebody names the address; a new leader starts from what
is published.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import orjson

from injector.jwks_fetch import FetchError
from injector.published import PublishedText
from mesh.errors import Category, Code, MeshError
from mesh.obs.logs import logger
from mesh.policy.jwks import JwksError, parse_key_set

DATA_KEY: Final = "keysets.json"
MAX_ADDRESSES: Final = 500
MAX_TOTAL: Final = 900 << 10  # a ConfigMap holds 1 MiB
_FETCHES: Final = 8
_FIRST_RETRY, _LONGEST_RETRY = 5.0, 300.0

_log = logger(__name__)


class JwksUpkeepCode(Code):
    """Why key sets are not published."""

    TOO_LARGE = "jwks_config_map_too_large"


class JwksUpkeepError(MeshError):
    """Key sets that cannot be published; the published ones stay."""


@dataclass(slots=True)
class _State:
    """One address.

    Attributes:
        keys: last good set, empty when there never was one.
        due: monotonic time of the next fetch.
    """

    keys: str = ""
    due: float = 0.0
    failures: int = 0


class JwksUpkeep:
    """Keeps the ConfigMap.

    Args:
        fetch: `Fetcher.fetch`.
        addresses: every address of keys that is in use; None while that is not known yet.
        interval: seconds between fetches of one address.
        told: result of each fetch: `ok`, or the code of the failure.
    """

    def __init__(
        self,
        published: PublishedText,
        *,
        fetch: Callable[[str], str],
        addresses: Callable[[], Iterable[str] | None],
        interval: float,
        told: Callable[[str], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._text = published
        self._fetch = fetch
        self._addresses = addresses
        self._interval = interval
        self._told = told
        self._monotonic = monotonic
        self._rng = rng or random.SystemRandom()
        self._states: dict[str, _State] = {}
        self._published: dict[str, str] = {}

    @property
    def published(self) -> int:
        """Key sets in the ConfigMap."""
        return len(self._published)

    @property
    def stale(self) -> int:
        """Addresses whose last fetch failed."""
        return sum(state.failures > 0 for state in self._states.values())

    def step(self, allowed: Callable[[], bool] = lambda: True) -> None:
        """Fetch what is due and publish what has changed.

        Args:
            allowed: asked before the write: is this still the leader?

        Raises:
            KubeError: the ConfigMap cannot be read or written.
            JwksUpkeepError: it would be too large.
        """
        addresses = self._addresses()
        if addresses is None:
            return  # an empty answer now would throw good sets away
        self._published = _decoded(self._text.read())  # others may have emptied it
        wanted = sorted(set(addresses))
        if len(wanted) > MAX_ADDRESSES:
            _log.error("too many addresses of key sets", found=len(wanted), allowed=MAX_ADDRESSES)
            wanted = wanted[:MAX_ADDRESSES]
        self._states = {
            url: self._states.get(url) or _State(keys=self._published.get(url, "")) for url in wanted
        }
        now = self._monotonic()
        self._fetch_all([url for url, state in self._states.items() if state.due <= now])
        keys = {url: state.keys for url, state in self._states.items() if state.keys}
        if keys != self._published and allowed():
            self._write(keys)
            self._published = keys

    def _fetch_all(self, urls: list[str]) -> None:
        """Hosts side by side, the addresses of one host one after the other."""
        by_host: dict[str, list[str]] = {}
        for url in urls:
            by_host.setdefault(urlsplit(url).netloc, []).append(url)
        if not by_host:
            return
        with ThreadPoolExecutor(_FETCHES, thread_name_prefix="jwks") as pool:
            for results in pool.map(lambda host: [self._one(url) for url in host], by_host.values()):
                for url, result in results:
                    self._take(url, result)

    def _one(self, url: str) -> tuple[str, str | FetchError]:
        try:
            return url, self._fetch(url)
        except FetchError as error:
            return url, error

    def _take(self, url: str, result: str | FetchError) -> None:
        state, now = self._states[url], self._monotonic()
        if isinstance(result, FetchError):
            state.failures = min(state.failures + 1, 20)
            retry = min(_LONGEST_RETRY, self._interval, _FIRST_RETRY * 2.0 ** (state.failures - 1))
            state.due = now + self._rng.uniform(0.5, 1.0) * retry
            self._told(str(result.code))
            kept = "the last good set is kept" if state.keys else "tokens of this issuer are refused"
            _log.warning("a key set was not fetched", url=url[:300], error=result, kept=kept)
            return
        state.keys, state.failures = result, 0
        state.due = now + self._interval * self._rng.uniform(0.9, 1.0)
        self._told("ok")

    def _write(self, keys: Mapping[str, str]) -> None:
        text = orjson.dumps(keys, option=orjson.OPT_SORT_KEYS).decode()
        if len(text) > MAX_TOTAL:
            raise JwksUpkeepError(
                JwksUpkeepCode.TOO_LARGE,
                f"all key sets together have {len(text)} bytes, a ConfigMap takes {MAX_TOTAL}; next: remove"
                " RequestAuthentications, or keys at the issuers",
                category=Category.FAILED_PRECONDITION,
            )
        self._text.write(text)
        _log.info("key sets published", sets=len(keys), bytes=len(text))


def _decoded(text: str) -> dict[str, str]:
    """What is published, as far as it is what we would publish: others may have edited it."""
    try:
        data = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {}
    found = {}
    for url, keys in data.items() if isinstance(data, dict) else ():
        try:
            found[url] = parse_key_set(keys).json
        except (JwksError, TypeError):
            continue
    return found
