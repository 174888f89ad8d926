"""Where the API server is and how we prove who we are: in a pod, or from a kubeconfig file.

Files are read again at each use: service account tokens and client certificates rotate.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mesh.errors import Category
from mesh.kube.api import KubeCode, KubeError

_POD_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MAX_FILE = 1 << 20
_MAX_PORT = 65535
_TOKEN = re.compile(r"[!-~]{1,65536}")  # what fits into a header line


def _bad(message: str) -> KubeError:
    return KubeError(KubeCode.CONFIG, message, category=Category.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True)
class Access:
    """An API server and the credentials for it.

    Attributes:
        token_file: read at each request, because the kubelet replaces it; wins over `token`.
        ca_file: read at each connection; None, as `ca_pem`: the system's trust store.
        server_name: the name in the server's certificate, when it is not `host`.
        prefix: path before every path, e.g. of a management proxy; without a slash at its end.
    """

    host: str
    port: int
    ca_file: Path | None = None
    ca_pem: str | None = None
    token_file: Path | None = None
    token: str | None = field(default=None, repr=False)
    client_cert_pem: str | None = None
    client_key_pem: str | None = field(default=None, repr=False)
    server_name: str = ""
    prefix: str = ""

    def bearer(self) -> str | None:
        """The token to send now, if any.

        Raises:
            KubeError: the file cannot be read, or holds no token.
        """
        where, token = "the token", self.token
        if self.token_file is not None:
            where, token = str(self.token_file), _read(self.token_file).strip()
        if token is not None and not _TOKEN.fullmatch(token):
            raise _bad(f"{where} is no bearer token: it is empty, or has spaces or control characters")
        return token

    def tls(self) -> ssl.SSLContext:
        """A client context with the certificates as they are now.

        Raises:
            OSError, ssl.SSLError, ValueError: a certificate or key cannot be used.
        """
        context = ssl.create_default_context(
            cafile=str(self.ca_file) if self.ca_file else None, cadata=self.ca_pem
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.client_cert_pem and self.client_key_pem:
            with _memory_file(f"{self.client_cert_pem}\n{self.client_key_pem}") as pair:
                context.load_cert_chain(pair)
        return context


def in_cluster(environ: Mapping[str, str] = os.environ, directory: Path = _POD_DIRECTORY) -> Access:
    """Access from within a pod (service account of the pod).

    Raises:
        KubeError: not in a pod, or no service account token is mounted.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not port.isdecimal() or not 0 < int(port) <= _MAX_PORT:
        raise _bad(f"KUBERNETES_SERVICE_PORT is {port[:20]!r}, not a port number")
    if not host:
        raise _bad("not in a cluster: KUBERNETES_SERVICE_HOST is not set; next: give a kubeconfig")
    if not (directory / "token").exists():
        raise _bad(f"no service account token in {directory}; next: set automountServiceAccountToken")
    return Access(host, int(port), ca_file=directory / "ca.crt", token_file=directory / "token")


def from_kubeconfig(path: Path, context: str = "") -> Access:
    """Access by a kubeconfig file: tokens, token files and client certificates.

    Raises:
        KubeError: with the entry that is missing or cannot be used (exec plugins are not run).
    """
    try:
        config = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise _bad(f"{path}: not YAML: {str(error)[:300]}") from error
    if not isinstance(config, dict):
        raise _bad(f"{path}: not a kubeconfig")
    name = context or config.get("current-context") or ""
    if not name:
        raise _bad(f"{path}: current-context is not set; next: kubectl config use-context NAME")
    chosen = _entry(config, "contexts", str(name), "context", path)
    cluster = _entry(config, "clusters", str(chosen.get("cluster", "")), "cluster", path)
    user = _entry(config, "users", str(chosen.get("user", "")), "user", path)
    _refuse(cluster, user, chosen, path)
    host, port, prefix = _server(cluster, path)
    base = path.parent
    token_file = user.get("tokenFile")
    certificate, key = _data(user, "client-certificate", path), _data(user, "client-key", path)
    if (certificate is None) != (key is None):
        raise _bad(f"{path}: user {chosen.get('user')!r} has only one of client-certificate and client-key")
    return Access(
        host,
        port,
        ca_pem=_data(cluster, "certificate-authority", path),
        token_file=base / str(token_file) if token_file else None,
        token=str(user["token"]) if user.get("token") else None,
        client_cert_pem=certificate,
        client_key_pem=key,
        server_name=str(cluster.get("tls-server-name") or ""),
        prefix=prefix,
    )


def _refuse(
    cluster: Mapping[str, Any], user: Mapping[str, Any], chosen: Mapping[str, Any], path: Path
) -> None:
    """Say what is not done here, rather than to connect in another way than the file says."""
    if "exec" in user or "auth-provider" in user:
        raise _bad(
            f"{path}: user {chosen.get('user')!r} needs a credential plugin, which is not run here;"
            " next: use a kubeconfig with a token or a client certificate"
        )
    if cluster.get("insecure-skip-tls-verify"):
        raise _bad(f"{path}: insecure-skip-tls-verify is refused; next: give certificate-authority-data")
    if cluster.get("proxy-url"):
        raise _bad(f"{path}: proxy-url is not supported; next: use an address that can be reached directly")


def _server(cluster: Mapping[str, Any], path: Path) -> tuple[str, int, str]:
    server = str(cluster.get("server", ""))
    with contextlib.suppress(ValueError):  # a port that is none; refused below
        url = urlsplit(server)
        if url.scheme == "https" and url.hostname and not url.query:
            return url.hostname, url.port or 443, url.path.rstrip("/")
    raise _bad(f"{path}: server {server!r} is not an https address")


def find(kubeconfig: Path | None = None, environ: Mapping[str, str] = os.environ) -> Access:
    """The usual order: the file given, `$KUBECONFIG`, in the cluster, `~/.kube/config`."""
    if kubeconfig is not None:
        return from_kubeconfig(kubeconfig)
    if environ.get("KUBECONFIG"):
        return from_kubeconfig(Path(environ["KUBECONFIG"].split(os.pathsep)[0]))
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(environ)
    return from_kubeconfig(Path.home() / ".kube" / "config")


def _entry(config: dict[str, Any], section: str, name: str, key: str, path: Path) -> dict[str, Any]:
    for item in config.get(section) or []:
        if isinstance(item, dict) and item.get("name") == name and isinstance(item.get(key), dict):
            return dict(item[key])
    raise _bad(f"{path}: no entry {name!r} in {section}")


def _data(owner: Mapping[str, Any], key: str, path: Path) -> str | None:
    inline = owner.get(f"{key}-data")
    if not inline:
        return _read(path.parent / str(owner[key])) if owner.get(key) else None
    try:
        return base64.b64decode(str(inline), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise _bad(f"{path}: {key}-data is not base64 of a PEM text") from error


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_FILE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"{path} cannot be read: {error}") from error
    if len(text) > _MAX_FILE:
        raise _bad(f"{path} has more than {_MAX_FILE} characters")
    return text


@contextlib.contextmanager
def _memory_file(text: str) -> Iterator[str]:
    """A path to a text that is on no disk: the ssl module reads keys from files only."""
    descriptor = os.memfd_create("kube-credentials", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "w", encoding="ascii") as file:
            file.write(text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
