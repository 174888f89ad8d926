"""`python -m ca check`: what would happen, without doing it."""

from __future__ import annotations

import datetime as dt

from ca.authn.keys import JwksError, JwksFile
from ca.config import CaConfig
from ca.core.authority import Authority, Issuer
from ca.keystore import ROOT, KeyStore
from ca.keystore_material import find_files, load_material
from ca.runtime import keystore_config, token_policy
from mesh.errors import MeshError


def describe(config: CaConfig, now: dt.datetime | None = None) -> tuple[list[str], bool]:
    """Lines to print, and whether the authority could start and issue.

    Keys are loaded and tried; no root is made.
    """
    now = now or dt.datetime.now(dt.UTC)
    listen, issue = config.listen, config.issue
    lines = [
        f"trust domain    {config.trust_domain}",
        f"CSR API         {listen.grpc} with a token"
        + (f", {listen.mtls} with a client certificate" if listen.mtls else ""),
        f"HTTPS           {listen.http}" + (f"; plain HTTP {listen.plain}" if listen.plain else ""),
        f"certificates    {issue.default_lifetime} by default, {issue.min_lifetime} to {issue.max_lifetime}",
        f"tokens          of {config.token.issuer} for {' or '.join(sorted(token_policy(config).audiences))}",
        f"processes       {config.workers}",
    ]
    keys, keys_good = _keys(config, now)
    tokens, tokens_good = _token_keys(config, now)
    return [*lines, keys, tokens], keys_good and tokens_good


def _keys(config: CaConfig, now: dt.datetime) -> tuple[str, bool]:
    try:
        keystore_config(config)
        if config.ca_dir is not None:
            files = find_files(config.ca_dir)
            issuer = load_material(config.ca_dir, files, config.trust_domain, now).issuer
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


def _token_keys(config: CaConfig, now: dt.datetime) -> tuple[str, bool]:
    file = JwksFile(config.token.jwks_file)
    try:
        file.reload(now)
    except JwksError as e:
        return f"token keys      PROBLEM: {e}", False
    keys = file.current.keys if file.current is not None else {}
    return f"token keys      {', '.join(f'{kid} ({alg})' for alg, kid in keys)}", True
