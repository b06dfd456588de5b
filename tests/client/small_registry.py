"""A headquarters' registry, a region's folder and an encoder, all too small to take any time."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.region import Region, open_region
from server.releases import generate_signing_key, publish_release, write_release
from shared.release import MODEL_FILES, ReleaseBase, ReleaseFacts

BASE, ENCODER = "b" * 64, "e" * 64
NOW = datetime(2030, 1, 1, tzinfo=UTC)
TITLES = ("red boots", "blue boots", "red boots", "a phone", "größe")


class HashEncoder:
    """Unit vectors that depend on the text and on the release alone, all near each other."""

    def __init__(self, digest: str | None = ENCODER) -> None:
        self._fixed, self._release = digest, b""

    @property
    def digest(self) -> str:
        return self._fixed or digest_of(self._release)

    distance = "cosine"

    def reset(self, *, seed: int) -> None:
        self._release = b""

    def load_release(self, folder: Path) -> None:
        self._release = (folder / "fusion.safetensors").read_bytes()

    def adapter(self) -> dict[str, bytes]:
        return {"release": self._release}

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Path | None]
    ) -> NDArray[np.float32]:
        assert len(texts) == len(images)
        vectors = np.array([self._from_hash(text or "") for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    encode_queries = encode_products

    def _from_hash(self, text: str) -> NDArray[np.float64]:
        hashed = hashlib.sha256(self._release + text.encode()).digest()
        return np.frombuffer(hashed[:16], np.uint8) + 128.0


def digest_of(release: bytes) -> str:
    """Digest of a `HashEncoder` with these bytes as its release; none are the base."""
    return hashlib.sha256(b"encoder" + release).hexdigest()


class Headquarters:
    """A registry with its key, and a folder of adapter files to release."""

    def __init__(self, folder: Path) -> None:
        self.registry, self.key, self.files = folder / "releases", folder / "key.pem", folder / "f"
        self.public = generate_signing_key(self.key)
        for name in MODEL_FILES:
            (self.files / name).parent.mkdir(parents=True, exist_ok=True)
            (self.files / name).write_bytes(name.encode())

    def release(
        self,
        base: str = BASE,
        now: datetime = NOW,
        *,
        adapter: bytes | None = None,
        digest: str = ENCODER,
        publish: bool = True,
    ) -> int:
        """Write the next release; `adapter` is what a `HashEncoder` loads."""
        if adapter is not None:
            (self.files / "fusion.safetensors").write_bytes(adapter)
            digest = digest_of(adapter)
        facts = ReleaseFacts(
            base=ReleaseBase(fingerprint=base, ids={"text": "tiny"}),
            dims={"shared": 16},
            encoder_digest=digest,
            rounds=1,
            strategy="fedavg",
        )
        number = write_release(self.registry, files=self.files, facts=facts, signing_key=self.key)
        if publish:
            self.publish(number, now)
        return number

    def publish(self, number: int, now: datetime = NOW, days: int = 90) -> None:
        valid_for = timedelta(days=days)
        publish_release(self.registry, number, signing_key=self.key, valid_for=valid_for, now=now)


def write_region(folder: Path, headquarters: Headquarters, extra: str = "") -> Path:
    """A region of five products beside the registry; `extra` is appended to its `region.toml`."""
    folder.mkdir()
    (folder / "region.toml").write_text(
        'region = "north"\ndata.text_fields = ["title"]\n[base]\npath = "../base"\n'
        f'fingerprint = "{BASE}"\nrelease_key = "{headquarters.public}"\n'
        f'releases = "../{headquarters.registry.name}"\n{extra}'
    )
    write_catalog(folder, TITLES)
    return folder


def write_catalog(folder: Path, titles: Sequence[str]) -> Region:
    """Products sku-0, sku-1, ... with these titles."""
    ids = [f"sku-{number}" for number in range(len(titles))]
    table = pl.DataFrame({"product_id": ids, "title": list(titles)})
    table.write_parquet(folder / "catalog.parquet")
    return open_region(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
