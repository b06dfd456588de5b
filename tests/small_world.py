"""A small folder of real files in the form of the fashion data set, and runs made of it.

150 products in five colours, five types and two genders, each with a photo of its own colour, so
that there is something to learn; among them one row and two photos that are broken, as in the real
set.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from shared.adapter import Adapter, load_adapter
from shared.config import FederationConfig, parse_run_config
from shared.encoders.encoder import Encoder
from simulations.prepare import WorldOptions, prepare
from simulations.progress import RunProgress
from simulations.run import Options

COLOURS = {
    "Red": (200, 30, 30),
    "Blue": (30, 30, 200),
    "Green": (30, 160, 30),
    "Black": (10, 10, 10),
    "White": (240, 240, 240),
}
TYPES = ("Shirts", "Jeans", "Heels", "Watches", "Caps")
GENDERS = ("Men", "Women")
BRANDS = ("Acme", "Bell", "Corex")
NUM_PROBLEMS = 3
_HEADER = [
    "id",
    "gender",
    "masterCategory",
    "subCategory",
    "articleType",
    "baseColour",
    "season",
    "year",
    "usage",
    "productDisplayName",
]


def write_fashion(folder: Path, *, products: int = 150) -> Path:
    """Write `styles.csv` and `images/ID.jpg`; always the same bytes for the same number."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "styles.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_HEADER)
        for number in range(1001, 1001 + products):
            table.writerow(_product(number, rng, folder / "images"))
        file.write("9001,Men,a row cut off\n")
    (folder / "images" / "sku-1003.jpg").write_bytes(b"not a photo")
    (folder / "images" / "sku-1004.jpg").unlink()
    return folder


def _product(number: int, rng: np.random.Generator, images: Path) -> list[str]:
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))]
    kind, gender = TYPES[rng.integers(len(TYPES))], GENDERS[rng.integers(len(GENDERS))]
    title = f"{BRANDS[rng.integers(len(BRANDS))]} {gender} style {rng.integers(1000)} {kind}"
    Image.new("RGB", (24, 32), COLOURS[colour]).save(images / f"sku-{number}.jpg")
    return [f"sku-{number}", gender, "-", "-", kind, colour, "Summer", "2012", "Casual", title]


def write_icecat(folder: Path) -> Path:
    """Write `products.jsonl.gz` and `judgments.csv`: 80 products of two suppliers, some judged."""
    folder.mkdir()
    kinds, products, judged = ("ink cartridge", "laser printer"), [], []
    for number in range(80):
        supplier, kind = ("Acme", "Bolt")[number % 2], kinds[number // 2 % 2]
        colour = tuple(COLOURS)[number % len(COLOURS)]
        title = f"{supplier} X{number} {kind} {colour}"
        attributes = {"attr_t_kind": kind, "attr_t_colour": colour, "attr_n_pages": 1.0}
        row = {"id": str(number), "title": title, "supplier": supplier, "price": 1250}
        products.append(row | attributes)
        if number % 3 == 0:
            judged += [f"{words},{number},{3 * (words in kind)}" for words in ("printer", "ink")]
    with gzip.open(folder / "products.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(f"{json.dumps(row)}\n" for row in products)
    header = "query,product_id,rating"
    (folder / "judgments.csv").write_text("\n".join([header, *judged]) + "\n", encoding="utf-8")
    return folder


def quiet() -> RunProgress:
    """Progress that nobody sees."""
    return RunProgress(Console(quiet=True))


class Stops(RunProgress):
    """Progress that nobody sees, with Ctrl-C when a stage begins."""

    def __init__(self, before: str) -> None:
        super().__init__(Console(quiet=True))
        self.before = before

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        if name == self.before:
            raise KeyboardInterrupt
        with super().stage(name, title):
            yield


def prepare_run(run: Path, fashion: Path, *, regions: int = 2, seed: int = 7) -> None:
    """Regions, base and signing key of a run, and nothing trained yet."""
    run.mkdir(parents=True)
    prepare(run, world_options(fashion, regions=regions, seed=seed), quiet())


def world_options(fashion: Path, *, regions: int = 2, seed: int = 7, **more: str) -> WorldOptions:
    """A world of preset `tiny`."""
    return WorldOptions(
        data=f"fashion:{fashion}",
        regions=regions,
        rule=None,
        preset="tiny",
        device="cpu",
        seed=seed,
        **more,
    )


def federation(run: Path | str, **knobs: float) -> FederationConfig:
    """The default federation of two rounds, with some knobs turned (underscores for dashes)."""
    return parse_run_config(run_config(run, **knobs))


def run_config(run: Path | str, **knobs: float) -> dict[str, object]:
    """What both Flower apps are handed."""
    dashed = {name.replace("_", "-"): value for name, value in knobs.items()}
    return {"run-dir": str(run), "num-rounds": 2, "region-wait-s": 0, **dashed}


def options(fashion: Path, **changes: object) -> Options:
    """What `fedshelf simulate --data fashion:DIR --preset tiny --rounds 2 --regions 2` asks for."""
    asked: dict[str, object] = {
        "data": f"fashion:{fashion}",
        "regions": 2,
        "partition": None,
        "rounds": 2,
        "preset": "tiny",
        "engine": "local",
        "device": "cpu",
        "seed": 7,
        "threads": 1,  # as tests/conftest.py
    }
    return Options(**{**asked, **changes})  # type: ignore[arg-type]


def start_headquarters(run: Path, encoder: Encoder, *, seed: int = 7) -> None:
    """The initial adapter, as the first step of the federation stage writes it."""
    from server.history import History

    encoder.reset(seed=seed)
    history, fingerprint = History(run / "headquarters"), encoder.base.fingerprint
    history.start(encoder.adapter(), base_fingerprint=fingerprint, dim=encoder.dim)


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line a person reads when something was wrong."""
        last = self.err.splitlines()[-1]
        assert last.startswith("error: "), self.err
        assert "Traceback" not in self.err
        return last


Call = Callable[..., Answer]  # the command line, called with these arguments


def adapters(run: Path) -> dict[str, Adapter]:
    return {str(p.relative_to(run)): load_adapter(p) for p in sorted(run.rglob("0*.safetensors"))}


def assert_same_adapters(one: Path, other: Path) -> None:
    ours, theirs = adapters(one), adapters(other)
    assert list(ours) == list(theirs)
    for name, adapter in ours.items():
        for key, tensor in adapter.items():
            assert torch.equal(tensor, theirs[name][key]), (name, key)
