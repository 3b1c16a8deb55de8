"""Python imports this on its start where its folder is on PYTHONPATH: nothing leaves the machine.

What is looked up or connected to is refused and written to the file that REFUSED names, since a
library may take a refusal for a missing network and carry on.
"""

import os
import socket
import sys

_HERE = {"127.0.0.1", "::1", "localhost", "", None, socket.gethostname()}


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: it sees every use of Python's sockets, whatever library calls them."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect":
        address = arguments[1]
        # The address of a Unix socket is its path.
        host = address[0] if isinstance(address, tuple) else None
    else:
        return
    if (host.decode() if isinstance(host, bytes) else host) not in _HERE:
        with open(os.environ["REFUSED"], "a", encoding="utf-8") as file:
            file.write(f"{event} {host}\n")
        raise ConnectionRefusedError(f"{host} is not on this machine")


sys.addaudithook(_refuse)
