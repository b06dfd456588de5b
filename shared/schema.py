"""The form of what a region brings: columns of its tables, and `region.toml`.

One place says which columns exist, which are required and of which type, so that the importer that
writes a region folder and the reader that opens one cannot drift apart.
"""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigError

CATALOG_COLUMNS: dict[str, pl.DataType] = {
    "product_id": pl.String(),
    "title": pl.String(),
    "description": pl.String(),
    "brand": pl.String(),
    "category": pl.String(),
    "attributes": pl.List(pl.Struct({"key": pl.String(), "value": pl.String()})),
    "price": pl.Float64(),
    "currency": pl.String(),
    "rating": pl.Float64(),
    "review_count": pl.Int64(),
    "sales": pl.Int64(),
    "in_stock": pl.Boolean(),
    "image": pl.String(),  # path relative to the images folder
    "locale": pl.String(),
    "updated_at": pl.Datetime("us", "UTC"),
}
CATALOG_REQUIRED = ("product_id", "title")

CLICK_COLUMNS: dict[str, pl.DataType] = {
    "request_id": pl.String(),
    "ts": pl.Datetime("us", "UTC"),
    "query": pl.String(),
    "query_image": pl.String(),
    "product_id": pl.String(),
    "position": pl.Int64(),  # 1-based
    "clicked": pl.Boolean(),
    "carted": pl.Boolean(),
    "purchased": pl.Boolean(),
    "user_key": pl.String(),
    "ranker": pl.String(),
    "release": pl.Int64(),
    "propensity": pl.Float64(),  # in (0, 1]
}
CLICK_REQUIRED = ("request_id", "ts", "query", "product_id", "position", "clicked")

QREL_COLUMNS: dict[str, pl.DataType] = {
    "query": pl.String(),
    "product_id": pl.String(),
    "grade": pl.Int64(),
}
QREL_REQUIRED = ("query", "product_id", "grade")

REGION_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_HOST = r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*"


def _a_port(address: str) -> str:
    if not 1 <= int(address.rpartition(":")[2]) <= 65535:
        raise ValueError("the port must be between 1 and 65535")
    return address


Address = Annotated[str, Field(pattern=rf"^{_HOST}:[0-9]{{1,5}}$"), AfterValidator(_a_port)]
Fraction = Annotated[float, Field(ge=0.0, lt=0.5)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
_WAY = r"^(current|previous|hybrid|dense|lexical)$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """Where the region's files are, relative to the folder of `region.toml`."""

    catalog: str = "catalog.parquet"
    clicks: str = "clicks.parquet"
    images: str = "images"
    qrels: str | None = None
    max_bad_rows: int = Field(default=100, ge=0)
    # Catalog columns that make a product's text, in this order.
    text_fields: tuple[Literal["title", "description", "brand", "category"], ...] = ("title",)


class SplitConfig(_Strict):
    """Shares of the clicks, by time: the oldest train, then validation, the newest gate."""

    validation: Fraction = 0.1
    gate: Fraction = 0.1


class ClicksConfig(_Strict):
    """What an impression of this region's log says; see docs/learning.md."""

    # How likely a position was looked at: as the log says (1 where it does not), estimated where it
    # does not, estimated everywhere, or 1 everywhere.
    propensity: Literal["logged", "filled", "harvested", "ignored"] = "logged"
    min_propensity: float = Field(default=0.1, gt=0, le=1)  # bounds what one click can count
    weighting: Literal["relevance", "inverse", "plain"] = "relevance"  # of a clicked pair
    click_weight: float = Field(default=1.0, gt=0)
    cart_weight: float = Field(default=2.0, gt=0)
    purchase_weight: float = Field(default=3.0, gt=0)


class BaseConfig(_Strict):
    """The base this region works with, and whose releases it trusts."""

    path: str
    fingerprint: str
    release_key: str = Field(description="ed25519 public key of the release signer, hex")
    releases: str = Field(description="folder or https address from which releases are pulled")


class HeadquartersConfig(_Strict):
    """How this region reaches headquarters; files relative to the folder of `region.toml`."""

    address: Address = Field(description="host:port, TLS")
    ca: str = "enrolment/ca.crt"
    key: str = "enrolment/node.key"  # this region's own EC key; it never leaves the region


class WorkerConfig(_Strict):
    """The process that owns this region's data, encoders and training."""

    # Where it listens; the SuperNode's user needs this folder and nothing else of the region.
    socket: str = "run/worker.sock"
    threads: int = Field(default=0, ge=0)  # of torch; 0 leaves the choice to torch
    # Of kept activations on disk; the least recently opened go first. 0 keeps all of them.
    cache_max_bytes: int = Field(default=0, ge=0)
    # Of a round: components of each LoRA pair that are trained and sent; 0 is the base's rank, and
    # more than that is the base's rank too.
    max_rank: int = Field(default=0, ge=0)

    def rank_within(self, rank: int) -> int:
        """The components that are trained of a base of some rank."""
        return min(self.max_rank or rank, rank)


class PublicationConfig(_Strict):
    """When this region takes a new release into use."""

    auto_accept: bool = True  # otherwise only `fedshelf region accept N` does
    poll_s: float = Field(default=30.0, gt=0)
    max_release_bytes: int = Field(default=2**30, ge=1)
    tolerance: float = Field(default=0.02, ge=0)  # nDCG@10 a release may lose on the gate clicks
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_queries: int = Field(default=100, ge=2)  # with fewer, gate clicks cannot decline a release
    canaries: str | None = None  # JSON: queries that must find given products


class SharingConfig(_Strict):
    """What this region agrees to beyond taking part."""

    matrix: bool = False  # evaluate other adapters on its gate clicks
    local_adapter: bool = False  # train an adapter on its clicks alone for that comparison
    product_gaussian: bool = False  # tell how its product vectors lie (`shared.gaussians`)
    named: bool = False  # appear by name, not by number, in releases


class PersonalizationConfig(_Strict):
    """Whether a release is adapted to this region's own clicks; what that makes never leaves it."""

    enabled: bool = False
    passes: int = Field(default=3, ge=1, le=100)  # over the clicks to train on
    learning_rate: float = Field(default=0.002, gt=0, le=1)  # of AdamW
    gate_learning_rate: float = Field(default=0.02, gt=0, le=1)  # of Adam, the gate alone
    # How far to go from the release (0) to the adapter fine-tuned from it (1); each is a candidate.
    weights: tuple[Share, ...] = Field(default=(0.25, 0.5, 0.75, 1.0), max_length=16)
    # Of an adapter trained alone, from the base, that encodes beside the release: its share in
    # every similarity grows with the examples towards alone_share, half of which it has at
    # alone_prior; an alone_share of 0 trains none.
    alone_share: float = Field(default=0.6, ge=0, lt=1)
    alone_prior: float = Field(default=200.0, ge=0)
    alone_passes: int = Field(default=8, ge=1, le=100)
    alone_learning_rate: float = Field(default=0.005, gt=0, le=1)  # falls to a tenth of it
    min_examples: int = Field(default=100, ge=1)  # with fewer it is the release as it is
    # With fewer validation queries they choose nothing: it is the ensemble.
    min_queries: int = Field(default=100, ge=2)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)  # of every bound in the choice

    @property
    def num_passes(self) -> int:
        """Over the clicks to train on, for one release."""
        alone = self.alone_passes if self.alone_share > 0 else 0
        return self.passes + alone if self.enabled else 0

    def share_of_alone(self, num_examples: int) -> float:
        """Of the adapter trained alone on so many examples (>= 1), in every similarity."""
        return self.alone_share * num_examples / (num_examples + self.alone_prior)

    @property
    def num_adapters(self) -> int:
        """How many this region may have to answer with, side by side."""
        return 2 if self.enabled and self.alone_share > 0 else 1


