"""Where the API server is and how we prove who we are: in a pod, or from a kubeconfig file.

Files are read again at each use: service account tokens and client certificates rotate.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mesh.errors import Category
from mesh.kube.api import KubeCode, KubeError

_POD_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MAX_FILE = 1 << 20


def _bad(message: str) -> KubeError:
    return KubeError(KubeCode.CONFIG, message, category=Category.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True)
class Access:
    """An API server and the credentials for it.

    Attributes:
        token_file: read at each request; wins over `token`.
        ca_pem: None = the system's trust store.
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

    def bearer(self) -> str | None:
        """The token to send now, if any."""
        if self.token_file is not None:
            return _read(self.token_file).strip()
        return self.token

    def tls(self) -> ssl.SSLContext:
        """A client context with the certificates as they are now."""
        context = ssl.create_default_context(
            cafile=str(self.ca_file) if self.ca_file else None, cadata=self.ca_pem
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.client_cert_pem and self.client_key_pem:
            # The ssl module reads key pairs from files only; this one is gone at once.
            with tempfile.NamedTemporaryFile("w", prefix="kube-", suffix=".pem") as pair:
                pair.write(self.client_cert_pem + "\n" + self.client_key_pem)
                pair.flush()
                context.load_cert_chain(pair.name)
        return context


def in_cluster(environ: Mapping[str, str] = os.environ, directory: Path = _POD_DIRECTORY) -> Access:
    """Access from within a pod (service account of the pod).

    Raises:
        KubeError: not in a pod, or no service account token is mounted.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
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
        raise _bad(f"{path}: not YAML: {error}") from error
    if not isinstance(config, dict):
        raise _bad(f"{path}: not a kubeconfig")
    name = context or config.get("current-context") or ""
    chosen = _entry(config, "contexts", name, "context", path)
    cluster = _entry(config, "clusters", str(chosen.get("cluster", "")), "cluster", path)
    user = _entry(config, "users", str(chosen.get("user", "")), "user", path)
    if "exec" in user or "auth-provider" in user:
        raise _bad(
            f"{path}: user {chosen.get('user')!r} needs a credential plugin, which is not run here;"
            " next: use a kubeconfig with a token or a client certificate"
        )
    if cluster.get("insecure-skip-tls-verify"):
        raise _bad(f"{path}: insecure-skip-tls-verify is refused; next: give certificate-authority-data")
    server = urlsplit(str(cluster.get("server", "")))
    if server.scheme != "https" or not server.hostname:
        raise _bad(f"{path}: server {cluster.get('server')!r} is not an https address")
    base = path.parent
    token_file = user.get("tokenFile")
    return Access(
        server.hostname,
        server.port or 443,
        ca_pem=_data(cluster, "certificate-authority", base),
        token_file=base / token_file if token_file else None,
        token=user.get("token"),
        client_cert_pem=_data(user, "client-certificate", base),
        client_key_pem=_data(user, "client-key", base),
        server_name=str(cluster.get("tls-server-name", "")),
    )


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


def _data(owner: Mapping[str, Any], key: str, base: Path) -> str | None:
    inline = owner.get(f"{key}-data")
    if inline:
        return base64.b64decode(inline).decode("ascii")
    return _read(base / str(owner[key])) if owner.get(key) else None


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_MAX_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"{path} cannot be read: {error}") from error
