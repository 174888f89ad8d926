"""Command line for people who run Gatehouse: `meshctl check`, `inject`, `identity`, `ca` and others.

Nothing heavy is imported before the command is known: `--help` answers like a shell command.
"""

from __future__ import annotations

import argparse
import os
import sys

from meshctl.exits import EXIT_OK

EXIT_CODES = """\
exit codes:
  0  all good
  1  something is wrong: check found errors, inject refused an object, explain says that the
     pod would not get a sidecar, identity found no valid certificate, the authority refused a step
  2  the arguments, a file or the configuration are wrong, or what was named does not exist
  3  the cluster or the node agent does not answer, or does not allow the question
"""

_EPILOG = f"""\
first steps:
  meshctl check --pre                        can Gatehouse be installed here?
  meshctl inject -f app.yaml --diff          what would change in my manifests? (no cluster needed)
  meshctl check                              is everything as it should be? what is to be done?
  meshctl explain inject -n shop deploy/web  would it get a sidecar, and by which rule?
  meshctl identity -n shop web-5d9c7b9c4-x2  who is this pod, and until when?
  meshctl ca status                          which roots are trusted, and what comes next?

{EXIT_CODES}
Answers go to standard output, remarks to standard error; `-o json` has the same answers for
programs. Colours are used on a terminal only, and not at all when NO_COLOR is set.
`meshctl COMMAND --help` has examples.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    options = _parser().parse_args(arguments)
    from meshctl.run import run

    try:
        return run(options)
    except BrokenPipeError:
        # The reader left: `meshctl check | head`. What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshctl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="Looks after Gatehouse: who gets a sidecar and why, who has which identity, what is"
        " wrong.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inject(commands)
    _add_uninject(commands)
    _add_explain(commands)
    _add_check(commands)
    _add_identity(commands)
    _add_ca(commands)
    _add_images(commands)
    _add_version(commands)
    return parser


def _add_inject(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inject = _command(
        commands,
        "inject",
        "put sidecars into manifests, by the same code as the webhook; needs no cluster",
        """\
examples:
  meshctl inject -f app.yaml | kubectl apply -f -
  kustomize build . | meshctl inject -f - > injected.yaml
  meshctl inject -f app.yaml --diff                        only what would change
  meshctl inject -f app.yaml --cluster                     by the cluster's settings and labels
  meshctl inject -f app.yaml --config injector.yaml --namespace-labels istio-injection=enabled

Namespaces that say nothing count as labelled istio-injection=enabled: who runs this command asks
for sidecars. What a Namespace of the stream, --namespace-labels or --cluster says goes before.
Documents that do not change come out as they went in, byte for byte; comments within a changed
document are lost. When one object is refused, nothing is printed, and the exit code is 1.
One line for each object goes to standard error, with the code that the webhook would give.
""",
    )
    _files(inject, required=True)
    _settings(inject)
    _namespace(inject, "namespace of objects that do not name one")
    inject.add_argument("--diff", action="store_true", help="print what changes instead of manifests")
    inject.add_argument(
        "--classic",
        action="store_true",
        help="for clusters without native sidecars (before Kubernetes 1.29)",
    )
    _quiet(inject)
    _output(inject, "yaml", "json")


def _add_uninject(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    uninject = _command(
        commands,
        "uninject",
        "take the sidecars out of manifests again",
        """\
examples:
  meshctl uninject -f injected.yaml > app.yaml
  kubectl -n shop get deploy web -o yaml | meshctl uninject -f - | kubectl apply -f -
""",
    )
    _files(uninject, required=True)
    uninject.add_argument("--diff", action="store_true", help="print what changes instead of manifests")
    _quiet(uninject)
    _output(uninject, "yaml", "json")


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    epilog = """\
examples:
  meshctl explain inject -n shop web-5d9c7b9c4-x2
  meshctl explain inject -n shop deploy/web      also sts/ ds/ rs/ rc/ job/ cronjob/
  meshctl explain inject -f app.yaml             before it is in the cluster
  meshctl explain inject -f app.yaml --offline   without a cluster: the decision alone

