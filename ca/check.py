"""`python -m ca check`: what would happen, without doing it."""

from __future__ import annotations

import datetime as dt
import time

from ca.authn.cluster_keys import ClusterKeys, issuer_of
from ca.authn.keys import JwksError, JwksFile
from ca.cluster import REQUEST_TIMEOUT, USER_AGENT, access_to, secret_place
from ca.config import CaConfig
from ca.core.authority import Authority, Issuer
from ca.keystore import ROOT, KeyStore
from ca.keystore_material import find_files, load_material
from ca.keystore_secret import look
from ca.runtime import keystore_config
from mesh.errors import MeshError
from mesh.kube.api import KubeError
from mesh.kube.client import KubeClient
from mesh.kube.discovery import discover


def describe(config: CaConfig, now: dt.datetime | None = None) -> tuple[list[str], bool]:
    """Lines to print, and whether the authority could start and issue.

    Keys are loaded and tried; no root is made.
    """
    now = now or dt.datetime.now(dt.UTC)
    listen, issue = config.listen, config.issue
    issuer = config.token.issuer or "the cluster"
    lines = [
        f"trust domain    {config.trust_domain}",
        f"CSR API         {listen.grpc} with a token"
        + (f", {listen.mtls} with a client certificate" if listen.mtls else ""),
        f"HTTPS           {listen.http}" + (f"; plain HTTP {listen.plain}" if listen.plain else ""),
        f"certificates    {issue.default_lifetime} by default, {issue.min_lifetime} to {issue.max_lifetime}",
        f"tokens          of {issuer} for {' or '.join(sorted(config.token.audiences))}",
        f"processes       {config.workers}",
    ]
    api: KubeClient | None = None
    if config.cluster.kubernetes:
        cluster, api = _cluster(config)
        lines.append(cluster)
        if api is None:
            return lines, False
    try:
        keys, keys_good = _keys(config, now, api)
        tokens, tokens_good = _token_keys(config, now, api)
    finally:
        if api is not None:
            api.close()
    return [*lines, keys, tokens], keys_good and tokens_good


def _cluster(config: CaConfig) -> tuple[str, KubeClient | None]:
    try:
        access = access_to(config)
        api = KubeClient(access, user_agent=USER_AGENT, timeout=REQUEST_TIMEOUT)
        found = discover(api)
    except KubeError as e:
        return f"cluster         PROBLEM: {e}", None
    return f"cluster         Kubernetes 1.{found.minor} at {access.host}:{access.port}", api


def _keys(config: CaConfig, now: dt.datetime, api: KubeClient | None) -> tuple[str, bool]:
    try:
        keystore_config(config)
        if config.ca_dir is not None:
            files = find_files(config.ca_dir)
            issuer = load_material(config.ca_dir, files, config.trust_domain, now).issuer
        elif api is not None:
            found = look(api, secret_place(config), keystore_config(config), now)
            if found is None:
                place = f"Secret {config.cluster.namespace}/{config.cluster.secret}"
                return f"signing key     will be made in {place}, with a new root", True
            issuer = found
        elif not (config.state_dir / ROOT).exists():
            return f"signing key     will be made in {config.state_dir}, with a new root", True
        else:
            issuer = KeyStore.open(keystore_config(config), now).issuer(now)
        Authority(issuer, config.issue.profile())
    except MeshError as e:
        return f"signing key     PROBLEM: {e}", False
    return f"signing key     {_issuer(issuer, now)}", True


def _issuer(issuer: Issuer, now: dt.datetime) -> str:
    return (
        f"{issuer.certificate.key.name}, ends in {(issuer.not_after - now).days} days,"
        f" {len(issuer.roots)} root(s)"
    )


def _token_keys(config: CaConfig, now: dt.datetime, api: KubeClient | None) -> tuple[str, bool]:
    file: JwksFile | ClusterKeys
    if config.token.jwks_file is not None:
        file = JwksFile(config.token.jwks_file)
    elif api is not None:
        file = ClusterKeys(api, every=config.cluster.key_refresh, monotonic=time.monotonic)
    else:
        return "token keys      PROBLEM: token.jwks_file is not given", False
    try:
        file.reload(now)
        if api is not None and not config.token.issuer:
            issuer_of(api)
    except (JwksError, KubeError) as e:
        return f"token keys      PROBLEM: {e}", False
    keys = file.current.keys if file.current is not None else {}
    return f"token keys      {', '.join(f'{kid} ({alg})' for alg, kid in keys)}", True
