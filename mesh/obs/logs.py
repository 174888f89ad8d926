"""Structured logs: JSON lines in services, a human form on a terminal, no secrets in either.

Everything goes through the standard `logging` tree and one handler, so what grpc, gunicorn and
werkzeug say comes out in the same form. Two lines of defence keep secrets out: fields with a telling
name are replaced whole, and any text is searched for private keys (PEM) and JSON web tokens. Control
characters in text cannot forge a line or drive a terminal.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import logging
import re
import sys
import time
import traceback
from typing import Any, Final, TextIO

import orjson

from mesh.obs.redact import clean, clean_fields

LEVELS: Final = ("debug", "info", "warning", "error")
_OWN = ("ca", "examples", "injector", "mesh", "meshctl", "nodeagent")
_FIELDS = "gatehouse_fields"
_MAX_TRACEBACK_FRAMES = 30
_ESCAPED = re.compile(r"[\x00-\x1f]")
_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS


class Log:
    """A logger of one module. Messages are constant sentences; what varies goes into fields.

    Field values may be of any type: JSON types stay as they are, a `MeshError` becomes its code and
    private detail, bytes only their length, anything else its `str`.
    """

    __slots__ = ("_bound", "_logger")

    def __init__(self, logger: logging.Logger, bound: dict[str, Any]) -> None:
        self._logger = logger
        self._bound = bound

    def bind(self, **fields: Any) -> Log:
        """A logger that adds `fields` to every line."""
        return Log(self._logger, {**self._bound, **fields})

    def debug(self, message: str, /, **fields: Any) -> None:
        """What only someone debugging wants to see."""
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        """A normal event that an operator may look for."""
        self._write(logging.INFO, message, fields)

    def facts(self, message: str, fields: dict[str, Any]) -> None:
        """Like `info`, for what is written at the rate of requests: the fields are not searched.

        Args:
            fields: JSON types and times only. Names say nothing secret; text that a caller chose has
                gone through `redact.clean`.
        """
        self._write(logging.INFO, message, fields, clean=True)

    def warning(self, message: str, /, **fields: Any) -> None:
        """Something is wrong and handled; nobody needs to get up."""
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        """Something is wrong and somebody must act."""
        self._write(logging.ERROR, message, fields)

    def exception(self, message: str, /, **fields: Any) -> None:
        """Like `error`, with the traceback of the exception being handled."""
        self._write(logging.ERROR, message, fields, traceback=True)

    def _write(
        self,
        level: int,
        message: str,
        fields: dict[str, Any],
        *,
        traceback: bool = False,
        clean: bool = False,
    ) -> None:
        if not self._logger.isEnabledFor(level):
            return
        all_fields = {**self._bound, **fields} if self._bound else fields
        handlers = _ROOT.handlers
        if clean and not self._bound and len(handlers) == 1 and type(handlers[0]) is _Handler:
            handlers[0].line(level, self._logger.name, message, all_fields)
        else:
            self._logger.handle(_Record(self._logger.name, level, message, all_fields, traceback=traceback))


_BLANK: Final = vars(logging.LogRecord("", 0, "", 0, "%s", (), None)) | {
    "process": None,
    "processName": None,
    "thread": None,
    "threadName": None,
}
_BORN: Final = time.time()
_ROOT: Final = logging.getLogger()


class _Record(logging.LogRecord):
    """A record without the caller's place, thread and process.

    No form shows them, and to look them up costs more than all the rest of a line.
    """

    def __init__(
        self, name: str, level: int, message: str, fields: dict[str, Any], *, traceback: bool
    ) -> None:
        now = time.time()
        # The message is passed as an argument: a `%` in it means nothing.
        vars(self).update(
            _BLANK,
            name=name,
            args=(message,),
            levelno=level,
            levelname=logging.getLevelName(level),
            exc_info=sys.exc_info() if traceback else None,
            created=now,
            msecs=now % 1 * 1000,
            relativeCreated=(now - _BORN) * 1000,
            **{_FIELDS: fields},
        )


def logger(name: str) -> Log:
    """The logger of that name, e.g. `ca.service`."""
    return Log(logging.getLogger(name), {})


def configure(
    *, service: str, level: str = "info", json: bool | None = None, stream: TextIO | None = None
) -> None:
    """Send every log of the process to one stream in one form.

    Handlers that other libraries put on their loggers are removed. May be called again.

    Args:
        service: value of the `service` field, e.g. `ca`.
        level: one of `LEVELS`; applies to our own loggers. Libraries log from `warning` up, unless
            the level is `debug`, which they then follow from `info` up.
        json: None means JSON unless the stream is a terminal.
        stream: defaults to standard error.

    Raises:
        ValueError: when the level is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}: allowed are {', '.join(LEVELS)}")
    target = sys.stderr if stream is None else stream
    as_json = not target.isatty() if json is None else json
    handler = _Handler(target)
    handler.setFormatter(JsonFormatter(service) if as_json else HumanFormatter())
    handler.setLevel(getattr(logging, level.upper()))
    root = logging.getLogger()
    for name in list(logging.root.manager.loggerDict):
        _adopt(logging.getLogger(name))
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, _Handler):
            old.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO if level == "debug" else logging.WARNING)
    for own in _OWN:
        logging.getLogger(own).setLevel(level.upper())


