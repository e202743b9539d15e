"""A run's processes tell one another when one of them fails, so that none waits for the dead.

The main process keeps a connection to every other. A connection ends with the process at its other end, whatever ended
that, and the kernel sees to it: unlike a missing heartbeat it is no false alarm, however long a process computes, loads
or holds Python's lock. A machine that is lost answers no keepalive, and is given up after 40 seconds.
"""

import atexit
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lavis_peft.checks import first_line
from lavis_peft.errors import UserError
from lavis_peft.runners.line import Line, connect, greeted, listen, own_name
from lavis_peft.runners.peer import Failure, MainPeer, OtherPeer, Peer, quit_now

#: Of a reason that is passed on, characters.
_LONGEST = 4000

#: A process belongs to one run at most.
_peer: Peer | None = None


def join(rank: int, world_size: int, local_rank: int, hosts: Sequence[str], share: Callable[[Any], Any]) -> bool:
    """Connect this process with the others; each of them calls this at the same point.

    Args:
        rank: This process's number.
        world_size: How many there are.
        local_rank: Its number on this machine.
        hosts: Names under which the main process may be reached, the likeliest first; the main process's list counts.
        share: Gives every process the list of all processes' values, in the order of ranks.

    Returns:
        Whether this process is connected; where it isn't, its death is noticed only by what it leaves undone.
    """
    server = listen(world_size) if rank == 0 else None
    main = (hosts, server.getsockname()[1], secrets.token_hex(16), own_name()) if server else None
    hosts, port, token, name = share(main)[0]
    greeting = {"token": token, "rank": rank, "name": own_name()}
    line = None if server else connect(hosts, port, greeting, name)
    connected = share(server is not None or line is not None)
    if server is not None:
        with server:
            _belong(MainPeer(world_size), greeted(server, token, sum(connected) - 1))
    elif line is not None:
        _belong(OtherPeer(rank, world_size, speaks=rank == 1 or local_rank == 0), {0: line})
    return connected[rank]


def _belong(peer: Peer, lines: Mapping[int, Line]) -> None:
    global _peer
    _peer = peer
    peer.listen_to(lines)
    # A script of LAVIS's simply ends. After a failure this is too late to matter: that was told before.
    atexit.register(leave)
    # A data worker outlives its process by seconds, and would hold the line for it.
    os.register_at_fork(after_in_child=_disown)


def _disown() -> None:
    global _peer
    peer, _peer = _peer, None
    if peer is not None:
        peer.close()


def leave() -> None:
    """Tell the other processes, if there are any, that this one ends well."""
    global _peer
    peer, _peer = _peer, None
    if peer is not None:
        peer.leave()


def end_with(error: BaseException, code: int, show: Callable[[], Any]) -> None:
    """Show an error that ends this process; where there are others, one shows it, and all end with the same code.

    Returns only in a run of one process.

    Args:
        error: The error.
        code: The exit code.
        show: Writes it to standard error.
    """
    if _peer is None:
        show()
        return
    # An interrupt has no traceback worth showing either.
    whole = isinstance(error, UserError) or not isinstance(error, Exception)
    text = str(error) or type(error).__name__ if whole else f"{type(error).__name__}: {first_line(error)}"
    heading = getattr(error, "heading", "Error")
    _peer.fail(Failure(text[:_LONGEST], code, heading, whole, _is_symptom(error)), show)
    # Not the usual way out: libraries tidy up on it, and wait for processes that are no more.
    quit_now(code)


def _is_symptom(error: BaseException) -> bool:
    # torch's own classes for it, and the plain RuntimeError with a source line that gloo raises.
    return type(error).__name__.startswith("Dist") or (isinstance(error, RuntimeError) and "gloo" in str(error))