It evaluates the selectors of every webhook of the cluster that is called for new pods, those of
other meshes too, and then the injector's own table of rules with the injector's own settings.
"""
    text = "would a pod get a sidecar, by which rule, and what would change?"
    topics = _command(commands, "explain", text, epilog).add_subparsers(
        dest="topic", required=True, metavar="inject"
    )
    explain = _command(topics, "inject", text, epilog)
    explain.add_argument("target", nargs="?", metavar="POD", help="a pod, or KIND/NAME")
    _files(explain, required=False)
    _settings(explain, cluster=False)
    explain.add_argument("--offline", action="store_true", help="with -f: do not ask a cluster")
    _namespace(explain, "namespace of the pod")
    _output(explain, "table", "json")
    _access(explain)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = _command(
        commands,
        "check",
        "what is wrong in the cluster, and what is to be done about it",
        """\
examples:
  meshctl check --pre          before the installation: nothing is changed in the cluster
  meshctl check                after it: control plane, webhook, nodes, namespaces, pods
  meshctl check -n shop        pods of one namespace only
  meshctl check --traffic      and try it: mutual TLS, rules and tokens between pods made for it
  meshctl check -o json | jq '.rows[] | select(.status == "fail")'

Each row is ok, warn, fail or skip (your account may not see it). Only fail makes the exit code 1.
Two rows send a dry-run request, which changes nothing: a CSI driver (--pre) and a pod (is the
webhook called, does its certificate fit, does it answer?).
--traffic makes a namespace with four pods and takes it away again, also when it is interrupted.
""",
    )
    check.add_argument("--pre", action="store_true", help="before the installation")
    traffic = check.add_argument_group("traffic")
    traffic.add_argument(
        "--traffic",
        action="store_true",
        help="make pods that call each other: does identity work in this cluster right now?",
    )
    traffic.add_argument(
        "--traffic-namespace",
        metavar="NAME",
        help="in this namespace, which must be labelled for injection (default: one is made and removed)",
    )
    traffic.add_argument(
        "--traffic-timeout", type=float, metavar="SECONDS", help="of the whole try (default 120)"
    )
    traffic.add_argument(
        "--image", help="of the pods: a control image of this version (default: the control plane's)"
    )
    traffic.add_argument("--keep", action="store_true", help="leave the pods there, to look at them")
    _namespace(check, "pods of this namespace only", default=None)
    _output(check, "table", "json")
    _access(check)


def _add_identity(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    identity = _command(
        commands,
        "identity",
        "certificate chain of a pod, and when it is renewed",
        """\
examples:
  meshctl identity -n shop web-5d9c7b9c4-x2
  meshctl identity -n shop web-5d9c7b9c4-x2 --pem | openssl x509 -noout -text
  meshctl identity -n demo web --agent http://127.0.0.1:15094     file mode, on this machine
  meshctl identity --agent unix:/run/gatehouse/status.sock        everybody on this node

The node agent of the pod's node is asked, through the API server: your account needs `get` on
pods/proxy in the namespace of Gatehouse. Private keys never leave the agent.
""",
    )
    identity.add_argument("pod", nargs="?", metavar="POD", help="a pod; default: everybody on the node")
    identity.add_argument(
        "--agent", metavar="URL", help="ask this agent: http://HOST:PORT or unix:/path, without a cluster"
    )
    identity.add_argument("--node", help="everybody on this node")
    identity.add_argument("--pem", action="store_true", help="print the chain as PEM")
    _namespace(identity, "namespace of the pod")
    _output(identity, "table", "json")
    _access(identity)


def _add_ca(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "the authority's roots: which are trusted, and the steps to replace them"
    steps = _command(
        commands,
        "ca",
        text,
        """\
the order of a rotation, of which no request of a workload notices anything:
  meshctl ca prepare     make the next root, and have everybody trust it beside the current one
  (by itself)            when every node agent has acknowledged it and the hold time is over, it signs;
                         meshctl ca activate asks for that where steps are not automatic
  meshctl ca taint       renew certificates of the former root now, e.g. because its key has leaked
  (by itself)            when the last certificate of the former root has ended, it goes;
                         meshctl ca retire asks for that
  meshctl ca abort       instead of activate: forget the next root. After activate there is no way back.
  meshctl ca status      where it stands, who is waited for, what comes next

