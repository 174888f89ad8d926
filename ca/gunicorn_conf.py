"""gunicorn as process manager: workers, restarts, graceful stop, HTTPS.

The parent process forks and never imports gRPC, whose threads would not survive. Each worker makes its
own `Runtime` after the fork: gRPC server, key store, serving key. Signals: TERM drains, INT stops at
once, HUP makes the workers read their files again (nothing is restarted).
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped] # has no types
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped] # has no types
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped] # has no types

from ca.config import CaConfig
from mesh.errors import MeshError
from mesh.obs import logs

if TYPE_CHECKING:
    from ca.runtime import Runtime

HTTP_THREADS = 4
WORKER_SILENCE_SECONDS = 30
STOP_MARGIN_SECONDS = 5

_log = logs.logger(__name__)


class CaArbiter(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """Keeps the number of workers, and hands HUP on to them."""

    def handle_hup(self) -> None:
        """Have the workers read keys and token keys again."""
        self.kill_workers(signal.SIGHUP)

    def handle_ttin(self) -> None:
        """The number of workers is configuration: more than one need shared ports from the start."""

    def handle_ttou(self) -> None:
        """As `handle_ttin`."""

    def handle_usr2(self) -> None:
        """No second parent: it could not bind the ports."""


class CaWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """Serves HTTPS itself, and drains gRPC from the moment it is told to stop."""

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGHUP, self._handle_reload)
        signal.siginterrupt(signal.SIGHUP, False)

    def handle_exit(self, sig: int, frame: Any) -> None:
        # Deferred to the main loop: a signal handler must not wait for a lock of gRPC.
        self.method_queue.defer(self.app.runtime.drain)
        super().handle_exit(sig, frame)

    def _handle_reload(self, _sig: int, _frame: Any) -> None:
        self.app.runtime.reload()


class CaApplication(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """The authority under gunicorn."""

    def __init__(self, config: CaConfig) -> None:
        self._config = config
        self._runtime: Runtime | None = None
        super().__init__()

    @property
    def runtime(self) -> Runtime:
        """The parts; in a worker only."""
        if self._runtime is None:
            raise RuntimeError("the parts are made after the fork")
        return self._runtime

    def load_config(self) -> None:
        """Settings of gunicorn; none comes from its own files, arguments or environment."""
        for name, value in gunicorn_settings(self._config, self._context).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """In the worker: make the parts; what cannot work ends the whole program with a sentence."""
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else each failed handshake is a line of text
        from ca.runtime import Runtime  # loads gRPC

        logs.configure(service="ca", level=self._config.log_level, json=self._config.log_json)
        try:
            self._runtime = Runtime(self._config)
        except MeshError as e:
            _log.error("the authority cannot start", error=e)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        return self._runtime.app()

    def run(self) -> None:
        """Run until told to stop; ends by SystemExit."""
        CaArbiter(self).run()

    def _context(self, _conf: Any, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        return self.runtime.serving.context()


def gunicorn_settings(config: CaConfig, context: Callable[..., ssl.SSLContext]) -> dict[str, Any]:
    """Every setting that differs from gunicorn's default."""
    return {
        "bind": [str(config.listen.http)],
        "workers": config.workers,
        "worker_class": CaWorker,
        "threads": HTTP_THREADS,
        "worker_connections": 256,
        "keepalive": 5,
        "timeout": WORKER_SILENCE_SECONDS,
        "graceful_timeout": int(config.drain.total_seconds()) + STOP_MARGIN_SECONDS,
        "limit_request_line": 1024,
        "limit_request_fields": 32,
        "limit_request_field_size": 2048,
        "forwarded_allow_ips": "",
        "secure_scheme_headers": {},
        "control_socket_disable": True,
        "proc_name": "gatehouse-ca",
        "preload_app": False,
        # Any file turns TLS on; what is served comes from the hook.
        "certfile": "/dev/null",
        "ssl_context": context,
        "logconfig_dict": _logging(config),
        "post_worker_init": lambda worker: worker.app.runtime.start(),
        "worker_exit": lambda _arbiter, worker: _stop(worker),
    }


def _logging(config: CaConfig) -> dict[str, Any]:
    """Errors and the start; probes and scrapes are not news."""
    logging = logs.gunicorn_config(service="ca", level=config.log_level)
    logging["loggers"]["gunicorn.access"]["level"] = "ERROR"
    return logging


def _stop(worker: Any) -> None:
    runtime = worker.app._runtime  # noqa: SLF001 - None when the worker failed before it had parts
    if runtime is not None:
        runtime.stop()
