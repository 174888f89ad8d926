"""`python -m tests.cluster build|up|image|status|down`: a real two-node Kubernetes on this machine.

build    compile the servers into the cache (minutes, once)
up       start the cluster; the last line on stdout is the kubeconfig's path
image    build Gatehouse's images and load them into the nodes
status   what runs; exit code 1 when not everything does
down     stop it, and remove all but the cache
"""

from __future__ import annotations

import argparse
import sys

from tests.cluster import cluster
from tests.cluster.build import build
from tests.cluster.layout import Layout
from tests.cluster.run import ClusterError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=["build", "up", "image", "status", "down"])
    verb = parser.parse_args().verb
    place = Layout.default()
    try:
        if verb == "build":
            print(build(place))
        elif verb == "status":
            return _status(place)
        else:
            with cluster.exclusive(place, wait=False):
                _change(verb, place)
    except ClusterError as error:
        print(f"tests.cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _change(verb: str, place: Layout) -> None:
    if verb == "up":
        print(cluster.up(place))
    elif verb == "image":
        print("\n".join(cluster.load_images(place)))
    else:
        cluster.down(place)


def _status(place: Layout) -> int:
    found = cluster.status(place)
    print(f"running: {' '.join(found.running) or 'nothing'}")
    print(f"nodes ready: {' '.join(found.ready) or 'none'}")
    return 0 if len(found.ready) == place.nodes else 1


if __name__ == "__main__":
    sys.exit(main())
