"""An HTTP server of a few lines that answers with whatever bytes a test gives it, right or wrong."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator

__all__ = ["answer_of", "raw_server", "reply_of"]


def answer_of(text: str, *, ascii_only: bool = False, **fields: object) -> bytes:
    """Return the body of a chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    reply = {"model": "student", "choices": [choice], **fields}
    return json.dumps(reply, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def reply_of(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return a whole reply."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


@contextlib.contextmanager
def raw_server(reply: Callable[[bytes], Iterable[bytes]]) -> Iterator[str]:
    """Serve in threads; *reply* is given each request's head, and yields what is sent. Yield the base address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while (line := self.rfile.readline(65_536)) not in (b"\r\n", b""):
                head += line
            length = [line.split(b":")[1] for line in head.splitlines() if line.lower().startswith(b"content-length:")]
            self.rfile.read(int(length[0]) if length else 0)
            with contextlib.suppress(OSError):
                for part in reply(head):
                    self.wfile.write(part)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 64
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
