"""Whether a region is fit to take part, and what taking part will cost; one row a question.

It opens and computes with the very functions that later work on the region, on a sample where the
whole would take long, and only says what came of it. It writes nothing into the region: what has to
be computed lies in a temporary folder. A check that fails stops only those that need what it found.

No row holds a query, a product's content or a product id (where columns have slipped, a click log's
product id is a query), so a table can be handed on to whoever helps.
"""

import hashlib
import json
import re
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from socket import gaierror
from ssl import SSLCertVerificationError, SSLContext, SSLError, create_default_context
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from cryptography.x509 import load_der_x509_certificate
from numpy.typing import NDArray

from shared.durable import sha256_file
from shared.errors import BaseError, ConfigError, FederationError, FedshelfError
from shared.schema import CATALOG_REQUIRED, CLICK_REQUIRED, QREL_REQUIRED, load_region_config

if TYPE_CHECKING:  # torch and polars take seconds to import
    import polars as pl
    from rich.table import Table

    from client.clicks import Examples, ValidationSet
    from client.region import Region
    from client.training import TrainingData
    from shared.config import TrainConfig
    from shared.encoders.encoder import Encoder, ProductPrefixes
    from shared.schema import HeadquartersConfig, RegionConfig

Verdict = Literal["ok", "warn", "fail"]
T = TypeVar("T")

