"""Whether a region is fit to take part, and what taking part will cost; one row a question.

It opens and computes with the very functions that later work on the region, on a sample where the
whole would take long, and only says what came of it. It writes nothing into the region: what has to
be computed lies in a temporary folder. A check that fails stops only those that need what it found.

No row holds a query, a product's content or a product id, so a table can be handed on to whoever
helps.
"""

import json
import re
import resource
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.estimate import (
    Estimate,
    disk_finding,
    folder_bytes,
    measure,
    memory_bytes,
    memory_finding,
    time_finding,
)
from client.finding import Finding, Verdict, byte_size, counted
from client.visit import clock_finding, connection_finding, visit
from shared.config import run_defaults
from shared.errors import BaseError, ConfigError, FedshelfError
from shared.schema import CATALOG_REQUIRED, CLICK_REQUIRED, QREL_REQUIRED, load_region_config

if TYPE_CHECKING:  # torch and polars take seconds to import
    import polars as pl
    from rich.table import Table

    from client.clicks import Examples, ValidationSet
    from client.region import Region
    from shared.encoders.encoder import Encoder
    from shared.schema import RegionConfig, WorkerConfig

T = TypeVar("T")

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_PROBLEM = re.compile(r".*? row \d+: (?P<reason>.*)")


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
    known_items: Sequence[str] = ()
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
        One row a question, always the same questions in the same order ("judgments" and "service"
        only where `region.toml` has them).
    """
    facts = _Facts(folder, max(sample, 1), now)
    rows = []
    for what, check in _CHECKS.items():
        if not _is_asked(what, facts.config):
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


def _is_asked(what: str, config: "RegionConfig | None") -> bool:
    """Whether a question has an object here; some parts of a region may be missing."""
    if what == "judgments":
        return config is not None and config.data.qrels is not None
    return what != "service" or (config is not None and config.serve is not None)


def _row(what: str, check: Callable[[_Facts], Finding], facts: _Facts) -> CheckRow:
    try:
        finding = check(facts)
    except _NotCheckedError as needed:
        finding = Finding("warn", f"not checked; it needs what the row {needed} did not find")
    except FedshelfError as error:
        found, _, advice = str(error).rpartition("; ")
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


def _service(facts: _Facts) -> Finding:
    from client.service.access import read_access
    from shared.retrieval.rules import read_rules

    serve = _needed(facts.config, "configuration").serve
    assert serve is not None, "asked only where there is one"
    access = read_access(serve, facts.folder)
    if serve.rules is not None:
        read_rules(facts.folder / serve.rules)
    secrets = [facts.folder / name for name in (serve.token_file, serve.key) if name is not None]
    for path in secrets:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            return Finding("fail", f"{path}: not its owner's alone", f"chmod 600 {path}")
    wires = ", ".join(filter(None, (serve.http, serve.grpc)))
    found = f"{wires}, {'TLS' if access.certificate else 'in plain'}"
    if access.token is not None:
        return Finding("ok", f"{found}, to whoever has the token")
    # Where no headquarters is named nobody else's code runs here.
    if facts.config is not None and facts.config.headquarters is not None:
        advice = "set serve.token_file, or what headquarters sends can read the catalog there"
        return Finding("warn", f"{found}, to every user of this machine", advice)
    return Finding("ok", f"{found}, to every user of this machine")


# -- data ------------------------------------------------------------------------------------------


def _catalog(facts: _Facts) -> Finding:
    from client.region import open_region

    _needed(facts.config, "configuration")
    facts.region = region = open_region(facts.folder)
    problems = [line for line in region.problems if not _reason(line).startswith("image:")]
    texts, photos = np.array([bool(text) for text in region.texts]), _has_photo(region)
    duplicates = sum(_reason(line).startswith("duplicate") for line in problems)
    found = (
        f"{counted(region.catalog.height, 'product')}, {_problems(problems, CATALOG_REQUIRED)};"
        f" {counted(duplicates, 'duplicate')}, {(~texts).sum():,} without text,"
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
    found = f"{_has_photo(region).sum():,} of {counted(region.catalog.height, 'product')}"
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
        f"{counted(clicks['request_id'].n_unique(), 'request')},"
        f" {counted(clicks.height, 'impression')},"
        f" {counted(int(clicks['clicked'].sum()), 'click')},"
        f" {_problems(problems, CLICK_REQUIRED)}; {counted(unknown, 'impression')} of products that"
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
    found = f"{counted(qrels.height, 'judgment')}, {_problems(problems, QREL_REQUIRED)}"
    if problems:
        return Finding("warn", found, f"correct these rows in {region.config.data.qrels}")
    return Finding("ok", found)


def _splits(facts: _Facts) -> Finding:
    from client.clicks import examples_of, make_validation_set, split_log
    from client.known_items import known_items_of

    region, clicks = _needed(facts.region, "catalog"), _needed(facts.clicks, "clicks")
    parts, chosen = split_log(clicks, region.config), region.config.clicks
    ids = region.catalog["product_id"]
    examples = examples_of(parts.train, ids, chosen)
    validation, gate = (
        make_validation_set(part, ids, min_propensity=chosen.min_propensity)
        for part in (parts.validation, parts.gate)
    )
    facts.splits = examples, validation, gate
    facts.known_items = known_items_of(region.texts, ids, parts.train).queries
    found = (
        f"{counted(len(examples.weight), 'training example')},"
        f" {counted(len(validation.queries), 'validation query', 'validation queries')},"
        f" {counted(len(gate.queries), 'gate query', 'gate queries')}"
    )
    needed = region.config.publication.min_queries
    if len(examples.weight) == 0:
        advice = "it takes releases, and part in rounds once shoppers have clicked"
        return Finding("warn", f"{found}: nothing to train on", advice)
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
        torch.cuda.get_device_name(device) if device.type == "cuda" else counted(threads, "thread")
    )
    facts.device = device.type
    return Finding("ok", f'"{config.device}": {device.type}, {name}')


def _base(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    from shared.encoders.encoder import load_encoder

    folder, expected = facts.folder / config.base.path, config.base.fingerprint
    try:  # a GPU that was asked for and is absent is the row "device"; the base loads without it
        encoder = load_encoder(folder, device=facts.device or "cpu", expected=expected)
    except (ValueError, RuntimeError) as error:  # the bytes are right, so the program is not
        kind = type(error).__name__
        raise BaseError(f"{folder}: verified, but does not load ({kind}); update it") from None
    facts.encoder, adapter = encoder, encoder.adapter()
    numbers = sum(tensor.numel() for tensor in adapter.values())
    found = (
        f"{encoder.base.fingerprint[:12]} verified: {encoder.base.preset},"
        f" {encoder.dim:,} dimensions, {byte_size(folder_bytes(folder))};"
        f" adapter of {numbers:,} numbers, schema {encoder.schema[:12]};"
        f" {_rank(config.worker, encoder.rank)}"
    )
    return Finding("ok", found)


def _rank(worker: "WorkerConfig", rank: int) -> str:
    """What a round trains here of a base of some rank."""
    if worker.max_rank > rank:
        return f"trains rank {rank}, the base's: worker.max_rank, {worker.max_rank}, is above it"
    return f"trains rank {worker.rank_within(rank)} of {rank}"


def _release(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    from client.indexing import read_for_base
    from client.personal import adapter_path, read_personal_adapter
    from shared.retrieval.manifest import REBUILD, open_current_index, read_pointer

    state, digest = facts.folder / config.state, None
    if not (state / "current").exists():
        return _believed(facts, state, "none in use yet")
    pointer = read_pointer(state)
    if pointer.release:
        folder = state / "releases" / str(pointer.release)
        digest = read_for_base(folder, pointer.release, config).encoder_digest
        if adapter_path(state, pointer.release, pointer.encoder_digest).exists():
            read_personal_adapter(state, pointer.release, pointer.encoder_digest)
            digest = pointer.encoder_digest
    index = open_current_index(state, expected_digest=digest).manifest
    found = (
        f"release {pointer.release} in use, verified, with an index of"
        f" {counted(index.num_products, 'product')}"
    )
    if facts.region is not None and index.catalog_digest != facts.region.catalog_digest:
        return Finding("warn", f"{found}; the catalog has changed since", REBUILD)
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
    facts.estimate = measure(
        region, encoder, facts.splits, facts.sample, known_items=facts.known_items
    )
    place = next(path for path in (region.state, *region.state.parents) if path.exists())
    return disk_finding(facts.estimate, free_bytes=shutil.disk_usage(place).free)


def _memory(facts: _Facts) -> Finding:
    estimate, available = _needed(facts.estimate, "disk"), memory_bytes()
    if available is None:
        return Finding("warn", "this system does not say how much memory is available")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return memory_finding(estimate, peak_bytes=peak_bytes, available_bytes=available)


def _time(facts: _Facts) -> Finding:
    estimate = _needed(facts.estimate, "disk")
    return time_finding(estimate, round_timeout_s=run_defaults().round_timeout_s)


# -- headquarters ----------------------------------------------------------------------------------


def _connection(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    if config.headquarters is None:
        return Finding("ok", "none needed: region.toml names no headquarters")
    seen = visit(facts.folder, config.headquarters, now=facts.now)
    facts.clock_offset_s = seen.clock_offset_s
    return connection_finding(config.headquarters, seen, now=facts.now())


def _clock(facts: _Facts) -> Finding:
    config = _needed(facts.config, "configuration")
    if config.headquarters is None:
        return Finding("ok", "nothing to compare with: region.toml names no headquarters")
    return clock_finding(_needed(facts.clock_offset_s, "connection"))


# -- words -----------------------------------------------------------------------------------------


def _has_photo(region: "Region") -> NDArray[np.bool_]:
    return np.array([path is not None for path in region.image_paths], dtype=np.bool_)


def _reason(problem: str) -> str:
    """What a report of `client.region` says of a row."""
    match = _PROBLEM.fullmatch(problem)
    return match["reason"] if match else problem


def _problems(problems: Sequence[str], required: Sequence[str]) -> str:
    """How many rows were left out and cells emptied, and the first of these reports."""
    reasons = [_reason(line) for line in problems]
    # "price: below 0" empties a cell; "duplicate product_id" and "title: missing" lose a row.
    kept = [":" in reason and reason.partition(":")[0] not in required for reason in reasons]
    left_out = counted(kept.count(False), "row")
    emptied = counted(kept.count(True), "cell")
    return f"{left_out} left out, {emptied} emptied{_first(problems)}"


def _first(problems: Sequence[str]) -> str:
    return f" (first: {problems[0]})" if problems else ""


def _line(text: str) -> str:
    """One line, with nothing in it that a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


_CHECKS: dict[str, Callable[[_Facts], Finding]] = {
    "configuration": _configuration,
    "permissions": _permissions,
    "service": _service,
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