docs/rotation.md is the runbook, also for a key that has leaked.
""",
    ).add_subparsers(dest="step", required=True, metavar="STEP")
    status = _command(steps, "status", "where the rotation stands, who is waited for, what comes next", "")
    _output(status, "text", "json")
    _access(status)
    for name, said in _STEPS.items():
        step = _command(steps, name, said, "")
        if name == "taint":
            step.add_argument(
                "--within",
                default="1h",
                metavar="TIME",
                help="spread the renewals over this time, 1s to 30d (default 1h)",
            )
        if name in {"activate", "retire"}:
            step.add_argument(
                "--force", action="store_true", help="do not wait for what the step would wait for"
            )
            step.add_argument(
                "--yes", action="store_true", help="with --force: do not ask whether it is meant"
            )
        step.add_argument(
            "--wait",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="for the authority's answer (default 60); 0 = do not wait",
        )
        _output(step, "text", "json")
        _access(step)


_STEPS = {
    "prepare": "make the next root, and have everybody trust it beside the current one",
    "activate": "let the next root sign",
    "taint": "renew certificates of the former root ahead of time",
    "retire": "stop to trust the former root",
    "abort": "forget the next root, before it signs",
}


def _add_images(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    actions = _command(
        commands,
        "images",
        "images of a release into an archive, and out of it: for clusters without internet",
        """\
examples:
  meshctl images save --archive gatehouse.tar -f images.txt     where the images can be pulled
  meshctl images load --archive gatehouse.tar -f images.txt --to registry.example.com/team
  meshctl images load --archive gatehouse.tar --tool ctr        on a node: no registry is needed

docker, podman, nerdctl or ctr does the work. images.txt is part of a release (make release).
An archive is checked against ARCHIVE.sha256 or SHA256SUMS beside it.
""",
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("save", "pull images, and write them into one file"), ("load", "read such a file")):
        action = _command(actions, name, text, "")
        action.add_argument("images", nargs="*", metavar="IMAGE", help="full name of an image")
        action.add_argument("-f", "--list", metavar="FILE", help="images.txt: one name a line")
        action.add_argument("--archive", required=True, metavar="FILE", help="the archive")
        action.add_argument("--tool", default="", choices=("docker", "podman", "nerdctl", "ctr"))
        if name == "load":
            action.add_argument(
                "--to", default="", metavar="REGISTRY", help="and push them there, under this prefix"
            )


def _add_version(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    version = _command(
        commands,
        "version",
        "version of this command, and of what runs in the cluster",
        """\
examples:
  meshctl version
  meshctl version --cluster    control plane, and sidecars with their number of pods
""",
    )
    version.add_argument("--cluster", action="store_true", help="ask the cluster too")
    _output(version, "table", "json")
    _access(version)


# --- parts of several commands -----------------------------------------------------------------------


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.".replace("?.", "?"),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _files(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        dest="files",
        action="append",
        default=[],
        required=required,
        metavar="FILE",
        help="manifests, YAML or JSON; - is standard input; may be repeated",
    )


def _settings(parser: argparse.ArgumentParser, *, cluster: bool = True) -> None:
    parser.add_argument("--config", metavar="FILE", help="settings of the injector, instead of the defaults")
    parser.add_argument(
        "--namespace-labels",
        metavar="KEY=VALUE,...",
        help="labels of every namespace, instead of its own",
    )
    if cluster:
        parser.add_argument(
            "--cluster",
            action="store_true",
            help="take settings, namespace labels and version from the cluster",
        )
        _access(parser)


def _namespace(parser: argparse.ArgumentParser, text: str, default: str | None = "") -> None:
    suffix = "" if default is None else " (default: of the kubeconfig's context, else `default`)"
    parser.add_argument("-n", "--namespace", default=default, help=f"{text}{suffix}")


def _quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="no line for objects that are left alone")


def _access(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cluster")
    group.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, ~/.kube/config")
    group.add_argument("--context", help="of the kubeconfig")
    group.add_argument(
        "--mesh-namespace", default="istio-system", metavar="NAME", help="of Gatehouse (default istio-system)"
    )
    group.add_argument(
        "--timeout", type=float, default=15.0, metavar="SECONDS", help="of one request (default 15)"
    )


def _output(parser: argparse.ArgumentParser, *forms: str) -> None:
    parser.add_argument("-o", "--output", choices=forms, default=forms[0], help=f"form (default {forms[0]})")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from meshctl.version import own_version

        sys.stdout.write(f"meshctl (gatehouse) {own_version()}\n")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
