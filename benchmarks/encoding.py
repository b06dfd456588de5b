"""Product vectors from scratch and from kept activations, beside what a user would write instead.

Texts beside `SentenceTransformer.encode` with its default batch; photos beside the plain timm model
behind a `DataLoader` with one worker process a core. The weights are those of the run's base.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from benchmarks.floor import matrix_rate, operations
from benchmarks.report import Report
from benchmarks.timing import Spread, in_turns
from client.worker import Worker
from shared.encoders.image import ImageConfig, create_image_model, load_pixels
from shared.encoders.text import TextConfig

SECTION: Final = "encoding"
TARGET: Final = 2.0  # times
PRODUCTS: Final = 1000
_BATCH: Final = 64


def measure_encoding(
    report: Report, worker: Worker, base: Path, *, rounds: int, threads: int
) -> None:
    """Encode texts, photos, and a whole catalog for a new release.

    Args:
        report: figures go there.
        worker: of a region.
        base: folder of its base.
        rounds: of each way, in turns.
        threads: worker processes of the DataLoader.
    """
    encoder, region = worker.encoder, worker.region
    encoder.reset(seed=0)  # encodes as the base does, so that both ways give the same vectors
    rate = matrix_rate(encoder.device)
    report.add(SECTION, "matrix rate, float32", rate / 1e9, "GFLOP/s")
    texts = [text or "" for text in region.texts[:PRODUCTS]]
    photos = [path for path in region.image_paths if path is not None][:PRODUCTS]
    plain = plain_sentence_transformer(base / "text", encoder.base.text)
    _compare(
        report,
        "texts",
        len(texts),
        {
            "fedshelf": lambda _: encoder.encode_products(texts, [None] * len(texts)),
            "sentence-transformers": lambda _: plain.encode(texts, normalize_embeddings=True),
        },
        rounds=rounds,
        rate=rate,
    )
    if photos:
        loop = PlainPhotos(base / "image", encoder.base.image, photos, processes=threads)
        _compare(
            report,
            "photos",
            len(photos),
            {
                "fedshelf": lambda _: encoder.encode_products([None] * len(photos), photos),
                "timm and DataLoader": loop,
            },
            rounds=rounds,
            rate=rate,
        )
    count, products = region.catalog.height, worker.products
    _compare(
        report,
        "a catalog for a new release",
        count,
        {
            "from kept activations": lambda _: encoder.product_matrix(products),
            "from scratch": lambda _: encoder.encode_products(region.texts, region.image_paths),
        },
        rounds=rounds,
        rate=rate,
    )


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
        pixels = torch.from_numpy(load_pixels(self._photos[number], self._size))
        return (pixels.permute(2, 0, 1) / 255 - self._mean) / self._std


def _compare(
    report: Report, what: str, count: int, ways: dict[str, Any], *, rounds: int, rate: float
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
