"""Product vectors from scratch and from kept activations, beside what a user would write instead.

Texts beside `SentenceTransformer.encode` with its default batch; photos beside the plain timm model
behind a `DataLoader` with one worker process a core, which decodes them as Pillow does by itself
and pads them to the square that the base asks for. Photos are the region's own and, since those may
be thumbnails, the same enlarged to what a shop keeps. The weights are those of the run's base.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from benchmarks.floor import matrix_rate, operations
from benchmarks.memory import alone
from benchmarks.report import Report
from benchmarks.timing import Spread, Way, in_turns
from client.worker import Worker, get_worker
from shared.encoders.base import read_base
from shared.encoders.image import WHITE, ImageConfig, create_image_model
from shared.encoders.text import TextConfig

SECTION: Final = "encoding"
TARGET: Final = 2.0  # times
PRODUCTS: Final = 1000
LARGE: Final = 1000  # pixels, the longer side of a photo as a shop keeps it
LARGE_PHOTOS: Final = 200
LARGE_NAME: Final = f"photos of {LARGE:,} pixels"
_BATCH: Final = 64


@dataclass(frozen=True)
class Place:
    """What is encoded, and by what.

    Attributes:
        worker: of a region.
        base: folder of its base.
        threads: worker processes of the DataLoader.
        scratch: large photos go there.
    """

    worker: Worker
    base: Path
    threads: int
    scratch: Path

    @property
    def texts(self) -> list[str]:
        """Of the first products."""
        return [text or "" for text in self.worker.region.texts[:PRODUCTS]]

    @property
    def photos(self) -> list[Path]:
        """The first that there are."""
        return [path for path in self.worker.region.image_paths if path is not None][:PRODUCTS]

    @property
    def large_photos(self) -> list[Path]:
        """Some of them enlarged, JPEG of quality 90; made the first time."""
        return [_enlarged(path, self.scratch) for path in self.photos[:LARGE_PHOTOS]]

    def num_items(self, what: str) -> int:
        """How many one call of a way encodes."""
        large = min(len(self.photos), LARGE_PHOTOS)
        counts = {"texts": len(self.texts), "photos": len(self.photos), LARGE_NAME: large}
        return counts.get(what, self.worker.region.catalog.height)


def measure_encoding(
    report: Report, worker: Worker, base: Path, scratch: Path, *, rounds: int, threads: int
) -> None:
    """Encode texts, photos, and a whole catalog for a new release.

    Args:
        report: figures go there.
        worker: of a region.
        base: folder of its base.
        scratch: an empty folder.
        rounds: of each way, in turns.
        threads: of torch, and worker processes of the DataLoader.
    """
    worker.encoder.reset(seed=0)  # encodes as the base does, so both ways give the same vectors
    place, rate = Place(worker, base, threads, scratch), matrix_rate(worker.encoder.device)
    report.add(SECTION, "matrix rate, float32", rate / 1e9, "GFLOP/s")
    for what, makers in WAYS.items():
        if place.num_items(what):
            ways = {name: make(place) for name, make in makers.items()}
            _compare(report, what, place.num_items(what), ways, rounds=rounds, rate=rate)
            _weigh(report, place, what)


def encode_once(region: Path, base: Path, threads: int, scratch: Path, what: str, way: str) -> None:
    """One call of one way, for its memory.

    Args:
        region: its folder.
        base: folder of its base.
        threads: worker processes of the DataLoader.
        scratch: see `Place`.
        what: key of `WAYS`.
        way: key in it.
    """
    WAYS[what][way](Place(get_worker(region), base, threads, scratch))(0)


def _weigh(report: Report, place: Place, what: str) -> None:
    """Peak memory of each way, in a process that does nothing else."""
    region, given = place.worker.region.folder, (place.base, place.threads, place.scratch)
    for way in WAYS[what]:
        peak = alone(place.threads, encode_once, region, *given, what, way).peak_bytes
        report.add(SECTION, f"{what}, {way}, peak memory", peak, "bytes")


def _our_texts(place: Place) -> Way:
    encoder, texts = place.worker.encoder, place.texts
    return lambda _: encoder.encode_products(texts, [None] * len(texts))


def _their_texts(place: Place) -> Way:
    plain = plain_sentence_transformer(place.base / "text", read_base(place.base).text)
    texts = place.texts
    return lambda _: plain.encode(texts, normalize_embeddings=True)


def _our_photos(place: Place, photos: list[Path]) -> Way:
    encoder = place.worker.encoder
    return lambda _: encoder.encode_products([None] * len(photos), photos)


def _their_photos(place: Place, photos: list[Path]) -> Way:
    config = read_base(place.base).image
    return PlainPhotos(place.base / "image", config, photos, processes=place.threads)


def _enlarged(photo: Path, folder: Path) -> Path:
    target = folder / f"{photo.stem}.jpg"
    if not target.exists():
        with Image.open(photo) as image:
            whole = image.convert("RGB")
        ImageOps.contain(whole, (LARGE, LARGE)).save(target, quality=90)
    return target


def _kept_catalog(place: Place) -> Way:
    encoder, products = place.worker.encoder, place.worker.products
    return lambda _: encoder.product_matrix(products)


def _whole_catalog(place: Place) -> Way:
    encoder, region = place.worker.encoder, place.worker.region
    return lambda _: encoder.encode_products(region.texts, region.image_paths)


# Made when they are asked for, so that a process holds no more than its own way.
WAYS: Final[dict[str, dict[str, Callable[[Place], Way]]]] = {
    "texts": {"fedshelf": _our_texts, "sentence-transformers": _their_texts},
    "photos": {
        "fedshelf": lambda place: _our_photos(place, place.photos),
        "timm and DataLoader": lambda place: _their_photos(place, place.photos),
    },
    LARGE_NAME: {
        "fedshelf": lambda place: _our_photos(place, place.large_photos),
        "timm and DataLoader": lambda place: _their_photos(place, place.large_photos),
    },
    "a catalog for a new release": {
        "from kept activations": _kept_catalog,
        "from scratch": _whole_catalog,
    },
}


def plain_sentence_transformer(folder: Path, config: TextConfig) -> Any:
    """The base's text tower as sentence-transformers knows it: mean pooling, unit length."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    tower = modules.Transformer(str(folder), max_seq_length=config.max_tokens)
    parts = [tower, modules.Pooling(tower.get_embedding_dimension(), "mean"), modules.Normalize()]
    return SentenceTransformer(modules=parts, device="cpu")


