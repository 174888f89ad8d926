"""gunicorn under the webhook: worker processes of threads, TLS, http/1.1, bounded slowness.

The parent forks: it starts no thread, opens no connection and loads no gRPC. Each worker makes its
own `Runtime`. Signals: TERM drains, INT stops at once, HUP makes the workers look at their files now.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped] # has no types
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped] # has no types
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped] # has no types

from injector.config import InjectorConfig
from injector.serving import PatientSocket
from mesh.errors import Category, Code, MeshError
from mesh.obs import logs

if TYPE_CHECKING:
    from injector.runtime import Runtime

WORKER_SILENCE_SECONDS: Final = 30
STOP_MARGIN_SECONDS: Final = 10
MULTIPROC: Final = "PROMETHEUS_MULTIPROC_DIR"

_log = logs.logger(__name__)


class ServeCode(Code):
    """Why the webhook cannot be served."""

    METRICS_DIR = "serve_metrics_dir"


class ServeError(MeshError):
    """The process cannot start."""


class InjectorArbiter(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """Keeps the number of workers, and hands HUP on to them."""

    def handle_hup(self) -> None:
        """Have the workers look at their files."""
        self.kill_workers(signal.SIGHUP)

    def handle_ttin(self) -> None:
        """The number of workers is configuration."""

    def handle_ttou(self) -> None:
        """As `handle_ttin`."""

    def handle_usr2(self) -> None:
        """No second parent: it could not bind the ports."""


class _Connection(TConn):  # type: ignore[misc] # gunicorn has no types
    """A connection whose first request has a deadline too.

    Attributes:
        patience: seconds for the handshake, and for each head.
        received: monotonic time at which the current request woke the process up.
    """

    patience: float = 5.0
    received: float = 0.0

    def init(self) -> None:
        super().init()
        self.arm()

    def arm(self) -> None:
        """The head of the next request is due from now on."""
        if isinstance(self.sock, PatientSocket):
            self.sock.deadline = time.monotonic() + self.patience


class InjectorWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """Gives a thread to connections that have something to say, and a deadline to what they say."""

    def init_signals(self) -> None:
        super().init_signals()
        signal.signal(signal.SIGHUP, self._handle_reload)
        signal.siginterrupt(signal.SIGHUP, False)

    def accept(self, listener: Any) -> None:
        """As the base, but a new connection waits for its first byte without a thread."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        self.nr_conns += 1
        conn = _Connection(self.cfg, client, address, listener.getsockname())
        conn.patience = self.app.config.limits.header_wait.total_seconds()
        conn.timeout = time.monotonic() + conn.patience
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def enqueue_req(self, conn: Any) -> None:
        conn.received = time.monotonic()
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """In a thread: one request. Its head has a deadline from the moment the thread has it."""
        conn.arm()
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """The head is there; the body has a deadline of its own."""
        conn.sock.deadline = time.monotonic() + self.app.config.limits.body_wait.total_seconds()
        conn.sock.received = conn.received
        return super().handle_request(req, conn)

    def handle_exit(self, sig: int, frame: Any) -> None:
        # Deferred to the main loop: a signal handler must not wait for a lock.
        self.method_queue.defer(self._drain, sig, frame)

    def _drain(self, sig: int, frame: Any) -> None:
        """Fail readiness, go on serving until nobody sends any more, then stop."""
        self.app.runtime.drain()
        leave = partial(self.method_queue.defer, partial(super().handle_exit, sig, frame))
        timer = threading.Timer(self.app.config.limits.drain.total_seconds(), leave)
        timer.daemon = True
        timer.start()

    def _handle_reload(self, _sig: int, _frame: Any) -> None:
        self.method_queue.defer(
            threading.Thread(target=self.app.runtime.reload, name="reload", daemon=True).start
        )


class InjectorApplication(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """The webhook under gunicorn."""

    def __init__(self, config: InjectorConfig, file: Path | None) -> None:
        self.config = config
        self._file = file
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
        for name, value in gunicorn_settings(self.config, self._context).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """In the worker: make the parts; what cannot work ends the whole program with a sentence."""
        from injector.runtime import Runtime

        logs.configure(service="injector", level=self.config.log_level, json=self.config.log_json)
        try:
            self._runtime = Runtime(self.config, self._file)
        except (MeshError, OSError) as error:
            _log.error("the webhook cannot start", error=error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        return self._runtime.app

    def run(self) -> None:
        """Run until told to stop; ends by SystemExit."""
        InjectorArbiter(self).run()

    def _context(self, _conf: Any, _default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        return self.runtime.serving.context()


def prepare_metrics(config: InjectorConfig) -> None:
    """Before anything loads the metrics library: several workers add up in an empty directory.

    Raises:
        ServeError: the directory cannot be made.
    """
    if config.workers == 1:
        os.environ.pop(MULTIPROC, None)
        return
    directory = config.metrics_dir
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ServeError(
            ServeCode.METRICS_DIR,
            f"metrics_dir {directory} cannot be made: {error.strerror}; next: mount a directory in memory",
            category=Category.FAILED_PRECONDITION,
        ) from error
    os.environ[MULTIPROC] = str(directory)


def gunicorn_settings(config: InjectorConfig, context: Callable[..., ssl.SSLContext]) -> dict[str, Any]:
    """Every setting that differs from gunicorn's default."""
    limits = config.limits
    return {
        "bind": [str(config.listen.https)],
        "workers": config.workers,
        "worker_class": InjectorWorker,
        "threads": limits.threads,
        "worker_connections": limits.connections,
        "keepalive": limits.keep_alive,
        "timeout": WORKER_SILENCE_SECONDS,
        "graceful_timeout": int(limits.drain.total_seconds()) + STOP_MARGIN_SECONDS,
        "http_protocols": "h1",
        "limit_request_line": 2048,
        "limit_request_fields": 48,
        "limit_request_field_size": 8190,
        "forwarded_allow_ips": "",
        "secure_scheme_headers": {},
        "control_socket_disable": True,
        "proc_name": "gatehouse-injector",
        "preload_app": False,
        "worker_tmp_dir": "/dev/shm",  # noqa: S108 - a heartbeat file without a name
        # Any file turns TLS on; what is served comes from the hook.
        "certfile": "/dev/null",
        "ssl_context": context,
        "logconfig_dict": _logging(config),
        "post_worker_init": _started,
        "worker_exit": lambda _arbiter, worker: _stop(worker),
        "child_exit": _ended,
    }


def _logging(config: InjectorConfig) -> dict[str, Any]:
    logging = logs.gunicorn_config(service="injector", level=config.log_level)
    logging["loggers"]["gunicorn.access"]["level"] = "ERROR"
    return logging


def _started(worker: Any) -> None:
    worker.app.runtime.start(worker.sockets[0].getsockname()[1])


def _stop(worker: Any) -> None:
    runtime = worker.app._runtime  # noqa: SLF001 - None when the worker failed before it had parts
    if runtime is not None:
        runtime.stop()


def _ended(_arbiter: Any, worker: Any) -> None:
    """In the parent: a dead worker's gauges no longer count."""
    directory = os.environ.get(MULTIPROC)
    if directory:
        for file in Path(directory).glob(f"gauge_live*_{worker.pid}.db"):
            file.unlink(missing_ok=True)
