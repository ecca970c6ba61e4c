"""The storage of the tests' own Hub: another origin, which serves whoever brings a signed address, until it expires."""

import hashlib
import hmac
import secrets
import time
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.helpers.hub_blobs import sha256
from tests.helpers.hub_files import FileHandler, LoopbackServer, Traffic


class Storage(LoopbackServer):
    """`HubServer(repos, storage=Storage(signed_for=60))` sends weight files from here, by redirects as the Hub does.

    An address is good for `signed_for` seconds, or until `expire()`; afterwards it answers 403.
    """

    traffic: Traffic  # the Hub's

    def __init__(self, signed_for: float = 3600) -> None:
        super().__init__(_Handler)
        self.signed_for = signed_for
        self.blobs: dict[str, Path] = {}  # by SHA-256, of which an address was signed
        self._key = secrets.token_bytes()

    def expire(self) -> None:
        """End all addresses so far; those signed from now on are good."""
        self._key = secrets.token_bytes()

    def address(self, path: Path, file: str) -> str:
        """A signed address of a repository's file."""
        blob = sha256(path)
        self.blobs[blob] = path
        query = {"file": file, "expires": repr(time.time() + self.signed_for)}
        return f"{self.endpoint}/{blob}?{urlencode({**query, 'signature': self._signature(blob, **query)})}"

    def good(self, blob: str, file: str, expires: str, signature: str) -> bool:
        signed = hmac.compare_digest(signature, self._signature(blob, file, expires))
        return signed and time.time() < float(expires)

    def _signature(self, blob: str, file: str, expires: str) -> str:
        return hmac.new(self._key, "\n".join((blob, file, expires)).encode(), hashlib.sha256).hexdigest()


class _Handler(FileHandler):
    server: Storage

    def answer(self) -> None:
        self.traffic = self.server.traffic
        _, _, path, query, _ = urlsplit(self.path)
        blob, values = path.removeprefix("/"), {name: value for name, [value] in parse_qs(query).items()}
        file = self.server.blobs.get(blob)
        if file is None or values.keys() != {"file", "expires", "signature"}:
            self.send_content(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
            return
        size = file.stat().st_size
        request = self.traffic.arrived(
            self.command, values["file"], size, dict(self.headers), storage=True, redirected=False
        )
        if not self.server.good(blob, **values):
            message = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            self.send_content(403, {"Content-Type": "application/xml"}, message)
            return
        self.send_file(file, request, {"ETag": f'"{blob}"'})
