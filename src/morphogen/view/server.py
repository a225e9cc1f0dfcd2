"""The server of the page: this machine only, one secret address, nothing for other sites.

A page of another site can make a browser ask this address, and a name of its own can be pointed at 127.0.0.1. So every
request must carry the token, name this very host, and, where the browser says where it comes from, come from the page.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import socketserver
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

from morphogen._version import __version__
from morphogen.core.errors import OutputError
from morphogen.view.site import Answer, Site, failure

log = logging.getLogger("morphogen.view")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_CONNECTIONS = 64
_LONGEST_PATH = 300
_LONGEST_BODY = 32 << 20
# The hash is that of the one rule that OpenSeadragon adds by itself.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ViewServer(socketserver.ThreadingMixIn, HTTPServer):
    """Serves a :class:`~morphogen.view.site.Site` at ``http://HOST:PORT/TOKEN/``.

    host: an address of this machine; 127.0.0.1 unless another is asked for. port: 0 takes a free one. Raises
    :class:`OutputError` when the address cannot be used.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, site: Site, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.site, self.host, self.token = site, host, secrets.token_urlsafe(24)
        self.free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OutputError(
                f"port {port} of {host} cannot be used ({getattr(error, 'strerror', None) or error})",
                fix="Choose another --port, or leave it out",
            ) from None
        self.port = int(self.server_address[1])
        names = LOOPBACK if host in LOOPBACK else (host, *LOOPBACK)
        if host in ("0.0.0.0", "::"):
            names = (*names, *_own_names())
        self.hosts = {f"[{name}]" if ":" in name else name.lower() for name in names}

    @property
    def address(self) -> str:
        """Of the page, with its token."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/{self.token}/"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer would ask a name server who we are
        self.server_name, self.server_port = self.host, int(self.server_address[1])

    def process_request(self, request: object, client_address: object) -> None:
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]
            return
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]
        except BaseException:
            self.free.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self.free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a request ended badly", exc_info=True)  # a browser that went away, most often

    def start(self) -> ViewServer:
        """Serve in a thread; :meth:`stop` ends it."""
        threading.Thread(target=self.serve_forever, name="view", daemon=True).start()
        return self

    def stop(self) -> None:
        """End the server and let go of its port."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = f"Morphogen/{__version__}"
    sys_version = ""
    timeout = 60  # seconds that an idle connection is held
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = self._asked()
        if path is not None:
            self._send(self.server.site.get(path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.close_connection = True  # a body that is not read must not be taken for a request
        path = self._asked(writing=True)
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _LONGEST_BODY:
            self._send(failure(413, "The size of what is sent is not said, or too large."))
            return
        self._send(self.server.site.save(path, self.rfile.read(int(length))))

    def _asked(self, *, writing: bool = False) -> str | None:
        """The path below the token; ``None`` when the request was refused."""
        refusal = self._refusal(writing)
        if refusal is not None:
            self.close_connection = True
            self._send(refusal)
            return None
        first, slash, rest = self.path.removeprefix("/").partition("?")[0].partition("/")
        if not hmac.compare_digest(first.encode("utf-8", "replace"), self.server.token.encode()) or not slash:
            self._send(failure(403, "This address needs the token that `morphogen view` printed."))
            return None
        return rest

    def _refusal(self, writing: bool) -> Answer | None:
        if len(self.path) > _LONGEST_PATH or not self.path.startswith("/"):
            return failure(400, "This is no address of the viewer.")
        host = self.headers.get("Host", "")
        if not self._is_ours(f"http://{host}"):
            return failure(403, "This host is not served here.")
        origin = self.headers.get("Origin")
        if (origin is not None and not self._is_ours(origin)) or (writing and origin is None):
            return failure(403, "Pages of other sites are not answered.")
        link = (self.headers.get("Sec-Fetch-Mode"), self.headers.get("Sec-Fetch-Dest")) == (
            "navigate",
            "document",
        )
        own = self.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")
        if not own and (writing or not link):  # a link to the page, in a notebook say, may be followed
            return failure(403, "Pages of other sites are not answered.")
        if writing and self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            return failure(415, "Regions are sent as application/json.")
        return None

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
            host = (parts.hostname or "").lower()
            host = f"[{host}]" if ":" in host else host
            return (
                parts.scheme == "http"
                and host in self.server.hosts
                and (parts.port or 80) == self.server.port
            )
        except ValueError:
            return False

    def _send(self, answer: Answer) -> None:
        head = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        headers = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.body)),
            "Cache-Control": "private, max-age=86400" if answer.keep else "no-store",
            "Connection": "close" if self.close_connection else "keep-alive",
            **_HEADERS,
        }
        head += [f"{name}: {value}" for name, value in headers.items()]
        with suppress(ConnectionError, TimeoutError):
            body = b"" if self.command == "HEAD" else answer.body
            self.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


def _own_names() -> list[str]:
    """Names and addresses of this machine, where all of its addresses are served."""
    name = socket.gethostname()
    found = {name, socket.getfqdn()}
    with suppress(OSError):
        found |= {str(each[4][0]) for each in socket.getaddrinfo(name, None)}
    return sorted(found)
