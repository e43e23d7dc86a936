"""A server on loopback that is no hub, for what a connection or a client makes of what a hub could say.

    with server(handle) as address:          `handle` gets each connection, in a thread of its own
        Connection.open(address, hello)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from websockets.sync.server import ServerConnection, serve

from tapml.remote.address import HubAddress
from tapml.remote.wire import MESSAGE_LIMIT


@contextmanager
def server(handle: Callable[[ServerConnection], None]) -> Iterator[HubAddress]:
    with serve(handle, "127.0.0.1", 0, max_size=MESSAGE_LIMIT, compression=None) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield HubAddress("http", "127.0.0.1", running.socket.getsockname()[1], token="secret")
        running.shutdown()
        thread.join()
