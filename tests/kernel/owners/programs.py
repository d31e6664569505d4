"""Clients and servers that are programs of others, and quick.c."""

from __future__ import annotations

import os
import shutil
import sys

from kernel.owners.children import execute
from kernel.owners.post import Post, be_nobody, family
from kernel.owners.truth import TCP

__all__ = ["ABSENT", "MISSING", "http", "quick", "tool"]

MISSING, ABSENT = 77, "not there"  # exit code of a client whose program is not there, and how that is said
HTTP_SERVER = """
import http.server, os, sys
class Server(http.server.ThreadingHTTPServer):
    address_family = int(sys.argv[1])
server = Server((sys.argv[2], int(sys.argv[3])), http.server.SimpleHTTPRequestHandler)
os.chdir("/proc/self")
os.write(int(sys.argv[4]), b"r")
server.serve_forever()
"""


def quick(post: Post, how: str, who: str = "") -> None:
    """The program quick.c, which lives for a moment."""
    if who == "nobody":
        be_nobody()
    execute(post, how, post.to, str(post.case.port), str(post.truth), post.case.name)


def tool(post: Post, name: str) -> None:
    """A program as anybody has it, if it is there."""
    address = f"[{post.to}]" if ":" in post.to else post.to
    url = f"http://{address}:{post.case.port}/status"
    commands = {
        "curl": ["curl", "-s", "-o", "/dev/null", url],
        "wget": ["wget", "-q", "-O", "/dev/null", url],
        "bash": ["bash", "-c", f"exec 3<>/dev/tcp/{post.to}/{post.case.port}; echo x >&3; read -t 3 <&3"],
    }
    path = shutil.which(name)
    if path is None:
        os._exit(MISSING)
    post.client(TCP, (None, None), post.case.port, comms=(name,))
    post.other(TCP, post.server, post.case.port)
    os.execv(path, commands[name])  # noqa: S606


def http(post: Post) -> None:
    """Python's http.server; its clients write its ends down."""
    where = post.case.bind or post.case.to
    os.set_inheritable(post.started, True)
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    words = [str(int(family(where))), where, str(post.case.inside), str(post.started)]
    os.execv(sys.executable, [sys.executable, "-c", HTTP_SERVER, *words])  # noqa: S606
