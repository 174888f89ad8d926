"""Stable codes of everything that is said about a policy object. `docs/policy.md` explains each."""

from __future__ import annotations

from mesh.errors import Category, Code, MeshError
from mesh.policy.effective import Finding, Severity


class PolicyCode(Code):
    """Why a policy object was refused, or what it does that its author may not expect."""

    # --- refusals: shape ---------------------------------------------------------------------
    NOT_A_POLICY = "policy_unknown_kind"
    UNKNOWN_FIELD = "policy_unknown_field"
    WRONG_TYPE = "policy_wrong_type"
    MISSING = "policy_missing_field"
    EMPTY = "policy_empty_value"
    TOO_LONG = "policy_too_long"
    TOO_MANY = "policy_too_many"
    BAD_VALUE = "policy_bad_value"
    BAD_CHARACTER = "policy_bad_character"
    DUPLICATE = "policy_duplicate"
    CONFLICT = "policy_conflict"
    # --- refusals: meaning -------------------------------------------------------------------
    UNSUPPORTED = "policy_unsupported"
    AMBIGUOUS = "policy_ambiguous"
    NEEDS_SELECTOR = "policy_needs_selector"
    NEEDS_RULES = "policy_needs_rules"
    BAD_PRINCIPAL = "policy_bad_principal"
    BAD_REQUEST_PRINCIPAL = "policy_bad_request_principal"
    BAD_SERVICE_ACCOUNT = "policy_bad_service_account"
    BAD_CIDR = "policy_bad_cidr"
    BAD_PORT = "policy_bad_port"
    BAD_TEMPLATE = "policy_bad_path_template"
    BAD_CONDITION_KEY = "policy_bad_condition_key"
    BAD_HEADER_NAME = "policy_bad_header_name"
    BAD_URL = "policy_bad_url"
    BAD_JWKS = "policy_bad_jwks"
    DUPLICATE_OBJECT = "policy_duplicate_object"
    # --- warnings ----------------------------------------------------------------------------
    LITERAL_STAR = "policy_literal_star"
    NEVER_MATCHES = "policy_never_matches"
    CLAIM_NEVER_MATCHES = "policy_claim_never_matches"
    TARGET_REFS = "policy_target_refs_ignored"
    ROOT_SELECTOR = "policy_root_selector"
    NOT_OLDEST = "policy_not_oldest"
    PORT_NOT_DECLARED = "policy_port_not_declared"
    PLAINTEXT_ALLOWED = "policy_plaintext_allowed"
    PLAINTEXT_NOT_DENIED = "policy_plaintext_not_denied"
    IDENTITY_NEEDS_MTLS = "policy_identity_needs_mtls"
    REMOTE_IP_FORGEABLE = "policy_remote_ip_forgeable"
    TCP_RULE_DROPPED = "policy_tcp_rule_dropped"
    TCP_RULE_WIDENED = "policy_tcp_rule_widened"
    FOREIGN_TRUST_DOMAIN = "policy_foreign_trust_domain"
    JWKS_PRIVATE_KEY = "policy_jwks_private_key"
    JWKS_KEY_DROPPED = "policy_jwks_key_dropped"
    JWKS_UNAVAILABLE = "policy_jwks_unavailable"
    JWKS_URI_BLOCKED = "policy_jwks_uri_blocked"


class PolicyError(MeshError):
    """A policy object that was refused; carries every finding, errors and warnings."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        errors = [f for f in findings if f.severity is Severity.ERROR]
        super().__init__(
            errors[0].code,
            "; ".join(str(f) for f in errors),
            category=Category.INVALID_ARGUMENT,
        )
        self.findings = findings

    def __str__(self) -> str:
        return self.public  # every finding ends in its own code
