"""Small data sets under the name of MNIST, and a server that misbehaves on demand."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_defenses.core import registry
from robustbench_defenses.data import mnist

COUNTS = {"train": 20, "t10k": 10}
SIDE = 6
NAMES = [f"{part}-{kind}-ubyte.gz" for part in COUNTS for kind in ("images-idx3", "labels-idx1")]


def idx_bytes(array: np.ndarray) -> bytes:
    """`array` of unsigned bytes as an idx file."""
    head = struct.pack(f">{1 + array.ndim}I", 0x800 | array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


@dataclass
class Small:
    """A small MNIST: `files`: name -> content; `arrays`: (split, kind) -> array."""

    files: dict[str, bytes]
    arrays: dict[tuple[str, str], np.ndarray]
    card: dict[str, Any]

    def put(self, folder: Path, unzipped: bool = False) -> None:
        """Write the files into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            if unzipped:
                (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(content))
            else:
                (folder / name).write_bytes(content)


def small_mnist(monkeypatch: pytest.MonkeyPatch) -> Small:
    """Put a small data set in the place of `mnist`: its card lists these files and checksums."""
    draw = np.random.default_rng(0)
    files, arrays, about = {}, {}, {}
    for part, count in COUNTS.items():
        images = draw.integers(0, 256, (count, SIDE, SIDE)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            plain = idx_bytes(array)
            content = gzip.compress(plain, mtime=0)
            name = f"{part}-{kind}-ubyte.gz"
            files[name] = content
            arrays["train" if part == "train" else "test", kind[:6]] = array
            about[name] = {
                "bytes": len(content),
                "md5": hashlib.md5(content).hexdigest(),
                "sha256": hashlib.sha256(content).hexdigest(),
                "unzipped": {"bytes": len(plain), "sha256": hashlib.sha256(plain).hexdigest()},
            }
    changes = {
        "files": about,
        "shape": [1, SIDE, SIDE],
        "train": COUNTS["train"],
        "test": COUNTS["t10k"],
    }
    card = swap_card(monkeypatch, "mnist", mnist.CARD, changes)
    return Small(files, arrays, card)


def swap_card(
    monkeypatch: pytest.MonkeyPatch, name: str, own: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    """Put `changes` into the card of a data set, in its module and in the registry.

    The digests of what is decoded are gone from the card that comes back: they are of other images.
    """
    for key, value in changes.items():
        monkeypatch.setitem(own, key, value)
    card = {**own, "digests": {}, "label_digests": {}}
    real = registry.scan

    def swapped(kind: str, root: Path = registry.ROOT) -> registry.Scan:
        found = real(kind, root)
        entries = [
            dataclasses.replace(entry, card=card) if entry.name == name else entry
            for entry in found.entries
        ]
        return registry.Scan(entries, found.problems)

    monkeypatch.setattr(registry, "scan", swapped)
    return card


@dataclass
class Server:
    """What the server has (`files`: path -> content), how it behaves, what it was asked.

    `behaviour`: path -> list of moods, one per request, the last one for ever: "whole",
    "drop:N" (announces everything, hangs up after N bytes), "short:N" (announces and sends N).
    """

    files: dict[str, bytes]
    ranges: bool = True
    behaviour: dict[str, list[str]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def mood(self, path: str) -> tuple[str, int]:
        moods = self.behaviour.get(path, ["whole"])
        mood, _, number = (moods.pop(0) if len(moods) > 1 else moods[0]).partition(":")
        return mood, int(number or 0)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Answer requests on a free port of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.asked.append((self.path, wanted))
            if self.path not in server.files:
                self.send_error(404)
                return
            content, start = server.files[self.path], 0
            if wanted and server.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                if start >= len(content):
                    self.send_error(416)
                    return
            mood, number = server.mood(self.path)
            body = content[start:]
            if mood == "short":
                body = content[:number]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/*")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:number] if mood == "drop" else body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
