"""Names of files that no other process uses."""

import os
import secrets
import socket
import time


def unique_name() -> str:
    """A name of this machine, process and moment."""
    return f"{time.strftime('%Y%m%d%H%M%S')}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
