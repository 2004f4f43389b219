"""RFC 3161 tokens from a local authority that openssl makes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("rfc3161_client")
pytest.importorskip("httpx")
if shutil.which("openssl") is None:
    pytest.skip("needs the openssl command", allow_module_level=True)

from timestamp_authority import make_authority, stamp

from watermark.commitment_log import CommitmentLog, envelope_leaf
from watermark.errors import KeyringError, LedgerError, UsageError, VerificationError
from watermark.signed_note import create_note_key
from watermark.timestamp import TimestampRoots, take_timestamp


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("tsa"))


@pytest.fixture(scope="module")
def address(authority: Path) -> Iterator[str]:
    """An authority over HTTP; what it answers depends on the path."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/down":
                self.send_error(503)
                return
            reply = {"/garbage": b"\x30\x03no", "/large": b"x" * (2 << 20)}.get(self.path)
            if self.path == "/replayed":
                reply = (authority / "first.tsr").read_bytes()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(stamp(authority, query) if reply is None else reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_token_is_of_its_bytes_and_under_its_root(authority: Path, address: str, tmp_path: Path) -> None:
    token = take_timestamp(b"a head", url=address)
    (authority / "first.tsr").write_bytes(token)
    roots = TimestampRoots.load(authority / "root.pem")
    assert roots.verify(token, b"a head").year >= 2026
    with pytest.raises(VerificationError, match="not over these bytes"):
        roots.verify(token, b"another head")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(VerificationError, match="under the roots"):
        TimestampRoots.load(make_authority(other) / "root.pem").verify(token, b"a head")
    changed = bytearray(token)
    changed[len(changed) // 2] ^= 1
    with pytest.raises(VerificationError):
        roots.verify(bytes(changed), b"a head")


@pytest.mark.parametrize(
    ("path", "said"), [("/down", "HTTP 503"), ("/garbage", "no token"), ("/large", "1 MiB"), ("/replayed", "no token")]
)
def test_an_authority_that_answers_otherwise_is_refused(authority: Path, address: str, path: str, said: str) -> None:
    (authority / "first.tsr").write_bytes(take_timestamp(b"first", url=address))
    with pytest.raises(LedgerError, match=said):
        take_timestamp(b"a head", url=address + path)


def test_an_authority_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no timestamp"):
        take_timestamp(b"a head", url="http://127.0.0.1:1")
    with pytest.raises(UsageError, match="address"):
        take_timestamp(b"a head", url="file:///etc/passwd")
    (tmp_path / "roots.pem").write_text("nothing", encoding="utf-8")
    with pytest.raises(KeyringError, match="PEM"):
        TimestampRoots.load(tmp_path / "roots.pem")


def test_a_log_keeps_the_tokens_over_its_heads(authority: Path, address: str, tmp_path: Path) -> None:
    signer = create_note_key(tmp_path / "publisher.key", name="provider.example/taggant")
    log = CommitmentLog(tmp_path / "log")
    roots = TimestampRoots.load(authority / "root.pem")
    with pytest.raises(UsageError, match="taggant keys commit"):
        log.timestamp(lambda message: take_timestamp(message, url=address))
    for kind in ("plan", "scores"):
        log.append(envelope_leaf(kind, "ab" * 32, plan=None if kind == "plan" else "ab" * 32), signer)
        log.timestamp(lambda message: take_timestamp(message, url=address))
    tokens = log.timestamps()
    assert sorted(tokens) == [1, 2]
    for head, token in tokens.values():
        roots.verify(token, head)
