"""Wait for a condition with a deadline, for conditions that nothing announces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def nodeagent_until(condition: Callable[[], object], *, deadline: float = 40.0) -> None:
    """Return when `condition()` is true; TimeoutError when it does not become so."""
    async with asyncio.timeout(deadline):
        while not condition():  # noqa: ASYNC110 - the condition is another process's or a server's state
            await asyncio.sleep(0.005)
