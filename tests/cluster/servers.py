"""The programs of the control plane and of a node: command lines and configuration files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests.cluster import layout
from tests.cluster.layout import Layout, NodePlace
from tests.cluster.namespaces import Tree
from tests.cluster.pki import ClusterCa, Pair
from tests.cluster.run import ClusterError, run, works

_SERVER = f"https://{layout.API_ADDRESS}:{layout.API_PORT}"
_ISSUER = f"https://kubernetes.default.svc.{layout.DOMAIN}"
_ETCD = "http://127.0.0.1:2379"
_FEATURE = "CSIServiceAccountToken"  # tokens for CSI drivers: alpha in 1.20, on by default since 1.21
_CGROUPS = Path("/sys/fs/cgroup")


def control_tree(place: Layout) -> Tree:
    """The process tree of etcd, the servers and DNS."""
    return Tree("control", place.state)


def node_tree(node: NodePlace) -> Tree:
    """The process tree of one node, its pods included."""
    return Tree(node.name, node.state)


def start_control(place: Layout, ca: ClusterCa) -> None:
    """Start etcd, the API server, controllers, scheduler and DNS; does not wait for them."""
    sans = (
        *(
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            _ISSUER.removeprefix("https://"),
        ),
        *("127.0.0.1", layout.API_ADDRESS, layout.SERVICE_API),
    )
    server = ca.leaf("apiserver", "kube-apiserver", sans=sans)
    admin = ca.leaf("admin", "admin", "system:masters")
    ca.kubeconfig(place.kubeconfig, _SERVER, admin)
    tokens = ca.token_keys()
    for user in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        ca.kubeconfig(place.pki / f"{user}.kubeconfig", _SERVER, ca.leaf(user, f"system:{user}"))
    controllers = [
        str(place.binaries / "kube-controller-manager"),
        f"--kubeconfig={place.pki}/kube-controller-manager.kubeconfig",
        f"--service-account-private-key-file={tokens.key}",
        f"--root-ca-file={ca.pair.certificate}",
        f"--cluster-signing-cert-file={ca.pair.certificate}",
        f"--cluster-signing-key-file={ca.pair.key}",
        "--use-service-account-credentials",
        "--leader-elect=false",
    ]
    scheduler = [
        str(place.binaries / "kube-scheduler"),
        f"--kubeconfig={place.pki}/kube-scheduler.kubeconfig",
        "--leader-elect=false",
    ]
    dns = [
        *(sys.executable, "-I", str(Path(__file__).with_name("dns.py"))),
        *(layout.API_ADDRESS, layout.DOMAIN, _SERVER),
        *(str(ca.pair.certificate), str(admin.certificate), str(admin.key)),
    ]
    control_tree(place).start(
        namespace=layout.CONTROL_NAMESPACE,
        mounts=[],
        directories=[],
        programs={
            "etcd": _etcd(place),
            "apiserver": _apiserver(place, ca, server, admin, tokens),
            "controllers": controllers,
            "scheduler": scheduler,
            "dns": dns,
        },
    )


def _etcd(place: Layout) -> list[str]:
    peers = "http://127.0.0.1:2380"
    return [
        _path("etcd"),
        f"--data-dir={place.state}/etcd",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
    ]


def _apiserver(place: Layout, ca: ClusterCa, server: Pair, admin: Pair, tokens: Pair) -> list[str]:
    return [
        str(place.binaries / "kube-apiserver"),
        f"--etcd-servers={_ETCD}",
        f"--service-cluster-ip-range={layout.SERVICE_NETWORK}",
        f"--secure-port={layout.API_PORT}",
        f"--advertise-address={layout.API_ADDRESS}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        f"--client-ca-file={ca.pair.certificate}",
        f"--kubelet-client-certificate={admin.certificate}",
        f"--kubelet-client-key={admin.key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={tokens.certificate}",
        f"--service-account-signing-key-file={tokens.key}",
        f"--service-account-issuer={_ISSUER}",
        f"--api-audiences={_ISSUER}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--feature-gates={_FEATURE}=true",
        "--enable-aggregator-routing=true",  # webhooks are called at their pods: no kube-proxy here
    ]


def start_node(place: Layout, node: NodePlace, ca: ClusterCa) -> None:
    """Start containerd, kubelet and kube-proxy of a node; does not wait for them."""
    directory = node.directory
    for name in ("kubelet", "pods", "containers", "cni", "run"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    pair = ca.leaf(node.name, f"system:node:{node.name}", "system:nodes", sans=(node.name, node.address))
    ca.kubeconfig(directory / "kubeconfig", _SERVER, pair)
    (directory / "resolv.conf").write_text(f"nameserver {layout.API_ADDRESS}\n", encoding="ascii")
    (directory / "cni" / "10-test.conflist").write_text(json.dumps(_cni(node)), encoding="ascii")
    (directory / "containerd.toml").write_text(_containerd(node), encoding="ascii")
    (directory / "kubelet.json").write_text(json.dumps(_kubelet(node, ca, pair)), encoding="ascii")
    make_cgroup(node)
    kubelet = [
        str(place.binaries / "kubelet"),
        f"--config={directory}/kubelet.json",
        f"--kubeconfig={directory}/kubeconfig",
        "--container-runtime=remote",
        f"--container-runtime-endpoint=unix://{node.containerd_socket}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        f"--volume-plugin-dir={directory}/volumeplugins",
    ]
    proxy = [
        str(place.binaries / "kube-proxy"),
        f"--kubeconfig={place.pki}/kube-proxy.kubeconfig",
        f"--hostname-override={node.name}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={layout.POD_NETWORK}",
        # These belong to the machine, not to a network namespace.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ]
    for path in ("/var/lib/kubelet", "/var/log/pods", "/var/log/containers"):
        Path(path).mkdir(parents=True, exist_ok=True)
    node_tree(node).start(
        namespace=node.namespace,
        # One kubelet per node, each with its own idea of these places.
        mounts=[
            ["-t", "tmpfs", "tmpfs", "/run"],
            ["--bind", f"{directory}/kubelet", "/var/lib/kubelet"],
            ["--bind", f"{directory}/pods", "/var/log/pods"],
            ["--bind", f"{directory}/containers", "/var/log/containers"],
            ["--make-rshared", "/"],
        ],
        directories=["/run/netns", "/run/lock"],
        programs={
            f"{node.name}-containerd": [_path("containerd"), "-c", f"{directory}/containerd.toml"],
            f"{node.name}-kubelet": kubelet,
            f"{node.name}-proxy": proxy,
        },
    )


def _cni(node: NodePlace) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{node.directory}/ipam",
            "ranges": [[{"subnet": node.pod_network}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "test", "plugins": [bridge, ports]}


def _containerd(node: NodePlace) -> str:
    snapshotter = "overlayfs" if _overlay_works(node.directory) else "native"
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc may not lower an OOM score, and fails.
    return f"""version = 2
