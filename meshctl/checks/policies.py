"""After the installation: are policies that cannot be enforced refused, and is one of them stored already?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from injector.core.policies import judge, plural_of, sentence
from mesh.kube.api import KubeCode, KubeError
from mesh.policy.codes import PolicyCode
from mesh.policy.model import API_VERSIONS, KINDS, PEER_AUTHENTICATION
from meshctl.checks.control import logs_of
from meshctl.checks.rows import Row, View, fail, many, ok, skip, warn
from meshctl.cluster import VALIDATORS, full_name, is_ours

_ROW: Final = "policy-webhook"
_NAMESPACE: Final = "default"
_PATH: Final = f"/apis/{API_VERSIONS[0]}/namespaces/{_NAMESPACE}/peerauthentications"
_BROKEN: Final[dict[str, Any]] = {
    "apiVersion": API_VERSIONS[0],
    "kind": PEER_AUTHENTICATION,
    "metadata": {"generateName": "meshctl-check-"},
    "spec": {"meshctlCheck": True},
}
"""With a field that nobody knows, which the schema keeps and the webhook refuses."""


def policy_webhook(view: View) -> Iterator[Row]:
    """A dry run of a broken policy: the API server really calls the webhook, which refuses it."""
    if not any(is_ours(item) for item in view.cluster.items(VALIDATORS)):
        yield warn(
            _ROW,
            "there is no validating webhook: a broken policy is stored, and only its condition Accepted"
            " tells",
            "helm upgrade with --set injector.policyWebhook.enabled=true",
        )
        return
    try:
        view.cluster.api.create(_PATH, _BROKEN, dryRun="All")
    except KubeError as error:
        yield _refused(view, error)
        return
    yield fail(
        _ROW,
        "a policy with an unknown field is not refused (dry run): the API server does not call the webhook,"
        " or goes on without its answer",
        logs_of(view, "injector"),
    )


def refused_policies(view: View) -> Iterator[Row]:
    """No policy is stored that is not in force: judged here, by the same code, whatever its status says."""
    total, refused = 0, []
    for kind in KINDS:
        for item in view.cluster.items(f"/apis/{API_VERSIONS[0]}/{plural_of(kind)}"):
            total += 1
            errors = judge(item, kind).errors
            if errors:
                refused.append(f"{kind} {full_name(item)}: {sentence(errors[0])}")
    if refused:
        yield fail(
            "policies",
            f"{many(len(refused), 'policy', 'policies')} not in force, because of errors",
            "correct or delete them; kubectl get authorizationpolicies -A -o wide; docs/policy.md, Codes",
            refused,
        )
    else:
        yield ok("policies", f"{many(total, 'policy', 'policies')}, none with an error")


def _refused(view: View, error: KubeError) -> Row:
    text = error.public
    if error.code is KubeCode.UNREACHABLE:
        raise error
    if PolicyCode.UNKNOWN_FIELD in text:
        return ok(_ROW, "a broken policy is refused when it is applied (dry run)")
    if "failed calling webhook" in text or "failed to call webhook" in text:
        guilty = "upkeep" if "x509" in text or "certificate" in text else "injector"
        return fail(
            _ROW,
            f"the API server cannot call the webhook, and no policy can be changed: {text}",
            logs_of(view, guilty),
        )
    if error.code is KubeCode.FORBIDDEN and "cannot create resource" in text:
        return skip(_ROW, "you may not create policies (dry run)", "run it as a user who may")
    if error.code is KubeCode.NOT_FOUND:
        return fail(
            _ROW,
            "the API server does not serve the policy kinds",
            "helm upgrade with --set crds.install=true",
        )
    return warn(_ROW, f"the dry run of a policy is refused by something else: {text}", "see its message")