# Flower dates every request of a node and refuses one that is older than TIMESTAMP_TOLERANCE +
# SYSTEM_TIME_TOLERANCE, or younger than minus the latter (flwr.common.constant).
MAX_BEHIND_S, MAX_AHEAD_S = 305, 5
_WARN_BEHIND_S, _WARN_AHEAD_S = 60, 2
_RENEWAL = timedelta(days=30)
TIMEOUT_S = 10.0  # for the connection, the handshake and each read
_MAX_ANSWER_BYTES = 64 * 1024
_MEASURED_STEPS = 3
_LENGTH_BATCH = 16  # a cache is made in batches of equal length; so small, a sample's nearly are
_ACTIVATION_COPIES = 4  # rule of thumb: what the suffix and its gradient keep beside its input
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_PROBLEM = re.compile(r".*? row \d+: (?P<reason>.*)")
_FOUND_COLUMNS = re.compile(r"(no column [^;]*) among: .*; ")
_QUOTED_ID = re.compile(r"""( product_id) ('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
_TLS_FAULTS = {  # OpenSSL's numbers of what is wrong with a certificate
    9: "its certificate is not valid yet; compare the clocks of both machines",
    10: "its certificate, or its authority's, has expired; headquarters must renew it",
    62: "its certificate is for another name; set headquarters.address to the name in it",
    64: "its certificate is for another address; set headquarters.address to the name in it",
    **dict.fromkeys(
        (2, 7, 18, 19, 20, 21),
        "its certificate is of another authority than headquarters.ca; enrol again, or ask"
        " whether somebody stands between",
    ),
}


@dataclass(frozen=True)
class CheckRow:
    """The answer to one question.

    Attributes:
        what: the question, e.g. "catalog".
        verdict: "warn" needs somebody's attention, "fail" must be mended first.
        found: one line.
        advice: what to do, or nothing.
    """

    what: str
    verdict: Verdict
    found: str
    advice: str


class Finding(NamedTuple):
    """What a check found: a `CheckRow` without its question."""

    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Work:
    """Items of one kind whose activations are to be kept.

    Attributes:
        items: all of them.
        missing: those that are not kept yet.
        new_rows: that will be written for them; a product without a photo has a row too.
        bytes_each: of one row on disk.
        seconds_each: to compute one item.
    """

    items: int
    missing: int
    new_rows: int
    bytes_each: float
    seconds_each: float

    @property
    def missing_bytes(self) -> float:
        """What the kept file will take beyond what is there."""
        return self.new_rows * self.bytes_each

    @property
    def seconds(self) -> float:
        """How long computing what is missing will take."""
        return self.missing * self.seconds_each


@dataclass(frozen=True)
class Estimate:
    """What taking part costs, scaled up from a sample.

    Attributes:
        texts: product texts.
        queries: queries of the click log.
        photos: product photos.
        index_bytes: of one index on disk.
        release_bytes: of one release on disk.
        matrix_bytes: of all product vectors in memory.
        batch_bytes: of one batch's activations in memory.
        index_s: to index the catalog, activations being kept.
        round_s: of training in one round, activations being kept; None without examples.
    """

    texts: Work
    queries: Work
    photos: Work
    index_bytes: float
    release_bytes: float
    matrix_bytes: float
    batch_bytes: float
    index_s: float
    round_s: float | None

    @property
    def cache_bytes(self) -> float:
        """Activations that are not kept yet."""
        return sum(work.missing_bytes for work in (self.texts, self.queries, self.photos))

    @property
    def disk_bytes(self) -> float:
        """All that will be written; indexes and releases stand beside their successors."""
        return self.cache_bytes + 2 * self.index_bytes + 2 * self.release_bytes


@dataclass
class _Facts:
    """What earlier checks found, for later ones; None where they failed."""

    folder: Path
    sample: int
    fixed_now: datetime | None
    config: "RegionConfig | None" = None
    region: "Region | None" = None
    clicks: "pl.DataFrame | None" = None
    splits: "tuple[Examples, ValidationSet, ValidationSet] | None" = None
    device: str | None = None
    encoder: "Encoder | None" = None
    estimate: Estimate | None = None
    clock_offset_s: float | None = None

    def now(self) -> datetime:
        return self.fixed_now or datetime.now(UTC)


class _NotCheckedError(Exception):
    """A check needs what another one did not find; carries that one's question."""


def check_region(
    folder: Path,
    *,
    sample: int = 64,
    now: datetime | None = None,
    on_row: Callable[[CheckRow], None] | None = None,
) -> list[CheckRow]:
    """Check a region; nothing in its folder is changed.

    Args:
        folder: the region's folder.
        sample: items that are computed to estimate time and size.
        now: the time; the clock's by default.
        on_row: called with every row as soon as it is known.

    Returns:
        One row a question, always the same questions in the same order ("judgments" only where
        `region.toml` names a file of them).
    """
    facts = _Facts(folder, max(sample, 1), now)
    rows = []
    for what, check in _CHECKS.items():
        if what == "judgments" and (facts.config is None or facts.config.data.qrels is None):
            continue
        rows.append(_row(what, check, facts))
        if on_row:
            on_row(rows[-1])
    return rows


def exit_code(rows: Sequence[CheckRow]) -> int:
    """For scripts: 1 if any check failed, else 0."""
    return int(any(row.verdict == "fail" for row in rows))


def render(rows: Sequence[CheckRow]) -> "Table":
    """The rows for people."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "", "found")
    for row in rows:
        style = _STYLES[row.verdict]
        lines = [row.found, f"→ {row.advice}"] if row.advice else [row.found]
        table.add_row(row.what, f"[{style}]{row.verdict}[/]", escape("\n".join(lines)))
    return table


def to_json(rows: Sequence[CheckRow]) -> str:
    """The rows for programs: a JSON object with `exit_code` and `rows`."""
    record = {"exit_code": exit_code(rows), "rows": [asdict(row) for row in rows]}
    return json.dumps(record, ensure_ascii=False)


def _row(what: str, check: Callable[[_Facts], Finding], facts: _Facts) -> CheckRow:
    try:
        finding = check(facts)
    except _NotCheckedError as needed:
        finding = Finding("warn", f"not checked; it needs what the row {needed} did not find")
    except FedshelfError as error:
        found, _, advice = _without_contents(str(error)).rpartition("; ")
        finding = Finding("fail", found or advice, advice if found else "")
    except OSError as error:  # permissions, above all
        reason = error.strerror or type(error).__name__
        finding = Finding("fail", f"{error.filename}: {reason}", "let this user read the region")
    return CheckRow(what, finding.verdict, _line(finding.found), _line(finding.advice))


def _needed(value: T | None, what: str) -> T:
    if value is None:
        raise _NotCheckedError(what)
    return value


# -- configuration and files -----------------------------------------------------------------------


def _configuration(facts: _Facts) -> Finding:
    facts.config = config = load_region_config(facts.folder)
    where = config.headquarters.address if config.headquarters else "none, as in a simulation"
    return Finding("ok", f'region "{config.region}", locale {config.locale}, headquarters {where}')


def _permissions(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    if config.headquarters:
        key = facts.folder / config.headquarters.key
        if not key.exists():
            raise ConfigError(f"{key}: not found; enrol this region, which makes its key")
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return Finding("fail", f"{key}: not its owner's alone", f"chmod 600 {key}")
    exposed = _readable_by_all(facts.folder, config)
    if exposed:
        advice = "take away the reading right of others, with chmod o-r"
        return Finding("warn", f"every user of this machine can read {', '.join(exposed)}", advice)
    private = "its key its owner's alone" if config.headquarters else "no headquarters, so no key"
    return Finding("ok", f"closed to other users, {private}")


def _readable_by_all(folder: Path, config: "RegionConfig") -> list[str]:
    """What anybody may read: of a folder that nobody else may enter, its list of names at most."""
    data = config.data
    inside = [data.catalog, data.clicks, data.images, data.qrels, config.state]
    can_enter = folder.stat().st_mode & stat.S_IXOTH
    names = [".", *(name for name in inside if name is not None and can_enter)]
    found = [name for name in names if (folder / name).exists()]
    modes = {name: (folder / name).stat().st_mode for name in found}
    return [name if name != "." else "the folder" for name in found if modes[name] & stat.S_IROTH]


# -- data ------------------------------------------------------------------------------------------


def _catalog(facts: _Facts) -> Finding:
    from client.region import open_region

    _needed(facts.config, "configuration")
    facts.region = region = open_region(facts.folder)
    problems = [line for line in region.problems if not _reason(line).startswith("image:")]
    texts, photos = np.array([bool(text) for text in region.texts]), _has_photo(region)
    duplicates = sum(_reason(line).startswith("duplicate") for line in problems)
    found = (
        f"{_count(region.catalog.height, 'product')}, {_problems(problems, CATALOG_REQUIRED)};"
        f" {_count(duplicates, 'duplicate')}, {(~texts).sum():,} without text,"
        f" {(~photos).sum():,} without photo, {(~texts & ~photos).sum():,} without both"
    )
    if problems:
        return Finding("warn", found, f"correct these rows in {region.config.data.catalog}")
    if (~texts & ~photos).any():
        return Finding("warn", found, "give them a text or a photo; nobody can find them")
    return Finding("ok", found)


def _photos(facts: _Facts) -> Finding:
    region = _needed(facts.region, "catalog")
    unread = [line for line in region.problems if _reason(line).startswith("image:")]
    found = f"{_has_photo(region).sum():,} of {_count(region.catalog.height, 'product')}"
    if unread:
        advice = f"put them into {region.config.data.images} as JPEG, PNG, WebP, GIF or BMP"
        return Finding("warn", f"{found}; {len(unread):,} unreadable{_first(unread)}", advice)
    return Finding("ok", f"{found}, all readable")


def _clicks(facts: _Facts) -> Finding:
    from client.region import read_clicks

    region = _needed(facts.region, "catalog")
    known = len(region.problems)
    facts.clicks = clicks = read_clicks(region)
    problems = region.problems[known:]
    unknown = sum(_reason(line).startswith("unknown") for line in problems)
    found = (
        f"{_count(clicks['request_id'].n_unique(), 'request')},"
        f" {_count(clicks.height, 'impression')}, {_count(int(clicks['clicked'].sum()), 'click')},"
        f" {_problems(problems, CLICK_REQUIRED)}; {_count(unknown, 'impression')} of products that"
        " the catalog lacks"
    )
    if problems:
        return Finding("warn", found, f"correct these rows in {region.config.data.clicks}")
    return Finding("ok", found)


def _judgments(facts: _Facts) -> Finding:
    from client.region import read_qrels

    region = _needed(facts.region, "catalog")
    known = len(region.problems)
    qrels = read_qrels(region)
    problems = region.problems[known:]
    found = f"{_count(qrels.height, 'judgment')}, {_problems(problems, QREL_REQUIRED)}"
    if problems:
        return Finding("warn", found, f"correct these rows in {region.config.data.qrels}")
    return Finding("ok", found)


def _splits(facts: _Facts) -> Finding:
    from client.clicks import make_examples, make_validation_set, split_by_time

    region, clicks = _needed(facts.region, "catalog"), _needed(facts.clicks, "clicks")
    parts = split_by_time(clicks, region.config.splits)
    ids = region.catalog["product_id"]
    examples = make_examples(parts.train, ids)
    validation, gate = (make_validation_set(part, ids) for part in (parts.validation, parts.gate))
    facts.splits = examples, validation, gate
    found = (
        f"{_count(len(examples.weight), 'training example')},"
        f" {_count(len(validation.queries), 'validation query', 'validation queries')},"
        f" {_count(len(gate.queries), 'gate query', 'gate queries')}"
    )
    needed = region.config.publication.min_queries
    if len(examples.weight) == 0:
        return Finding("fail", f"{found}: nothing to train on", "wait until shoppers have clicked")
    if not validation.queries:
        return Finding("warn", found, "nothing measures a round here; raise splits.validation")
    if len(gate.queries) < needed:
        advice = (
            f"with fewer than {needed:,} gate queries no release can be declined; collect more"
            " clicks, raise splits.gate or lower publication.min_queries"
        )
        return Finding("warn", found, advice)
    return Finding("ok", found)


# -- model -----------------------------------------------------------------------------------------


def _device(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    import torch

    from shared.encoders.encoder import pick_device

    try:
        device = pick_device(config.device)
    except ConfigError:
        advice = 'set device to "cpu" or "auto" in region.toml, or mend the GPU\'s driver'
        return Finding("fail", f'"{config.device}": no GPU answers', advice)
    threads = config.worker.threads or torch.get_num_threads()
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else _count(threads, "thread")
    )
    facts.device = device.type
    return Finding("ok", f'"{config.device}": {device.type}, {name}')


def _base(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    from shared.adapter import schema_hash
    from shared.encoders.encoder import load_encoder

    folder, expected = facts.folder / config.base.path, config.base.fingerprint
    try:  # a GPU that was asked for and is absent is the row "device"; the base loads without it
        encoder = load_encoder(folder, device=facts.device or "cpu", expected=expected)
    except (ValueError, RuntimeError) as error:  # the bytes are right, so the program is not
        kind = type(error).__name__
        raise BaseError(f"{folder}: verified, but does not load ({kind}); update it") from None
    facts.encoder, adapter = encoder, encoder.adapter()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    numbers = sum(tensor.numel() for tensor in adapter.values())
    found = (
        f"{encoder.base.fingerprint[:12]} verified: {encoder.base.preset},"
        f" {encoder.dim:,} dimensions, {_bytes(size)}; adapter of {numbers:,} numbers,"
        f" schema {schema_hash(adapter)[:12]}"
    )
    return Finding("ok", found)


def _release(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    from client.indexing import read_for_base
    from shared.retrieval.manifest import open_current_index, read_pointer

    state, digest = facts.folder / config.state, None
    if not (state / "current").exists():
        return _believed(facts, state, "none in use yet")
    pointer = read_pointer(state)
    if pointer.release:
        folder = state / "releases" / str(pointer.release)
        digest = read_for_base(folder, pointer.release, config).encoder_digest
    index = open_current_index(state, expected_digest=digest).manifest
    found = (
        f"release {pointer.release} in use, verified, with an index of"
        f" {_count(index.num_products, 'product')}"
    )
    if facts.region is not None and index.catalog_digest != facts.region.catalog_digest:
        return Finding("warn", f"{found}; the catalog has changed since", "build the index again")
    return _believed(facts, state, found)


def _believed(facts: _Facts, state: Path, found: str) -> Finding:
    """Whether headquarters' last statement about the release in use still holds."""
    from client.decisions import read_state

    seen = read_state(state).seen
    if seen is None:
        return Finding("ok", f"{found}; nothing heard from headquarters yet")
    until = f"{found}; headquarters named release {seen.release} until {seen.expiry:%Y-%m-%d}"
    if facts.now() > seen.expiry:
        advice = "see whether this region reaches headquarters, or let it publish again"
        return Finding("warn", f"{until}, which is past", advice)
    return Finding("ok", until)


# -- room and time ---------------------------------------------------------------------------------


def _disk(facts: _Facts) -> Finding:
    region, encoder = _needed(facts.region, "catalog"), _needed(facts.encoder, "base")
    with _threads(region.config.worker.threads):
        facts.estimate = measure(region, encoder, facts.splits, facts.sample)
    place = next(path for path in (region.state, *region.state.parents) if path.exists())
    return disk_finding(facts.estimate, free_bytes=shutil.disk_usage(place).free)


def disk_finding(estimate: Estimate, *, free_bytes: int) -> Finding:
    """Hold what will be written against what is free.

    Args:
        estimate: from a sample.
        free_bytes: where the region's state lies.

    Returns:
        A failure where there is too little.
    """
    need = estimate.disk_bytes
    found = (
        f"{_bytes(free_bytes)} free; about {_bytes(need)} needed: kept activations"
        f" {_bytes(estimate.cache_bytes)}, two indexes {_bytes(2 * estimate.index_bytes)},"
        f" two releases {_bytes(2 * estimate.release_bytes)}"
    )
    if need > free_bytes:
        return Finding("fail", found, f"make {_bytes(need - free_bytes)} more room, or move state")
    return Finding("ok", found)


def _memory(facts: _Facts) -> Finding:
    estimate = _needed(facts.estimate, "disk")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        available = _kilobytes("/proc/meminfo", "MemAvailable")
        mine = _kilobytes("/proc/self/status", "VmRSS")
    except (OSError, ValueError):
        return Finding("warn", "this system does not say how much memory is available")
    return memory_finding(estimate, peak_bytes=peak_bytes, available_bytes=available + mine)


def memory_finding(estimate: Estimate, *, peak_bytes: int, available_bytes: int) -> Finding:
    """Hold what the worker will need against what is available.

    Args:
        estimate: from a sample.
        peak_bytes: most memory this process has used; it held the same data and encoder.
        available_bytes: once this process is gone.

    Returns:
        A failure where there is too little.
    """
    need = peak_bytes + 2 * estimate.matrix_bytes + estimate.batch_bytes
    found = (
        f"{_bytes(available_bytes)} available; about {_bytes(need)} needed: this check's own peak"
        f" with data and encoder {_bytes(peak_bytes)}, all product vectors twice"
        f" {_bytes(2 * estimate.matrix_bytes)}, a batch {_bytes(estimate.batch_bytes)}"
    )
    if need > available_bytes:
        return Finding("fail", found, "end other programs, or use a machine with more memory")
    return Finding("ok", found)


def _kilobytes(path: str, name: str) -> int:
    """One line of a table of the kernel, in bytes."""
    for line in Path(path).read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(name)


def _time(facts: _Facts) -> Finding:
    return time_finding(_needed(facts.estimate, "disk"), round_timeout_s=_defaults()[1])


def time_finding(estimate: Estimate, *, round_timeout_s: float) -> Finding:
    """Say how long everything will take.

    Args:
        estimate: from a sample.
        round_timeout_s: after which headquarters goes on without this region.

    Returns:
        A warning where the first round, which keeps activations before it trains, would be late.
    """
    kinds = {"texts": estimate.texts, "queries": estimate.queries, "photos": estimate.photos}
    parts = [f"{name} {_cost(work)}" for name, work in kinds.items()]
    one_round = "no examples" if estimate.round_s is None else _minutes(estimate.round_s)
    found = (
        f"about, for activations: {', '.join(parts)}; for training a round: {one_round};"
        f" for indexing: {_minutes(estimate.index_s)}"
    )
    first = sum(work.seconds for work in kinds.values()) + (estimate.round_s or 0.0)
    if first > round_timeout_s:
        advice = (
            f"the first round would take {_minutes(first)}, and headquarters waits"
            f" {_minutes(round_timeout_s)} by default; use a GPU, or agree on a longer wait"
        )
        return Finding("warn", found, advice)
    return Finding("ok", found)


def _cost(work: Work) -> str:
    if work.items and not work.missing:
        return "none, kept already"
    return _minutes(work.seconds) if work.items else "none"


def _defaults() -> "tuple[TrainConfig, float]":
    """How a round is trained and awaited unless headquarters says otherwise."""
    from shared.config import default_run_config, parse_run_config

    config = parse_run_config(default_run_config())
    return config.train_config(1), config.round_timeout_s


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    """As many threads as the worker will use; 0 leaves the choice to torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    region: "Region",
    encoder: "Encoder",
    splits: "tuple[Examples, ValidationSet, ValidationSet] | None",
    sample: int,
) -> Estimate:
    """Compute a sample in a temporary folder, and scale up.

    Args:
        region: the opened region.
        encoder: of its base; its adapter is a fresh one afterwards.
        splits: training examples, validation and gate queries; None where the clicks are unsound.
        sample: how many products, photos and queries to compute at most.

    Returns:
        What the region as a whole will cost, what it keeps already left out.
    """
    queries = [part.queries for part in splits] if splits else []
    with tempfile.TemporaryDirectory(prefix="fedshelf-check-") as name:
        beside = Path(name)
        text_work = _text_work(region, encoder, beside, [region.texts], sample)
        query_work = _text_work(region, encoder, beside, queries, sample)
        photo_work = _photo_work(region, encoder, beside, sample)
        data = _sample_data(region, encoder, beside, queries[0] if queries else [], sample)
        index_bytes, index_s = _measure_index(region, encoder, data.products, beside)
        release_bytes = _measure_release(encoder, beside)
        num_examples = len(splits[0].weight) if splits else 0
        round_s = _round_seconds(encoder, data, num_examples) if num_examples else None
    return Estimate(
        texts=text_work,
        queries=query_work,
        photos=photo_work,
        index_bytes=index_bytes,
        release_bytes=release_bytes,
        matrix_bytes=region.catalog.height * encoder.dim * np.float32().itemsize,
        batch_bytes=_batch_bytes(text_work.bytes_each + photo_work.bytes_each),
        index_s=index_s,
        round_s=round_s,
    )


def _text_work(
    region: "Region", encoder: "Encoder", beside: Path, lists: list[list[str]], sample: int
) -> Work:
    """Each list is kept in a folder of its own, as a whole or not at all."""
    from shared.encoders.prefix_cache import text_prefixes

    every = [text for texts in lists for text in texts]
    some = [every[row] for row in _spread(len(every), sample)]
    kept = text_prefixes(beside, encoder.text, encoder.base.fingerprint, some)
    missing = sum(
        len(texts) for texts in lists if not _is_kept(_text_folder(region, encoder, texts))
    )
    return Work(
        items=len(every),
        missing=missing,
        new_rows=missing,
        bytes_each=kept.tokens.nbytes / max(len(some), 1) + kept.offsets.itemsize,
        seconds_each=_text_seconds(encoder, some, kept.lengths()),
    )


def _photo_work(region: "Region", encoder: "Encoder", beside: Path, sample: int) -> Work:
    """A catalog's photos are kept in one file with a row for every product."""
    from shared.encoders.prefix_cache import image_prefixes

    every = [path for path in region.image_paths if path]
    some = [every[row] for row in _spread(len(every), sample)]
    kept = image_prefixes(beside, encoder.image, encoder.base.fingerprint, some)
    missing = not _is_kept(_image_folder(region, encoder))
    start = time.perf_counter()
    if some:
        encoder.image.prefix(some)
    seconds = time.perf_counter() - start
    return Work(
        items=len(every),
        missing=len(every) * missing,
        new_rows=region.catalog.height * missing,
        bytes_each=kept.maps.nbytes / max(len(some), 1),
        seconds_each=seconds / max(len(some), 1),
    )


def _text_seconds(encoder: "Encoder", texts: list[str], lengths: NDArray[np.int64]) -> float:
    from shared.encoders.encoder import batches_by_length

    start = time.perf_counter()
    for rows in batches_by_length(lengths, _LENGTH_BATCH):
        encoder.text.prefix([texts[row] for row in rows])
    return (time.perf_counter() - start) / max(len(texts), 1)


def _sample_data(
    region: "Region", encoder: "Encoder", beside: Path, queries: list[str], sample: int
) -> "TrainingData":
    """As many products and queries, paired anyhow: how long a step takes is all that is asked."""
    from client.clicks import Examples
    from client.training import make_training_data
    from shared.encoders.encoder import ProductPrefixes
    from shared.encoders.prefix_cache import image_prefixes, text_prefixes

    fingerprint, rows = encoder.base.fingerprint, _spread(region.catalog.height, sample)
    texts = [region.texts[row] for row in rows]
    products = ProductPrefixes(
        text_prefixes(beside, encoder.text, fingerprint, texts),
        image_prefixes(
            beside, encoder.image, fingerprint, [region.image_paths[row] for row in rows]
        ),
        np.array([bool(text) for text in texts]),
    )
    asked = [queries[row] for row in _spread(len(queries), sample)] or texts
    config, _ = _defaults()
    pair = np.arange(min(max(len(asked), len(texts)), config.batch_size), dtype=np.int64)
    query_index, product_row = pair % len(asked), pair % len(texts)
    examples = Examples(
        queries=asked,
        query_index=query_index,
        product_row=product_row,
        weight=np.ones(len(pair), dtype=np.float32),
        positives=np.sort(query_index * len(texts) + product_row),
        num_products=len(texts),
    )
    kept_queries = text_prefixes(beside, encoder.text, fingerprint, asked)
    return make_training_data(encoder, examples, kept_queries, products)


def _round_seconds(encoder: "Encoder", data: "TrainingData", num_examples: int) -> float:
    """One round by the defaults, from a few steps after a first one that warms up."""
    from client.training import train

    defaults, _ = _defaults()
    size, ends = len(data.examples.weight), list[float]()
    train(
        encoder,
        data,
        replace(defaults, batch_size=size, local_epochs=1 + _MEASURED_STEPS),
        seed=[0],
        on_step=lambda done, steps: ends.append(time.perf_counter()),
    )
    encoder.reset(seed=0)
    return (ends[-1] - ends[0]) / (_MEASURED_STEPS * size) * num_examples * defaults.local_epochs


def _measure_index(
    region: "Region", encoder: "Encoder", products: "ProductPrefixes", beside: Path
) -> tuple[float, float]:
    """Bytes and seconds of indexing the whole catalog, from the sample in `products`."""
    from shared.retrieval.index import build_index
    from shared.retrieval.manifest import write_index_folder

    num = len(products.has_text)
    encoder.product_matrix(products)  # the first time warms up
    start = time.perf_counter()
    index = build_index(encoder.product_matrix(products))
    seconds = time.perf_counter() - start
    ids = region.catalog["product_id"]
    folder = write_index_folder(
        beside / "indexes",
        index,
        [ids[int(row)] for row in _spread(len(ids), num)],
        release=0,
        encoder_digest=encoder.digest,
        catalog_digest=region.catalog_digest,
    )
    scale = len(ids) / num
    return _folder_bytes(folder) * scale, seconds * scale


def _measure_release(encoder: "Encoder", beside: Path) -> float:
    folder = beside / "release"
    folder.mkdir()
    encoder.save_release_files(folder)
    return _folder_bytes(folder)


def _batch_bytes(item_bytes: float) -> float:
    """Memory of the largest batch, of items that take so much on disk, where they are halved."""
    from shared.encoders.encoder import BATCH

    return BATCH * 2 * item_bytes * _ACTIVATION_COPIES


def _text_folder(region: "Region", encoder: "Encoder", texts: list[str]) -> Path:
    """Where `prefix_cache.text_prefixes` keeps this list."""
    content = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return _cache_folder(region, encoder, "text", encoder.text.config.adapter_blocks, content)


def _image_folder(region: "Region", encoder: "Encoder") -> Path:
    """Where `prefix_cache.image_prefixes` keeps the catalog's photos."""
    content = [sha256_file(path) if path else "" for path in region.image_paths]
    return _cache_folder(region, encoder, "image", encoder.image.config.adapter_blocks, content)


def _cache_folder(
    region: "Region", encoder: "Encoder", kind: str, adapter_blocks: int, content: list[str]
) -> Path:
    from shared.encoders import prefix_cache

    key = prefix_cache._key(kind, encoder.base.fingerprint, adapter_blocks, content)
    return region.state / "prefix_cache" / f"{kind}-{key}"


def _is_kept(folder: Path) -> bool:
    """A folder appears whole; one that was damaged since is made again when it is opened."""
    return (folder / "DIGESTS.json").is_file()


# -- headquarters ----------------------------------------------------------------------------------


def _connection(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    if config.headquarters is None:
        return Finding("ok", "none needed: region.toml names no headquarters")
    address = config.headquarters.address
    try:
        return _visit(facts, config.headquarters)
    except SSLCertVerificationError as error:
        fault = _TLS_FAULTS.get(error.verify_code, f"{error.verify_message}; ask headquarters")
        raise FederationError(f"{address}: {fault}") from None
    except (OSError, HTTPException) as error:
        raise FederationError(f"{address}: {_unreachable(error)}") from None


def _visit(facts: _Facts, headquarters: "HeadquartersConfig") -> Finding:
    """One look at headquarters, trusting the region's one authority and no proxy."""
    host, _, port = headquarters.address.rpartition(":")
    if not 1 <= int(port) <= 65535:  # the system's resolver would take it modulo 65536
        raise ConfigError(f"{headquarters.address}: no such port; correct headquarters.address")
    trust = _trust(facts.folder / headquarters.ca)
    connection = HTTPSConnection(host, int(port), timeout=TIMEOUT_S, context=trust)
    with closing(connection):
        connection.connect()
        expiry = _expiry(connection)
        health, facts.clock_offset_s = _get(connection, "/healthz", facts)
        release, _ = _get(connection, "/releases/current.json", facts)
    if health != 200:
        raise FederationError(
            f"{headquarters.address}: /healthz answers {health}, not 200; ask headquarters whether"
            " it is running"
        )
    published = {200: "a release is published", 404: "no release yet"}
    found = (
        f"{headquarters.address} verified by {headquarters.ca}, certificate until"
        f" {expiry:%Y-%m-%d}; {published.get(release, f'releases answer {release}')}"
    )
    if expiry - facts.now() < _RENEWAL:
        return Finding("warn", found, "headquarters must renew its certificate")
    if release not in published:
        return Finding("warn", found, "ask headquarters for its log")
    return Finding("ok", found)


def _trust(ca: Path) -> SSLContext:
    try:
        return create_default_context(cafile=ca)
    except FileNotFoundError:
        raise ConfigError(f"{ca}: not found; enrol this region") from None
    except SSLError:
        raise ConfigError(f"{ca}: not a certificate in PEM; enrol this region again") from None


def _expiry(connection: HTTPSConnection) -> datetime:
    shown = connection.sock.getpeercert(binary_form=True)
    assert shown is not None, "it was verified"
    return load_der_x509_certificate(shown).not_valid_after_utc


def _get(connection: HTTPSConnection, path: str, facts: _Facts) -> tuple[int, float | None]:
    """Status of an answer, and by how many seconds this machine's clock is ahead of its date."""
    start = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    half_way = timedelta(seconds=(time.perf_counter() - start) / 2)
    date, here = answer.getheader("Date"), facts.now() - half_way
    answer.read(_MAX_ANSWER_BYTES)
    connection.close()  # the next request opens it again, also after an answer longer than that
    try:
        there = parsedate_to_datetime(date or "") + timedelta(seconds=0.5)  # whole seconds, cut
        return answer.status, (here - there).total_seconds()
    except (ValueError, TypeError):  # TypeError: a date without a zone
        return answer.status, None


def _unreachable(error: Exception) -> str:
    """Why nobody answered, and what to do."""
    match error:
        case gaierror():
            return "no such host; correct headquarters.address"
        case TimeoutError():
            return f"no answer within {TIMEOUT_S:g} s; ask whether a firewall stands between"
        case ConnectionRefusedError():
            return "connection refused; ask headquarters whether it is running"
        case SSLError():
            return "does not speak TLS as expected; correct the port in headquarters.address"
        case HTTPException():
            return "does not speak HTTP; correct the port in headquarters.address"
        case _:
            return f"{getattr(error, 'strerror', None) or type(error).__name__}; try again"


def _clock(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    if config.headquarters is None:
        return Finding("ok", "nothing to compare with: region.toml names no headquarters")
    return clock_finding(_needed(facts.clock_offset_s, "connection"))


def clock_finding(offset_s: float) -> Finding:
    """Hold this machine's clock against headquarters'.

    Args:
        offset_s: by how much this machine is ahead, negative where it is behind; right to a second.

    Returns:
        A failure where Flower would refuse this region as a node.
    """
    side = "ahead of" if offset_s > 0 else "behind"
    found = (
        f"{_count(round(abs(offset_s)), 'second')} {side} headquarters; a region may be"
        f" {MAX_AHEAD_S} s ahead and {MAX_BEHIND_S} s behind"
    )
    if not -MAX_BEHIND_S < offset_s < MAX_AHEAD_S:
        return Finding("fail", found, "set the clock by NTP; Flower refuses this region's messages")
    if not -_WARN_BEHIND_S <= offset_s <= _WARN_AHEAD_S:
        return Finding("warn", found, "set the clock by NTP before it is further off")
    return Finding("ok", found)


# -- words -----------------------------------------------------------------------------------------


def _has_photo(region: "Region") -> NDArray[np.bool_]:
    return np.array([path is not None for path in region.image_paths], dtype=np.bool_)


def _spread(total: int, sample: int) -> NDArray[np.int64]:
    """At most `sample` row numbers, evenly spread over `total` rows."""
    return np.linspace(0, total, min(sample, total), endpoint=False).astype(np.int64)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _reason(problem: str) -> str:
    """What a report of `client.region` says of a row."""
    match = _PROBLEM.fullmatch(problem)
    return match["reason"] if match else problem


def _problems(problems: Sequence[str], required: Sequence[str]) -> str:
    """How many rows were left out and cells emptied, and the first of these reports."""
    reasons = [_reason(_without_contents(line)) for line in problems]
    # "price: below 0" empties a cell; "duplicate product_id" and "title: missing" lose a row.
    kept = [":" in reason and reason.partition(":")[0] not in required for reason in reasons]
    left_out = _count(kept.count(False), "row")
    emptied = _count(kept.count(True), "cell")
    return f"{left_out} left out, {emptied} emptied{_first(problems)}"


def _first(problems: Sequence[str]) -> str:
    return f" (first: {_without_contents(problems[0])})" if problems else ""


def _without_contents(text: str) -> str:
    """A message without product ids, and without the columns that were found.

    Where a click log's columns have slipped, a product id is a query; where a CSV lacks its header,
    a column's name is one.
    """
    named = _QUOTED_ID.sub(r"\1", text)
    return _FOUND_COLUMNS.sub(r"\1; ", named)


def _line(text: str) -> str:
    """One line, with nothing in it that a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _bytes(number: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,.0f} B"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.1f} min" if seconds >= 6 else "under 0.1 min"


_CHECKS: dict[str, Callable[[_Facts], Finding]] = {
    "configuration": _configuration,
    "permissions": _permissions,
    "catalog": _catalog,
    "photos": _photos,
    "clicks": _clicks,
    "judgments": _judgments,
    "splits": _splits,
    "device": _device,
    "base": _base,
    "release": _release,
    "disk": _disk,
    "memory": _memory,
    "connection": _connection,
    "clock": _clock,
    "time": _time,
}
