"""Downloads: checked against a checksum, cached, and never half there."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from mechanisms.lab.folders import cache_folder, whole_file
from mechanisms.lab.paper import NotHere
from mechanisms.lab.stages import private_lock

CHUNK = 2**20


class ChecksumError(ValueError):
    """What came over the network is not what was asked for; nothing was kept."""


def download(url: str, sha256: str, *, folder: Path | None = None, timeout: float | int = 30.0) -> Path:
    """Fetch a file once; it is there whole and checked, or not at all.

    Args:
        url: http or https.
        sha256: the expected checksum, 64 hexadecimal digits.
        folder: where to keep it; by default `downloads` in `mechanisms.lab.folders.cache_folder()`.
        timeout: seconds without an answer or data before giving up.

    Returns:
        The file, readable by its owner alone. A file that is there already is checked again (and fetched again if it
        has changed), so a damaged cache heals itself.

    Raises:
        NotHere: the server cannot be reached, refuses, or breaks off.
        ChecksumError: the content is another one.
        ValueError: `url` or `sha256` cannot be one.

    >>> download("ftp://example.org/data.csv", "0" * 64)
    Traceback (most recent call last):
        ...
    ValueError: only http and https addresses can be downloaded, got 'ftp://example.org/data.csv'
    """
    address = urllib.parse.urlsplit(url)
    if address.scheme not in ("http", "https"):
        raise ValueError(f"only http and https addresses can be downloaded, got {url!r}")
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    folder = folder if folder is not None else cache_folder() / "downloads"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    name = re.sub(r"[^\w.-]+", "_", Path(address.path).name).lstrip(".") or "file"
    path = folder / f"{sha256[:12]}-{name[-100:]}"
    if _checksum(path) == sha256:
        return path
    with private_lock(folder / f".{path.name}.lock"):
        # Another process may have fetched it while this one waited for the lock.
        if _checksum(path) != sha256:
            _fetch(url, sha256, path, timeout)
    return path


def _checksum(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, sha256: str, path: Path, timeout: float | int) -> None:
    by_hand = f"get it by hand and put it at {path}"
    request = urllib.request.Request(url, headers={"User-Agent": "mechanisms"})
    digest, received = hashlib.sha256(), 0
    try:
        with whole_file(path, private=True) as file, urllib.request.urlopen(request, timeout=timeout) as answer:
            expected = answer.headers.get("Content-Length")
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
            if expected is not None and received < int(expected):
                raise http.client.IncompleteRead(b"", int(expected) - received)
            if digest.hexdigest() != sha256:
                raise ChecksumError(
                    f"{url} has the checksum {digest.hexdigest()} where {sha256} is expected; nothing was kept"
                )
    except http.client.IncompleteRead:
        raise NotHere(f"{url} broke off after {received} bytes; try again, or {by_hand}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        # An HTTPError says "HTTP Error 404: Not Found"; other URLErrors carry what went wrong as their reason.
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise NotHere(f"{url} could not be downloaded ({reason}); {by_hand}") from None