class ExperimentConfig(_Strict):
    """Two ways to answer, interleaved in one list (team draft); `region report` has the verdict."""

    a: str = Field(default="current", pattern=_WAY)
    b: str = Field(default="previous", pattern=_WAY)
    share: float = Field(default=1.0, gt=0, le=1)  # of the requests


class ServeConfig(_Strict):
    """The retrieval service: where it listens, what it allows, what it keeps."""

    http: Address | Literal[""] = "127.0.0.1:8080"  # "" does not listen
    grpc: Address | Literal[""] = "127.0.0.1:8081"
    # Needed wherever it does not listen on loopback; files relative to the folder of region.toml.
    certificate: str | None = None
    key: str | None = None
    token_file: str | None = None  # whoever sends its content may ask
    page: bool = True  # a search page for people at /
    max_requests: int = Field(default=64, ge=1)  # at work and waiting; one more gets 429
    max_image_bytes: int = Field(default=10 * 2**20, ge=1)
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    log_queries: bool = False  # query text in the service's own log
    index_factory: str | None = None  # of FAISS; None lets the planner choose
    group_attribute: str | None = None  # attribute that variants of one product share
    rules: str | None = None  # TOML: synonyms, pinned and blocked products
    position_bias: float = Field(default=0.7, ge=0)  # P(looked at position p) = p ** -this
    exploration: float = Field(default=0.0, ge=0, le=0.2)  # share of requests with one wild card
    experiment: ExperimentConfig | None = None
    retention_days: int = Field(default=365, ge=1)  # of impressions and events


class RegionConfig(_Strict):
    """`region.toml`: everything a region's operator decides."""

    region: str = Field(pattern=REGION_NAME)
    locale: str = "en"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    state: str = "state"
    base: BaseConfig
    data: DataConfig = DataConfig()
    splits: SplitConfig = SplitConfig()
    clicks: ClicksConfig = ClicksConfig()
    headquarters: HeadquartersConfig | None = None  # None: a region of a simulation
    worker: WorkerConfig = WorkerConfig()
    publication: PublicationConfig = PublicationConfig()
    sharing: SharingConfig = SharingConfig()
    personalization: PersonalizationConfig = PersonalizationConfig()
    serve: ServeConfig | None = None  # None: `region up` serves no searches


def load_region_config(folder: Path) -> RegionConfig:
    """Read and validate `region.toml` in a region's folder.

    Args:
        folder: the region's folder.

    Returns:
        The validated configuration; paths in it are still relative to `folder`.

    Raises:
        ConfigError: no such file, not TOML, an unknown key or a bad value; names file and key.
    """
    path = folder / "region.toml"
    try:
        return RegionConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; --region needs a folder with region.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {key}: {first['msg']}; correct or remove this key") from None


def render_region_toml(config: RegionConfig) -> str:
    """Render a region's configuration as TOML that `load_region_config` reads back equal.

    Args:
        config: the region's configuration.

    Returns:
        TOML text: plain keys first, then one table a section; what is None is left out.
    """
    return "\n\n".join(_blocks(config.model_dump(mode="json", exclude_none=True), "")) + "\n"


def _blocks(values: dict[str, object], name: str) -> Iterable[str]:
    """A table's plain keys under its header, then its tables, each a block of its own."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    yield "\n".join([*([f"[{name}]"] if name else []), *_assignments(plain)])
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _blocks(value, f"{name}.{key}" if name else key)


def _assignments(values: dict[str, object]) -> Iterable[str]:
    # JSON's strings, numbers, booleans and arrays of strings are TOML's too, but for DEL.
    dumped = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    return [f"{key} = {text.replace(chr(127), chr(92) + 'u007f')}" for key, text in dumped.items()]