def gunicorn_config(*, service: str, level: str = "info") -> dict[str, Any]:
    """A `logconfig_dict` for gunicorn, which replaces all handlers when it starts."""
    loggers = {
        name: {"level": level.upper(), "handlers": [], "propagate": True}
        for name in ("gunicorn.error", "gunicorn.access", *_OWN)
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"gatehouse": {"()": JsonFormatter, "service": service}},
        "handlers": {"gatehouse": {"()": _Handler, "stream": sys.stderr, "formatter": "gatehouse"}},
        "root": {"level": "WARNING", "handlers": ["gatehouse"]},
        "loggers": loggers,
    }


def _adopt(other: logging.Logger) -> None:
    for handler in list(other.handlers):
        other.removeHandler(handler)
    other.propagate = True


class _Handler(logging.StreamHandler[TextIO]):
    """Writes whole lines; a line that cannot be written is dropped, it never stops the caller."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.terminator = ""

    def line(self, level: int, name: str, message: str, fields: dict[str, Any]) -> None:
        """Write clean fields straight away, without a record: a record costs more than the line."""
        if level < self.level:
            return
        form = self.formatter
        if not isinstance(form, JsonFormatter):
            self.handle(_Record(name, level, message, fields, traceback=False))
            return
        text = form.line(time.time(), logging.getLevelName(level), name, message, fields)
        with self.lock or contextlib.nullcontext():
            try:
                self.stream.write(text)
                self.stream.flush()
            except (OSError, ValueError):
                return  # as `handleError`: a line that cannot be written is dropped

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """A full disk or a closed pipe must not end a service."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts, level, service, logger, msg, then the fields.

    A field whose name is taken by one of these is written with a trailing underscore.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The line, with its end."""
        return self.line(record.created, record.levelname, record.name, _message(record), _fields(record))

    def line(self, created: float, level: str, name: str, message: str, fields: dict[str, Any]) -> str:
        """The line of a message and fields that are clean."""
        line: dict[str, Any] = {
            "ts": _timestamp(created),
            "level": level.lower(),
            "service": self._service,
            "logger": name,
            "msg": message,
        }
        if not line.keys().isdisjoint(fields):
            fields = {f"{name}_" if name in line else name: value for name, value in fields.items()}
        line |= fields
        return orjson.dumps(line, option=_OPTIONS).decode()


class HumanFormatter(logging.Formatter):
    """`12:03:04.123 warning ca.service: message  field=value ...`"""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with its end; a traceback follows indented."""
        fields = _fields(record)
        trace = str(fields.pop("exception", ""))
        clock = _timestamp(record.created)[11:23]
        text = f"{clock} {record.levelname.lower():7} {record.name}: {_one_line(_message(record))}"
        text += "".join(f"  {_one_line(name)}={_show(value)}" for name, value in fields.items())
        return text + "\n" + "".join(f"    {_one_line(line)}\n" for line in trace.splitlines())


def _timestamp(created: float) -> str:
    """RFC 3339 in UTC, microseconds."""
    second, rest = divmod(round(created * 1e6), 1_000_000)
    return f"{_second(second)}.{rest:06d}Z"


@functools.lru_cache(maxsize=2)
def _second(at: int) -> str:
    """Lines of one second share its text, which costs more than the rest of a timestamp."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _message(record: logging.LogRecord) -> str:
    try:
        return clean(record.getMessage())
    except (TypeError, ValueError, KeyError):
        # A library's format string does not fit its arguments: say what can be said.
        return clean(f"{record.msg} {record.args!r}")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = clean_fields(getattr(record, _FIELDS, {}))
    if record.exc_info and record.exc_info[1] is not None:
        lines = traceback.format_exception(record.exc_info[1], limit=-_MAX_TRACEBACK_FRAMES)
        fields["exception"] = clean("".join(lines))
    return fields


def _one_line(text: str) -> str:
    return _ESCAPED.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    text = _one_line(text)
    return f'"{text}"' if not text or " " in text else text
