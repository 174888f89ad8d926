"""Container images without a registry: the base from Debian's archive, ours with buildah, into every node.

The base image stands in for the Dockerfile's `python:3.11-slim-bookworm`: the same Debian with the same
Python series, made by debootstrap under the same name. It is not the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import packages
from tests.cluster.layout import PAUSE_IMAGE, REPOSITORY, Layout
from tests.cluster.run import ClusterError, run, works
from tests.fakes.helm import helm_path

BASE_IMAGE = "docker.io/library/python:3.11-slim-bookworm"
REGISTRY, TAG = "images.test", "e2e"  # a registry that does not exist: nothing can come from elsewhere
CONTROL, PROXY, BOOKSHOP = (f"{REGISTRY}/gatehouse/{name}:{TAG}" for name in ("control", "proxy", "bookshop"))

_SUITE = "bookworm"
# nft and ip are in the base already, so that the Dockerfile's build needs no network.
_INCLUDE = "ca-certificates,iproute2,nftables,python3,python3-pip,python3-venv"
_LOCKS = ("runtime", "envoy")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageStore:
    """Builds images into a store of its own inside the cache, never into the machine's."""

    def __init__(self, place: Layout) -> None:
        self._place = place
        self._settings = place.cache / "storage.conf"

    def base(self) -> str:
        """The stand-in base image; made once."""
        packages.install()
        self._place.cache.mkdir(parents=True, exist_ok=True)
        self._write_settings()
        if works(self._buildah("inspect", "--type", "image", BASE_IMAGE)):
            return BASE_IMAGE
        with tempfile.TemporaryDirectory(prefix="base-", dir=self._place.cache) as directory:
            root = Path(directory) / "root"
            options = ["--variant=minbase", f"--include={_INCLUDE}"]
            run(["debootstrap", *options, _SUITE, root], timeout=1200)
            # As in the official image: `python` on the path, and pip may install.
            for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
                marker.unlink()
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
                shutil.rmtree(root / waste)
                (root / waste / "partial").mkdir(parents=True)
            self.from_tree(BASE_IMAGE, root, ["--env", f"PATH={_PATH}", "--cmd", "python3"])
        return BASE_IMAGE

    def from_tree(self, name: str, root: Path, options: Iterable[str] = ()) -> None:
        """An image of one layer: the directory `root`."""
        container = run(self._buildah("from", "scratch")).strip()
        try:
            mounted = run(self._buildah("mount", container)).strip()
            run(["cp", "-a", f"{root}/.", mounted], timeout=300)
            run(self._buildah("umount", container))
            run(self._buildah("config", *options, container))
            run(self._buildah("commit", "-q", container, name), timeout=300)
        finally:
            run(self._buildah("rm", container))

    def wheels(self) -> Path:
        """The locked wheels of the running Python's platform, downloaded once per lock."""
        locks = [REPOSITORY / "requirements" / f"{name}.lock" for name in _LOCKS]
        digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:16]
        target = self._place.cache / f"wheels-{digest}"
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(prefix="wheels-", dir=self._place.cache) as directory:
            for lock in locks:
                pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
                run(
                    [*pip, "--require-hashes", "--only-binary", ":all:", "-r", lock, "-d", directory],
                    timeout=600,
                )
            shutil.copytree(directory, target)
        return target

    def build(self, names: Iterable[str] = ("control", "proxy", "bookshop")) -> list[str]:
        """Build our images with `scripts/image`, as `make image` does; returns their names."""
        self.base()
        settings = {
            **self._environment(),
            "IMAGE_TOOL": "buildah",
            "IMAGE_REGISTRY": REGISTRY,
            "IMAGE_TAG": TAG,
            "WHEELS": str(self.wheels()),
            # chroot: needs no container runtime, no network set-up and no user namespace.
            "BUILD_OPTIONS": "--isolation chroot --network host --pull-never",
        }
        built = run([REPOSITORY / "scripts" / "image", *names], timeout=1200, environment=settings)
        return built.split()

    def release(self, directory: Path) -> list[Path]:
        """What `make release` writes, with the images that were built; the files."""
        settings = {
            **self._environment(),
            "IMAGE_TOOL": "buildah",
            "IMAGE_BUILD": "0",
            "IMAGE_REGISTRY": REGISTRY,
            "IMAGE_TAG": TAG,
            "HELM": str(helm_path()),
            "DIST": str(directory),
        }
        written = run([REPOSITORY / "scripts" / "release"], timeout=300, environment=settings)
        return [Path(line) for line in written.splitlines()]

    def image_id(self, name: str) -> str:
        """The digest of the image's configuration, in hexadecimal."""
        return run(self._buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", name)).strip()

    def export(self, names: Iterable[str], archive: Path) -> None:
        """Write images as one OCI archive: what they share is there once."""
        with tempfile.TemporaryDirectory(prefix="oci-", dir=archive.parent) as layout:
            fast = ["--compression-format=zstd", "--compression-level=1"]
            for name in names:
                run(self._buildah("push", "-q", *fast, name, f"oci:{layout}:{name}"), timeout=300)
            run(["tar", "-C", layout, "-cf", archive, "."])

    def _buildah(self, *words: str) -> list[str]:
        settings = [f"{key}={value}" for key, value in self._environment().items()]
        return ["env", *settings, "buildah", *words]

    def _environment(self) -> dict[str, str]:
        return {"CONTAINERS_STORAGE_CONF": str(self._settings), "BUILDAH_ISOLATION": "chroot"}

    def _write_settings(self) -> None:
        """Overlay where the file system can, else plain copies."""
        if self._settings.exists():
            return
        store = self._place.cache / "store"
        run_root = Path("/tmp") / f"gatehouse-buildah-{os.getuid()}"
        for driver in ("overlay", "vfs"):
            content = f'[storage]\ndriver = "{driver}"\ngraphroot = "{store}"\nrunroot = "{run_root}"\n'
            self._settings.write_text(content, encoding="ascii")
            if works(self._buildah("images")):
                return
            shutil.rmtree(store, ignore_errors=True)
        self._settings.unlink()
        raise ClusterError("buildah can use neither overlay nor vfs here")


def pause_archive(place: Layout, archive: Path) -> None:
    """The sandbox image, as a docker archive."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(place.binaries / "pause", arcname="pause", filter=_as_root)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    name = hashlib.sha256(configuration).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(archive, "w") as tar:
        for file, data in (
            (name, configuration),
            ("manifest.json", manifest),
            ("layer.tar", layer.getvalue()),
        ):
            info = tarfile.TarInfo(file)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode = 0o755
    return info


def load(place: Layout, archive: Path) -> None:
    """Import an archive into the containerd of every node, the nodes at the same time."""

    def one(socket: Path) -> None:
        run(
            ["ctr", "-a", socket, "-n", "k8s.io", "images", "import", archive], timeout=300
        )  # CRI's name space

    with ThreadPoolExecutor(len(place.places)) as pool:
        list(pool.map(one, [node.containerd_socket for node in place.places]))
