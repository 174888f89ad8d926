"""Typed settings: a file, the environment and the command line become one frozen dataclass.

A settings class is a frozen, keyword-only dataclass whose fields are made with `setting`::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class CaSettings:
        listen: str = setting("Address of the CSR API.", default="0.0.0.0:15012")
        leaf_lifetime: timedelta = setting("Lifetime of workload certificates.", default=timedelta(hours=24))
        tls: TlsSettings = setting("Serving certificate.", default_factory=TlsSettings)

    settings = load(CaSettings, file=path, env=os.environ, env_prefix="GATEHOUSE_CA_", overrides={})

Precedence: overrides, then environment, then file, then default. Fields may be `str`, `int`, `float`,
`bool`, `pathlib.Path`, an enum, `datetime.timedelta` (written `24h`, `90s`, `1h30m`, `250ms`), a nested
settings class, `tuple[X, ...]`, `X | None`, or any type with `parse=`.

Names: the file (YAML) nests mappings with the field names; the environment variable of `tls.cert_file`
is the prefix and `TLS__CERT_FILE`; an override is written `tls.cert_file`. Lists in the environment are
separated by commas. A name that nobody knows is refused, with the nearest known one: a typo in a
security setting must not mean its default. All problems are reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from mesh import yamldoc
from mesh.errors import Category, Code, MeshError
from mesh.settings_values import Bounds, Found, Wrong, allowed_text, format_value, item_type, read
from mesh.yamldoc import FieldPath, format_path

T = TypeVar("T")

_DOC: Final = "gatehouse_setting"
# What the kubelet adds to every container for a Service whose name makes our prefix, e.g. the
# Service `gatehouse-ca`: nobody wrote these, so they are no typos.
_SERVICE_LINK = re.compile(
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)


class SettingsCode(Code):
    """Why settings were refused."""

    FILE = "settings_file"
    UNKNOWN = "settings_unknown_key"
    TYPE = "settings_wrong_type"
    VALUE = "settings_wrong_value"
    MISSING = "settings_missing"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: `file:line`, `environment NAME` or `option`.
        path: field, e.g. `tls.cert_file`; empty when the whole is meant.
    """

    code: SettingsCode
    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class SettingsError(MeshError):
    """Settings that cannot be used; `problems` has every reason, `code` is the first one's."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        if len(problems) == 1:
            text = str(problems[0])
        else:
            text = f"{len(problems)} problems in the settings:" + "".join(f"\n  {p}" for p in problems)
        super().__init__(problems[0].code, text, category=Category.FAILED_PRECONDITION)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """One row of the reference page.

    Attributes:
        env: environment variable, with the prefix given to `describe`; empty when the field can be
            set in the file only.
        default: as it is written in a file; None when the field is required.
    """

    path: str
    env: str
    type: str
    default: str | None
    doc: str


@dataclass(frozen=True, slots=True)
class _Meta:
    doc: str
    bounds: Bounds = field(default_factory=Bounds)
    secret: bool = False


def setting(
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    parse: Callable[[str], Any] | None = None,
    minimum: Any = None,
    maximum: Any = None,
    secret: bool = False,
) -> Any:
    """A field of a settings class.

    Args:
        doc: what it does, its unit, and why the default is what it is; goes to the reference page.
        default: the field is required when neither this nor `default_factory` is given.
        parse: text to value, for types that are not built in; raises ValueError or MeshError.
        minimum: smallest allowed number or duration, as `maximum` is the largest.
        secret: never show the value that was found in an error.
    """
    meta = _Meta(doc, Bounds(minimum, maximum, parse), secret)
    return field(default=default, default_factory=default_factory, kw_only=True, metadata={_DOC: meta})


def load(
    cls: type[T],
    *,
    file: Path | None,
    env: Mapping[str, str],
    env_prefix: str,
    overrides: Mapping[str, object],
) -> T:
    """Build the settings.

    Args:
        cls: a settings class.
        file: YAML file with one mapping; None means no file.
        env: usually `os.environ`.
        env_prefix: e.g. `GATEHOUSE_CA_`; every variable that starts with it must be known.
        overrides: dotted path to value, usually from the command line; None means not given. Text is
            read as from the environment.

    Raises:
        SettingsError: with all the problems.
    """
    if not env_prefix:
        raise ValueError("env_prefix must not be empty")
    loader = _Loader(env_prefix)
    leaves = {leaf.path: leaf for leaf in _leaves(cls)}
    given = loader.from_file(file, cls) if file is not None else {}
    if any(problem.code is SettingsCode.FILE for problem in loader.problems):
        raise SettingsError(tuple(loader.problems))  # what else is wrong cannot be known
    given |= loader.from_env(env, leaves)
    given |= loader.from_overrides(overrides, leaves)
    result = loader.build(cls, (), given)
    if loader.problems:
        raise SettingsError(tuple(loader.problems))
    return typing.cast("T", result)


def describe(cls: type[Any], env_prefix: str = "") -> tuple[FieldDoc, ...]:
    """Every field of a settings class, nested ones included, in the order of declaration."""
    rows: list[FieldDoc] = []
    for leaf in _leaves(cls):
        path, bounds = format_path(leaf.path), leaf.meta.bounds
        env = _env_name(env_prefix, leaf.path)
        item = item_type(leaf.type)
        in_file_only = dataclasses.is_dataclass(item) and bounds.parse is None
        rows.append(
            FieldDoc(
                path,
                "" if in_file_only else env,
                allowed_text(leaf.type, bounds),
                leaf.default,
                leaf.meta.doc,
            )
        )
        if in_file_only:
            rows += [replace(row, path=f"{path}[].{row.path}", env="") for row in describe(item)]
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class _Leaf:
    path: FieldPath
    type: Any
    meta: _Meta
    default: str | None


def _meta(item: dataclasses.Field[Any]) -> _Meta:
    found = item.metadata.get(_DOC)
    return found if isinstance(found, _Meta) else _Meta("")


def _is_nested(hint: Any, item: dataclasses.Field[Any]) -> bool:
    """A settings class; a value type that happens to be a dataclass has `parse=`."""
    return dataclasses.is_dataclass(hint) and _meta(item).bounds.parse is None


def _leaves(cls: type[Any], prefix: FieldPath = ()) -> Iterator[_Leaf]:
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint, path = hints[item.name], (*prefix, item.name)
        if _is_nested(hint, item):
            yield from _leaves(typing.cast("type[Any]", hint), path)
        else:
            yield _Leaf(path, hint, _meta(item), _default_text(item))


def _default_text(item: dataclasses.Field[Any]) -> str | None:
    if item.default is not dataclasses.MISSING:
        return format_value(item.default)
    if item.default_factory is not dataclasses.MISSING:
        return format_value(item.default_factory())
    return None


def _env_name(prefix: str, path: FieldPath) -> str:
    return prefix + "__".join(str(step) for step in path).upper()


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(sorted(known)[:20]) or 'none'}"


_Given = dict[FieldPath, Found]


class _Loader:
    """Collects what was given and what is wrong with it."""

    def __init__(self, env_prefix: str) -> None:
        self._prefix = env_prefix
        self.problems: list[Problem] = []

    def _problem(self, code: SettingsCode, where: str, path: FieldPath, message: str) -> None:
        self.problems.append(Problem(code, where, format_path(path), message))

    def from_file(self, file: Path, cls: type[Any]) -> _Given:
        """Values of the file, by path of the leaf."""
        document = self._document(file)
        found: _Given = {}
        if document is None:
            return found
        if not isinstance(document.data, dict):
            self._problem(SettingsCode.TYPE, document.where(), (), "must be a mapping of settings")
            return found
        self._collect(document, cls, (), document.data, found)
        return found

    def _document(self, file: Path) -> yamldoc.Document | None:
        try:
            with file.open("rb") as stream:
                raw = stream.read(yamldoc.MAX_BYTES + 1)
            documents = yamldoc.load_documents(raw.decode(), str(file))
        except OSError as error:
            self._problem(SettingsCode.FILE, str(file), (), f"cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self._problem(SettingsCode.FILE, str(file), (), "is not UTF-8 text")
        except yamldoc.YamlError as error:
            self._problem(SettingsCode.FILE, "", (), error.public)
        else:
            if len(documents) > 1:
                self._problem(SettingsCode.FILE, documents[1].where(), (), "one document is allowed")
            return documents[0] if documents else None
        return None

    def _collect(
        self,
        document: yamldoc.Document,
        cls: type[Any],
        prefix: FieldPath,
        data: Mapping[str, Any],
        found: _Given,
    ) -> None:
        hints = typing.get_type_hints(cls)
        known = {item.name: item for item in dataclasses.fields(cls)}
        for name, value in data.items():
            path = (*prefix, name)
            where = document.where(path)
            if name not in known:
                self._problem(
                    SettingsCode.UNKNOWN, where, path, f"no such setting; {_nearest(name, list(known))}"
                )
            elif _is_nested(hints[name], known[name]):
                self._collect_nested(document, hints[name], path, value, found)
            elif isinstance(value, list) and _is_nested(item_type(hints[name]), known[name]):
                items = [
                    self._list_item(document, item_type(hints[name]), (*path, index), item)
                    for index, item in enumerate(value)
                ]
                found[path] = Found(tuple(items), where, is_text=False, is_ready=True)
            else:
                found[path] = Found(value, where, is_text=False)

    def _collect_nested(
        self, document: yamldoc.Document, cls: Any, path: FieldPath, value: Any, found: _Given
    ) -> None:
        if isinstance(value, dict):
            self._collect(document, cls, path, value, found)
        elif value is not None:
            self._problem(SettingsCode.TYPE, document.where(path), path, "must be a mapping of settings")

    def _list_item(self, document: yamldoc.Document, cls: Any, path: FieldPath, value: Any) -> Any:
        before = len(self.problems)
        found: _Given = {}
        self._collect_nested(document, cls, path, {} if value is None else value, found)
        return self.build(cls, path, found) if len(self.problems) == before else None

    def from_env(self, env: Mapping[str, str], leaves: Mapping[FieldPath, _Leaf]) -> _Given:
        """Values of the environment, by path of the leaf."""
        names = {_env_name(self._prefix, path): path for path in leaves}
        found: _Given = {}
        for name in sorted(env):
            if not name.startswith(self._prefix):
                continue
            where = f"environment {name}"
            if name in names:
                found[names[name]] = Found(env[name], where, is_text=True)
            elif not _SERVICE_LINK.fullmatch(name.removeprefix(self._prefix)):
                self._problem(
                    SettingsCode.UNKNOWN, where, (), f"no such setting; {_nearest(name, list(names))}"
                )
        return found

    def from_overrides(self, overrides: Mapping[str, object], leaves: Mapping[FieldPath, _Leaf]) -> _Given:
        """Values of the command line, by path of the leaf."""
        found: _Given = {}
        for name, value in overrides.items():
            path: FieldPath = tuple(name.split("."))
            if path not in leaves:
                known = [format_path(leaf) for leaf in leaves]
                self._problem(
                    SettingsCode.UNKNOWN, "option", path, f"no such setting; {_nearest(name, known)}"
                )
            elif value is not None:
                found[path] = Found(value, "option", is_text=isinstance(value, str))
        return found

    def build(self, cls: type[Any], prefix: FieldPath, given: Mapping[FieldPath, Found]) -> Any:
        """The dataclass, or None when something in it is wrong."""
        hints = typing.get_type_hints(cls)
        before = len(self.problems)
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            hint, path = hints[item.name], (*prefix, item.name)
            if _is_nested(hint, item):
                values[item.name] = self.build(typing.cast("type[Any]", hint), path, given)
            elif path in given:
                values[item.name] = self._value(given[path], hint, _meta(item), path)
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                in_list = any(isinstance(step, int) for step in path)
                how = "" if in_list else f" or by {_env_name(self._prefix, path)}"
                self._problem(SettingsCode.MISSING, "", path, f"required; set it in the file{how}")
        return None if len(self.problems) > before else self._construct(cls, values, prefix)

    def _construct(self, cls: type[Any], values: dict[str, Any], path: FieldPath) -> Any:
        try:
            return cls(**values)
        except MeshError as error:
            self._problem(SettingsCode.VALUE, "", path, error.public)
        except ValueError as error:
            self._problem(SettingsCode.VALUE, "", path, str(error))
        return None

    def _value(self, found: Found, hint: Any, meta: _Meta, path: FieldPath) -> Any:
        try:
            return read(found, hint, meta.bounds)
        except Wrong as wrong:
            seen, allowed = wrong.found, wrong.allowed
            if meta.secret:  # the reason may quote the value too
                seen, allowed = "a value that is not shown", f"allowed is {allowed_text(hint, meta.bounds)}"
            code = SettingsCode.TYPE if wrong.is_type else SettingsCode.VALUE
            place = path if wrong.index is None else (*path, wrong.index)
            self._problem(code, found.where, place, f"found {seen}; {allowed}")
            return None
