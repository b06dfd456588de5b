"""A release and an index are readable with public libraries alone.

Nothing of ours is imported here: one run is made through the command line, and everything after
that is plain transformers, peft, timm, Pillow, safetensors and FAISS, as a stranger would use them.
"""

import ast
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import pytest
import timm
import torch
from numpy.typing import NDArray
from peft import PeftModel
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

# peft 0.21 asks a property that transformers 5 renames.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROOT = Path(__file__).parents[2]
KINDS = ("Shirts", "Shoes", "Watches", "Bags")
COLOURS = {"Red": (200, 30, 30), "Blue": (30, 30, 200), "Green": (30, 160, 60)}


def draw_shop(folder: Path) -> None:
    """Write 288 products as a fashion data set; every seventh has no photo, some are large."""
    (folder / "images").mkdir(parents=True)
    lines = ["id,gender,articleType,baseColour,productDisplayName"]
    products = itertools.product(range(12), KINDS, COLOURS, ["Men", "Women"])
    for number, (model, kind, colour, gender) in enumerate(products, start=1):
        lines.append(f"{number},{gender},{kind},{colour},{kind} {colour} {model}")
        if number % 7:
            size = (40 + 20 * model, 50)
            Image.new("RGB", size, COLOURS[colour]).save(folder / "images" / f"{number}.jpg")
    (folder / "styles.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run, made by the command line in a process of its own."""
    folder = tmp_path_factory.mktemp("run")
    draw_shop(folder / "shop")
    options = {"data": f"fashion:{folder / 'shop'}", "out": str(folder / "run"), "preset": "tiny"}
    # Regions of like size, and a seed by which a trained round is the best: round 0 has no factors.
    options |= {"regions": "2", "partition": "dirichlet:10", "rounds": "6", "seed": "7"}
    options |= {"threads": "1", "device": "cpu"}
    command = [sys.executable, "-m", "fedshelf", "simulate"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    environment = {**os.environ, "FEDSHELF_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def release(run: Path) -> Path:
    return run / "headquarters" / "releases" / "1"


@pytest.fixture(scope="module")
def text_tower(run: Path, release: Path) -> Any:
    plain = AutoModel.from_pretrained(run / "base" / "text")
    return PeftModel.from_pretrained(plain, release / "text").eval()


@pytest.fixture(scope="module")
def image_tower(run: Path, release: Path) -> Any:
    config = json.loads((run / "base" / "image" / "config.json").read_text())
    plain = timm.create_model(config["architecture"], num_classes=config["num_classes"])
    plain.load_state_dict(load_file(run / "base" / "image" / "model.safetensors"))
    return PeftModel.from_pretrained(plain, release / "image").eval()


@pytest.fixture(scope="module", params=["north", "south"])
def region(run: Path, request: pytest.FixtureRequest) -> Path:
    return run / "regions" / str(request.param)


@pytest.fixture(scope="module")
def index(region: Path) -> Any:
    return faiss.read_index(str(index_folder(region) / "index.faiss"))


@pytest.fixture(scope="module")
def vectors(run: Path, region: Path, text_tower: Any, image_tower: Any) -> NDArray[np.float32]:
    """The region's products, encoded without our code, (N, D)."""
    return product_vectors(run, region, text_tower, image_tower)


def index_folder(region: Path) -> Path:
    (folder,) = (region / "state" / "indexes").glob("1-*")
    return folder


def text_vectors(run: Path, tower: Any, texts: list[str]) -> Tensor:
    """Mean over the tokens, as MANIFEST.json says, (N, D)."""
    manifest = json.loads((run / "headquarters/releases/1/MANIFEST.json").read_text())
    assert manifest["pooling"]["text"] == "mean"
    tokenizer = AutoTokenizer.from_pretrained(run / "base" / "text")
    limit = manifest["preprocessing"]["max_tokens"]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    hidden = tower(**batch).last_hidden_state  # (N, L, H)
    mask = batch["attention_mask"][:, :, None]
    return normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def image_vectors(run: Path, tower: Any, paths: list[Path]) -> Tensor:
    """Photos prepared as image/config.json says, (N, D)."""
    config = json.loads((run / "base" / "image" / "config.json").read_text())
    side = config["img_size"]
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            upright = ImageOps.exif_transpose(image).convert("RGB")
            pixels.append(np.array(ImageOps.pad(upright, (side, side), color=(255, 255, 255))))
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return normalize(tower((batch - mean) / std), dim=1)


@torch.no_grad()
def product_vectors(run: Path, region: Path, text: Any, image: Any) -> NDArray[np.float32]:
    """Gate-weighted sum of text and photo, a missing photo masked out, (N, D)."""
    catalog = pl.read_parquet(region / "catalog.parquet")
    gate = load_file(run / "headquarters/releases/1/fusion.safetensors")["gate"]  # (2,)
    texts = text_vectors(run, text, catalog["title"].to_list())
    has_photo = catalog["image"].is_not_null().to_numpy()
    photos = [region / "images" / name for name in catalog["image"].drop_nulls()]
    images = torch.zeros_like(texts)
    images[torch.from_numpy(has_photo)] = image_vectors(run, image, photos)
    logits = gate.repeat(len(texts), 1)
    logits[torch.from_numpy(~has_photo), 1] = -torch.inf
    weight = torch.softmax(logits, dim=1)  # (N, 2)
    return normalize(weight[:, :1] * texts + weight[:, 1:] * images, dim=1).numpy()


def test_the_release_was_trained(release: Path) -> None:
    # Otherwise the factors are zero, and every test here would hold without reading them.
    for part in ("text", "image"):
        state = load_file(release / part / "adapter_model.safetensors")
        assert all(tensor.any() for tensor in state.values())


def test_plain_peft_and_plain_faiss_hold_equal_vectors(
    index: Any, vectors: NDArray[np.float32]
) -> None:
    kept = np.stack([index.reconstruct(row) for row in range(index.ntotal)])
    # The index is built from activations kept in half precision.
    np.testing.assert_allclose(kept, vectors, rtol=0, atol=2e-3)


def test_every_product_is_found_by_its_own_vector(index: Any, vectors: NDArray[np.float32]) -> None:
    scores, _ = index.search(vectors, 1)
    np.testing.assert_allclose(scores[:, 0], 1, rtol=0, atol=2e-3)


def test_row_numbers_stand_for_the_products_of_the_catalog(region: Path, index: Any) -> None:
    ids = np.load(index_folder(region) / "ids.npy", allow_pickle=False)
    catalog = pl.read_parquet(region / "catalog.parquet")
    assert ids.tolist() == catalog["product_id"].to_list()
    assert index.ntotal == catalog.height
    assert 0 < catalog["image"].null_count() < catalog.height  # both kinds were compared


def test_nothing_of_ours_is_imported_here() -> None:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).split(".")[0])
    assert modules
    assert not modules & {"shared", "client", "server", "simulations", "fedshelf", "tests"}