class PlainPhotos:
    """The plain timm model of a base, fed by a DataLoader.

    Args:
        folder: of the image tower.
        config: of the same.
        photos: paths.
        processes: that decode.
    """

    def __init__(
        self, folder: Path, config: ImageConfig, photos: Sequence[Path], *, processes: int
    ) -> None:
        self._model = create_image_model(config).eval()
        self._model.load_state_dict(load_file(folder / "model.safetensors"))
        self._loader: DataLoader[torch.Tensor] = DataLoader(
            _Photos(photos, config), batch_size=_BATCH, num_workers=processes
        )

    @torch.inference_mode()
    def __call__(self, number: int) -> NDArray[np.float32]:
        """Unit vectors of all photos, (N, D)."""
        found = torch.cat([self._model(pixels) for pixels in self._loader])
        return torch.nn.functional.normalize(found, dim=1).numpy()


class _Photos(Dataset[torch.Tensor]):
    def __init__(self, photos: Sequence[Path], config: ImageConfig) -> None:
        self._photos, self._size = photos, config.size
        self._mean = torch.tensor(config.mean).view(3, 1, 1)
        self._std = torch.tensor(config.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self._photos[number]) as image:
            square = ImageOps.pad(image.convert("RGB"), (self._size, self._size), color=WHITE)
        pixels = torch.from_numpy(np.array(square))
        return (pixels.permute(2, 0, 1) / 255 - self._mean) / self._std


def _compare(
    report: Report, what: str, count: int, ways: dict[str, Way], *, rounds: int, rate: float
) -> None:
    """Products a second of two ways, how many times the first is as fast, and its floor."""
    vectors = [way(0) for way in ways.values()]
    cosine = float(np.einsum("nd,nd->n", *vectors).min())
    taken = in_turns(ways, calls=1, rounds=rounds)
    rates = {name: count / seconds[:, 0] for name, seconds in taken.items()}
    ours, theirs = rates
    for name, each in rates.items():
        report.add(SECTION, f"{what}, {name}", Spread.of(each), "1/s")
    times = Spread.of(rates[ours] / rates[theirs])
    report.add(SECTION, f"{what}, {ours} to {theirs}", times, "times", target=TARGET)
    counted = operations(lambda: ways[ours](0))
    floor = Spread.of(taken[ours][:, 0] * rate / counted)
    report.add(SECTION, f"{what}, {ours}, seconds / floor of its operations", floor, "ratio")
    report.add(SECTION, f"{what}, least cosine between the two", cosine, "cosine")
