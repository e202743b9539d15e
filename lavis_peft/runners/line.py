"""A connection between two processes of a run, on one machine or two: JSON objects, one a line."""

import contextlib
import hmac
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: A connection whose machine no longer answers ends after idle + count × interval seconds; the last value, in
#: milliseconds, is for when something was on its way.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": 40_000}
#: Seconds for one attempt to connect, and for the greeting that follows.
_PATIENCE = 10.0
#: Longest greeting, bytes; it is read before it is known who sent it.
_GREETING = 4096


class Line:
    """One end of a connection.

    Args:
        connection: Connected.
        name: Who is at the other end, for messages.
    """

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.name = name
        self._socket = connection
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):  # not every system lets a program choose
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; where the other end is gone there is nobody to send it to."""
        with contextlib.suppress(OSError):
            self._socket.sendall(_encoded(message))

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the other end says, until it is gone."""
        rest = b""
        while True:
            try:
                received = self._socket.recv(_GREETING)
            except OSError:  # reset, or given up by keepalive
                return
            if not received:
                return
            *lines, rest = (rest + received).split(b"\n")
            yield from (json.loads(line) for line in lines)

    def close(self) -> None:
        """Close this process's handle of the connection; another process that has one keeps it open."""
        self._socket.close()


def listen(backlog: int) -> socket.socket:
    """Wait for connections, on a port that is free.

    Args:
        backlog: How many may come before they are taken.
    """
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # built with IPv6, on a machine without
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


def greeted(server: socket.socket, token: str, count: int) -> dict[int, Line]:
    """Take the connections of processes that know the run's token; anybody else's is closed.

    Args:
        server: Listens.
        token: Known to the run's processes only.
        count: How many will come.

    Returns:
        The lines by rank.
    """
    lines: dict[int, Line] = {}
    deadline = time.monotonic() + 3 * _PATIENCE
    while len(lines) < count and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except OSError:
            break
        greeting = _greeting(connection)
        if hmac.compare_digest(str(greeting.get("token")).encode(), token.encode()):
            lines[greeting["rank"]] = Line(connection, greeting["name"])
        else:
            connection.close()
    return lines


def _greeting(connection: socket.socket) -> dict[str, Any]:
    received = b""
    connection.settimeout(_PATIENCE)
    try:
        while b"\n" not in received and len(received) < _GREETING:
            part = connection.recv(1)  # one byte: what follows the greeting is the line's
            if not part:
                break
            received += part
        greeting = json.loads(received)
    except (OSError, ValueError):
        return {}
    return greeting if isinstance(greeting, dict) else {}


def connect(hosts: Sequence[str], port: int, greeting: Mapping[str, Any], name: str) -> Line | None:
    """Connect and greet.

    Args:
        hosts: Names of the machine that listens, tried in turn.
        port: Its port.
        greeting: Holds the `token`, this process's `rank` and its `name`.
        name: Of the process that listens.

    Returns:
        The line; None if the machine can't be reached.
    """
    for host in hosts:
        with contextlib.suppress(OSError):
            line = Line(socket.create_connection((host, port), timeout=_PATIENCE), name)
            line.send(greeting)
            return line
    return None


def own_name() -> str:
    """This process as messages name it."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _encoded(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
