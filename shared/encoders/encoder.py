"""The resident encoder: both towers, their adapter, and product and query vectors.

One object a process; adapters are swapped in place. Vectors may only be compared if `digest` is
equal: it covers the base (weights and preprocessing) and the adapter.

A region may answer with two adapters side by side, a release's and one of its own. Then vectors are
[sqrt(1 - w) r, sqrt(w) h], w being the share of its own, so that inner products, and squared
distances too, are the weighted means of both: an ensemble of two encoders in one index.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.adapter import (
    Adapter,
    as_factors,
    as_residual,
    encoder_digest,
    is_residual,
    paired,
    parted,
    rank_of,
    require_same_form,
    schema_hash,
    subtract,
    trained_names,
)
from shared.config import BOTH
from shared.encoders.base import BaseInfo, read_base
from shared.encoders.batches import batches_by_length, for_each
from shared.encoders.fusion import Fusion
from shared.encoders.image import ImageTower, load_pixels
from shared.encoders.lora import (
    load_residual,
    lora_factors,
    reset_lora,
    residual_of,
    residual_parameters,
    save_lora,
    split_release,
)
from shared.encoders.prefix_cache import ImagePrefixes, ImageViews, TextPrefixes, TextViews
from shared.encoders.text import TextTower
from shared.errors import ConfigError, ReleaseError, WireError

Photo = Path | BinaryIO
_Mix = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ProductPrefixes:
    """Frozen activations of a catalog; row i is the catalog's row i.

    Attributes:
        texts: activations of the product texts.
        images: activations of the photos.
        has_text: (N,) bool; a product without text is seen by its photo alone.
    """

    texts: TextPrefixes
    images: ImagePrefixes
    has_text: NDArray[np.bool_]


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        ConfigError: "cuda" was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device "cuda": no GPU answers; use --device cpu or auto')
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_encoder(folder: Path, *, device: str, expected: str | None = None) -> "Encoder":
    """Load a verified base with a fresh adapter.

    Args:
        folder: the base artefact.
        device: "auto", "cpu" or "cuda".
        expected: fingerprint it must have.

    Raises:
        BaseError: the base is missing, damaged or another one.
    """
    return Encoder(folder, read_base(folder, expected=expected), pick_device(device))


class Encoder:
    """Text tower, image tower and fusion of one base, with one adapter at a time.

    Either tower gives vectors of D numbers (`tower_dim`); those of queries and products have V
    (`dim`), which is D for every fusion but concatenation, and twice that with two adapters.

    Args:
        folder: the base artefact.
        base: what it says, verified.
        device: where it lives.
    """

    def __init__(self, folder: Path, base: BaseInfo, device: torch.device) -> None:
        self.base, self.device = base, device
        self.tower_dim = base.dim
        self.text = TextTower(folder / "text", base.text, device)
        self.image = ImageTower(folder / "image", base.image, device)
        self.fusion = self._fresh_fusion().to(device)
        self.on_batch: Callable[[], None] = _go_on  # called between batches of a whole catalog
        self._adapted = self._named_parameters()
        modules = (self.text.peft, self.image.peft, self.fusion)  # asked once: torch walks them all
        self._trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
        self._home: Encoder | None = None
        self._share = 0.0
        self.reset(seed=0)

    @property
    def dim(self) -> int:
        """V, of queries and products."""
        return self.base.vector_dim * (1 if self._home is None else 2)

    def replica(self) -> "Encoder":
        """An independent encoder on the same frozen weights; only what is trainable is copied.

        Whoever serves searches holds one, so that training may swap adapters in the other.
        """
        return copy.deepcopy(self, memo=self._shared())

    def _shared(self) -> dict[int, object]:
        """What a copy has in common with this encoder, by id: frozen weights, and who is called."""
        modules = (self.text.peft, self.image.peft)
        tensors = chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules)
        swapped = {id(tensor) for module in modules for tensor in residual_parameters(module)}
        frozen = {
            id(tensor): tensor
            for tensor in tensors
            if not tensor.requires_grad and id(tensor) not in swapped
        }
        return {**frozen, id(self.on_batch): self.on_batch}

    # -- adapter ---------------------------------------------------------------------------------

    def reset(self, *, seed: int) -> None:
        """A fresh adapter: seeded A, zero B, the base's own fusion; encodes as the base does."""
        generator = torch.Generator().manual_seed(seed)
        for model in (self.text.peft, self.image.peft):
            reset_lora(model, generator)
            load_residual(model, {})
        self._home, self._share = None, 0.0
        self.fusion.load_state_dict(self._fresh_fusion().state_dict())

    def _fresh_fusion(self) -> Fusion:
        return Fusion(
            image_weight=self.base.image_weight,
            temperature=self.base.temperature,
            kind=self.base.fusion,
            dim=self.base.dim,
        )

    def adapter(self) -> Adapter:
        """A copy of everything trainable and of a residual, by name, float32 on the CPU.

        Of two adapters side by side both (`shared.adapter.paired`).
        """
        whole = {**self._adapted, **self._residual()}
        own = {k: v.detach().cpu().float().clone() for k, v in sorted(whole.items())}
        return own if self._home is None else paired(own, self._home.adapter(), self._share)

    def update(self, sent: Adapter, factors: str = BOTH) -> Adapter:
        """This adapter minus one that was sent, of what was trained in between.

        Args:
            sent: what training started from.
            factors: which LoRA factors were trained; see `shared.adapter.trained_names`.
        """
        adapter = self.adapter()
        return subtract({name: adapter[name] for name in trained_names(adapter, factors)}, sent)

    def load_adapter(self, adapter: Adapter) -> None:
        """Swap an adapter in, all of it or, where it does not fit, nothing of it.

        Args:
            adapter: one, or two side by side; training needs one.

        Raises:
            WireError: a name or a shape is not this base's.
        """
        adapter, home, share = parted(adapter)
        beside = self._beside_with(home) if home else None
        self._load_own(adapter)
        self._home, self._share = beside, share

    def _beside_with(self, adapter: Adapter) -> "Encoder":
        """Another encoder on the same frozen weights, with an adapter."""
        beside = copy.deepcopy(self, memo={**self._shared(), id(self._home): None})
        beside.load_adapter(adapter)
        return beside

    def _load_own(self, adapter: Adapter) -> None:
        residual = {name: tensor for name, tensor in adapter.items() if is_residual(name)}
        own = {name: tensor for name, tensor in adapter.items() if name not in residual}
        require_same_form(own, self._adapted)
        self._require_fitting(residual)
        for tower, model in (("text", self.text.peft), ("image", self.image.peft)):
            load_residual(model, as_factors(_part(residual, tower)))
        with torch.no_grad():
            for name, parameter in self._adapted.items():
                parameter.copy_(adapter[name])

    def _residual(self) -> dict[str, nn.Parameter]:
        """The residual that takes part, by name; empty if none does."""
        towers = (("text", self.text.peft), ("image", self.image.peft))
        return {
            f"{tower}/{name}": parameter
            for tower, model in towers
            for name, parameter in as_residual(residual_of(model)).items()
        }

    def _require_fitting(self, residual: Adapter) -> None:
        """Hold a residual to the adapted layers: all of them or none, and of one rank.

        Raises:
            WireError: names the first tensor that does not fit.
        """
        if not residual:
            return
        factors = {n: p for n, p in self._adapted.items() if not n.startswith("fusion/")}
        rank = min(tensor.shape[0] for n, tensor in residual.items() if n.endswith("_A.weight"))
        expected = {
            name: factor.new_empty((rank, *factor.shape[1:]))
            if name.endswith("_A.weight")
            else factor.new_empty((len(factor), rank, *factor.shape[2:]))
            for name, factor in factors.items()
        }
        require_same_form(residual, as_residual(expected))

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        """Everything trainable itself, in name order."""
        named = {f"text/{k}": v for k, v in lora_factors(self.text.peft).items()}
        named |= {f"image/{k}": v for k, v in lora_factors(self.image.peft).items()}
        named |= {f"fusion/{k}": v for k, v in self.fusion.named_parameters()}
        return dict(sorted(named.items()))

    def trainable(self, factors: str = BOTH) -> list[nn.Parameter]:
        """The parameters an optimizer moves in a round, in a fixed order.

        Args:
            factors: which of the LoRA factors are trained; see `shared.adapter.trained_names`.
        """
        return [self._adapted[name] for name in self.trainable_names(factors)]

    def trainable_names(self, factors: str = BOTH) -> list[str]:
        """Names of the `trainable`, in their order."""
        names = {id(self._adapted[name]): name for name in trained_names(self._adapted, factors)}
        return [names[id(p)] for p in self._trainable if id(p) in names]

    @cached_property
    def rank(self) -> int:
        """The most components that a LoRA pair of this base has; towers may differ."""
        return rank_of(self._adapted)

    @cached_property
    def schema(self) -> str:
        """`schema_hash` of every adapter of this base."""
        return schema_hash(parted(self.adapter())[0])

    @property
    def digest(self) -> str:
        """Encoder digest: sha256 over base fingerprint and adapter."""
        return encoder_digest(self.base.fingerprint, self.adapter())

    @property
    def distance(self) -> str:
        """By which vectors are compared; see `shared.similarity`."""
        return self.base.distance

    # -- vectors, with gradients -----------------------------------------------------------------

    def text_vectors(self, texts: TextPrefixes | TextViews, rows: NDArray[np.int64]) -> Tensor:
        """Unit vectors (B, D) of the kept texts `rows` (B,)."""
        tokens, lengths = texts.batch(rows)
        return self.text.suffix(tokens.to(self.device), lengths)

    def text_vectors_of(
        self, parts: Sequence[tuple[TextPrefixes | TextViews, NDArray[np.int64]]]
    ) -> list[Tensor]:
        """`text_vectors` of several kinds of texts, in one pass where the tower does so for free.

        Args:
            parts: kept texts, and which rows (B_i,) of them.

        Returns:
            Unit vectors (B_i, D) of each, in their order.
        """
        if not self.text.mixes_lengths:
            return [self.text_vectors(texts, rows) for texts, rows in parts]
        batches = [texts.batch(rows) for texts, rows in parts]
        tokens, lengths = (torch.cat(part) for part in zip(*batches, strict=True))
        vectors = self.text.suffix(tokens.to(self.device), lengths)
        return list(torch.split(vectors, [len(rows) for _, rows in parts]))

    def image_vectors(self, images: ImagePrefixes | ImageViews, rows: NDArray[np.int64]) -> Tensor:
        """Unit vectors (B, D) of the kept photos `rows` (B,); zero where there is none."""
        present = torch.from_numpy(images.present[rows]).nonzero().flatten()
        vectors = torch.zeros(len(rows), self.tower_dim, device=self.device)
        if len(present) == 0:
            return vectors
        hidden = images.batch(rows[present.numpy()]).to(self.device)
        return vectors.index_copy(0, present.to(self.device), self.image.suffix(hidden))

    def fused(
        self, text: Tensor, image: Tensor, products: ProductPrefixes, rows: NDArray[np.int64]
    ) -> Tensor:
        """Product vectors (B, V) from their text and photo vectors (B, D) each."""
        has_text = torch.from_numpy(products.has_text[rows]).to(self.device)
        has_image = torch.from_numpy(products.images.present[rows]).to(self.device)
        return self.fusion.products(text, image, has_text, has_image)

    # -- vectors, without gradients --------------------------------------------------------------

    def product_matrix(
        self, products: ProductPrefixes, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors of catalog rows (N,), or of the whole catalog, from kept activations.

        Returns:
            (N, V), in the order of `rows`.
        """
        wanted = np.arange(len(products.has_text)) if rows is None else rows

        def vectors_of(batch: NDArray[np.int64]) -> Tensor:
            text = self.text_vectors(products.texts, wanted[batch])
            image = self.image_vectors(products.images, wanted[batch])
            return self.fused(text, image, products, wanted[batch])

        vectors = self._matrix(products.texts.lengths()[wanted], vectors_of, self.base.vector_dim)
        return self._beside(vectors, lambda home: home.product_matrix(products, wanted))

    def query_matrix(self, queries: TextPrefixes) -> NDArray[np.float32]:
        """Unit vectors (Q, V) of text queries, from their kept activations."""

        def vectors_of(batch: NDArray[np.int64]) -> Tensor:
            return self.fusion.place(self.text_vectors(queries, batch))

        vectors = self._matrix(queries.lengths(), vectors_of, self.base.vector_dim)
        return self._beside(vectors, lambda home: home.query_matrix(queries))

    def _matrix(
        self,
        lengths: NDArray[np.int64],
        vectors_of: Callable[[NDArray[np.int64]], Tensor],
        dim: int,
    ) -> NDArray[np.float32]:
        """Vectors (N, dim) of as many items as there are lengths (N,), made batch by batch."""
        vectors = np.zeros((len(lengths), dim), dtype=np.float32)

        def keep(rows: NDArray[np.int64], made: Tensor) -> None:
            vectors[rows] = made.cpu().numpy()
            self.on_batch()

        for_each(batches_by_length(lengths), torch.inference_mode()(vectors_of), keep)
        return vectors

    def _beside(
        self, vectors: NDArray[np.float32], encode: Callable[["Encoder"], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Vectors (B, V / 2) of this adapter beside those of the other one, if there is one."""
        if self._home is None:
            return vectors
        self._home.on_batch = self.on_batch
        return self._joined([vectors, encode(self._home)])

    def _joined(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """One row (V,) of what each adapter made, (B, V) of one or (B, V / 2) of two."""
        if len(parts) == 1:
            return parts[0]
        roots = math.sqrt(1 - self._share), math.sqrt(self._share)
        return np.hstack([np.float32(r) * part for r, part in zip(roots, parts, strict=True)])

    @contextmanager
    def _bare_text(self) -> Iterator[None]:
        """Without the text tower's adapter; peft's own context reads every layer's state first."""
        layers: Any = self.text.peft.base_model
        layers.disable_adapter_layers()
        try:
            yield
        finally:
            layers.enable_adapter_layers()

    def base_text_matrix(self, texts: TextPrefixes, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors (B, D) that the base alone gives the kept texts `rows` (B,)."""

        def vectors_of(batch: NDArray[np.int64]) -> Tensor:
            return self.text_vectors(texts, rows[batch])

        with self._bare_text():
            return self._matrix(texts.lengths()[rows], vectors_of, self.tower_dim)

    def encode_products(
        self, texts: Sequence[str | None], images: Sequence[Photo | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (N, V) of products, computed from scratch.

        Args:
            texts: N product texts, None or empty where there is none.
            images: N photos, None where there is none.

        Raises:
            DataError: a photo cannot be read.
        """
        return self._encode(texts, images, lambda fusion: fusion.products)

    def encode_queries(
        self, texts: Sequence[str | None], images: Sequence[Photo | None]
    ) -> NDArray[np.float32]:
        """Unit vectors (Q, V) of queries; text and photo count equally where both are given."""
        return self._encode(texts, images, lambda fusion: fusion.queries)

    def _encode(
        self,
        texts: Sequence[str | None],
        images: Sequence[Photo | None],
        mix: Callable[[Fusion], _Mix],
    ) -> NDArray[np.float32]:
        encoders = [self] if self._home is None else [self, self._home]
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        lengths = np.array([len(text or "") for text in texts], dtype=np.int64)

        @torch.inference_mode()
        def work(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            text = _text_vectors([e.text for e in encoders], [texts[row] or "" for row in rows])
            has_text = torch.tensor([bool(texts[row]) for row in rows], device=self.device)
            photos = [images[row] for row in rows]
            has_image = torch.tensor([photo is not None for photo in photos], device=self.device)
            image = self._image_vectors([e.image for e in encoders], photos, has_image)
            made = [
                mix(encoder.fusion)(t, v, has_text, has_image).cpu().numpy()
                for encoder, t, v in zip(encoders, text, image, strict=True)
            ]
            return self._joined(made)

        for_each(batches_by_length(lengths), work, vectors.__setitem__)
        return vectors

    def _image_vectors(
        self, towers: Sequence[ImageTower], photos: list[Photo | None], has_image: Tensor
    ) -> list[Tensor]:
        """Unit vectors (B, D) by each tower, on the same frozen weights; zero without a photo."""
        vectors = [torch.zeros(len(photos), self.tower_dim, device=self.device) for _ in towers]
        some = [load_pixels(p, self.image.config.size) for p in photos if p is not None]
        if not some:
            return vectors
        pixels = np.stack(some)
        if len(towers) == 1:
            made = [towers[0].encode(pixels)]
        else:
            hidden = towers[0].prefix_of(pixels).to(self.device)
            made = [tower.suffix(hidden) for tower in towers]
        for place, part in zip(vectors, made, strict=True):
            place[has_image] = part
        return vectors

    # -- release files ---------------------------------------------------------------------------

    def save_release_files(self, folder: Path) -> None:
        """Write text/, image/ (plain peft folders) and fusion.safetensors of a release."""
        save_lora(self.text.peft, folder / "text", base_name=self.base.text.name)
        save_lora(self.image.peft, folder / "image", base_name=self.base.image.name)
        fusion = {k: v.detach().cpu().clone() for k, v in self.fusion.state_dict().items()}
        save_file(fusion, folder / "fusion.safetensors")

    def load_release(self, folder: Path) -> None:
        """Swap in the adapter of a verified release folder.

        Raises:
            ReleaseError: its files hold another base's adapter.
        """
        adapter: Adapter = {}
        for part, model in (("text", self.text.peft), ("image", self.image.peft)):
            state = load_file(folder / part / "adapter_model.safetensors")
            own, residual = split_release(model, state)
            adapter |= {f"{part}/{k}": v for k, v in {**own, **as_residual(residual)}.items()}
        fusion = load_file(folder / "fusion.safetensors")
        adapter |= {f"fusion/{name}": tensor for name, tensor in fusion.items()}
        try:
            self.load_adapter(adapter)
        except WireError as error:
            raise ReleaseError(f"{folder}: {error}; it was made for another base") from None


def _text_vectors(towers: Sequence[TextTower], texts: list[str]) -> list[Tensor]:
    """Unit vectors (B, D) by each tower, on the same frozen weights, which are passed once."""
    if len(towers) == 1:
        return [towers[0].encode(texts)]
    hidden = towers[0].prefix(texts)
    tokens = torch.cat(hidden).to(towers[0].device)  # (T, H)
    lengths = torch.tensor([len(text) for text in hidden])
    return [tower.suffix(tokens, lengths) for tower in towers]


def _part(adapter: Adapter, tower: str) -> Adapter:
    """The tensors of one tower, under the names that it gives them."""
    prefix = f"{tower}/"
    return {k.removeprefix(prefix): v for k, v in adapter.items() if k.startswith(prefix)}


def _go_on() -> None:
    """Between two batches nothing has to be done."""
