"""Commands and connections inside of network namespaces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

CLIENT = """
import socket, sys
host, port, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(3)
if source: s.bind((source, 0))
try:
    s.connect((host, port)); print(s.recv(16).decode() or "closed")
except OSError as error:
    print(type(error).__name__)
"""


def run(*command: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command from the repository; its failure is the test's unless `check` is false."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=30, check=False, cwd=REPO
    )
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stderr}{done.stdout}")
    return done


def inside(
    namespace: str, *command: str, stdin: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    """The same in a network namespace."""
    return run("nsenter", f"--net=/run/netns/{namespace}", *command, stdin=stdin, check=check)


def connect(
    namespace: str, host: str, port: int, *, uid: int = 1000, gid: int | None = None, source: str = ""
) -> str:
    """What a listener answers (its port), or the name of the error."""
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid if gid is None else gid}", "--clear-groups"]
    command = [*user, sys.executable, "-c", CLIENT, host, str(port), source]
    return inside(namespace, *command).stdout.strip()