root = "{node.directory}/containerd/root"
state = "{node.directory}/containerd/state"
[grpc]
  address = "{node.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{layout.PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{node.directory}/cni"
"""


def _overlay_works(directory: Path) -> bool:
    """Whether an overlay can be mounted here: not above another overlay, as inside a container."""
    probe = directory / "probe"
    for name in ("lower", "upper", "work", "merged"):
        (probe / name).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={probe}/lower,upperdir={probe}/upper,workdir={probe}/work"
    mounted = works(["mount", "-t", "overlay", "overlay", "-o", options, probe / "merged"])
    if mounted:
        run(["umount", probe / "merged"])
    shutil.rmtree(probe)
    return mounted


def _kubelet(node: NodePlace, ca: ClusterCa, pair: Pair) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca.pair.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [layout.API_ADDRESS],
        "clusterDomain": layout.DOMAIN,
        "resolvConf": f"{node.directory}/resolv.conf",
        "featureGates": {_FEATURE: True},
        "syncFrequency": "2s",
        "nodeStatusUpdateFrequency": "4s",
        "maxPods": 200,
        "evictionHard": {"memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 50,
        "kubeAPIBurst": 100,
        "tlsCertFile": str(pair.certificate),
        "tlsPrivateKeyFile": str(pair.key),
    }


def make_cgroup(node: NodePlace) -> None:
    """The node's own root of control groups, with every controller, in version 1 or 2."""
    if (_CGROUPS / "cgroup.controllers").exists():
        controllers = (_CGROUPS / "cgroup.controllers").read_text(encoding="ascii").split()
        enable = " ".join(f"+{name}" for name in controllers)
        (_CGROUPS / "cgroup.subtree_control").write_text(enable, encoding="ascii")
        (_CGROUPS / node.cgroup).mkdir(exist_ok=True)
        (_CGROUPS / node.cgroup / "cgroup.subtree_control").write_text(enable, encoding="ascii")
        return
    for controller in _CGROUPS.iterdir():
        if not (controller / "cgroup.procs").exists() or controller.is_symlink():
            continue
        group = controller / node.cgroup
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists():
                (group / name).write_text((controller / name).read_text(encoding="ascii"), encoding="ascii")


def remove_cgroup(node: NodePlace) -> None:
    """Remove what `make_cgroup` and the kubelet made; all its processes are gone."""
    for root in (_CGROUPS, *_CGROUPS.iterdir()):
        top = root / node.cgroup
        if root.is_dir() and not root.is_symlink() and top.is_dir():
            for group in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                group.rmdir()
            top.rmdir()


def _path(program: str) -> str:
    found = shutil.which(program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise ClusterError(f"{program} is not installed")
    return found
