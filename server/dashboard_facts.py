"""What headquarters' folder holds, read into plain JSON values for the dashboard.

Reading changes nothing. What cannot be read does not take the rest away: it is a line under
"problems", and its part is None. Files that people can edit are checked for their form here, so
that the page need not doubt what it gets.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite
from statistics import fmean
from typing import Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from server.enrolment import regions
from server.gate import MEAN, GateCheck, from_json
from server.headquarters import Headquarters
from server.history import RoundRecord, by_region
from server.training import Training, release_numbers, trainings
from shared.audit import EMPTY, read_audit
from shared.config import FederationConfig, default_run_config, parse_run_config
from shared.errors import ConfigError, FedshelfError
from shared.release import ReleaseManifest, read_current_of_any_age, read_release

METRIC = "ndcg@10"
SHOWN_ENTRIES = 50
_QUIET_S = 900.0  # a round that takes longer than that, and thrice the longest before, may be dead
_T = TypeVar("_T")


class _Said(BaseModel):
    """What a region last said, as far as the page shows it; fields as in `wire.Description`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    num_products: int | None = None
    num_examples: int | None = None
    num_validation_queries: int | None = None
    num_gate_queries: int | None = None
    device: str | None = None
    code_version: str | None = None
    release: int | None = None
    verdict: str | None = None
    verdict_release: int | None = None
    verdict_reason: str | None = None
    seen: AwareDatetime | None = None
    refused: str | None = None
    refused_at: AwareDatetime | None = None

    @property
    def moment(self) -> datetime:
        """When it was last heard of or refused."""
        known = [time for time in (self.seen, self.refused_at) if time is not None]
        return max(known, default=datetime.min.replace(tzinfo=UTC))


class _Config(BaseModel):
    """config.json of a training."""

    parent: int | None
    run_config: dict[str, str | int | float | bool]


class _Gate(BaseModel):
    """gate.json; the decision is read by `server.gate`."""

    round: int
    candidate: dict[str, dict[str, float]]
    rejected: list[dict[str, str]]
    decision: dict[str, Any]


class _Matrix(BaseModel):
    """matrix.json."""

    metric: str
    rows: dict[str, dict[str, float]]
    num_queries: dict[str, int]
    rejected: list[dict[str, str]]


class _ReleasedDecision(BaseModel):
    accepted: bool
    checks: tuple[GateCheck, ...]


class _ReleasedGate(BaseModel):
    """What a release's manifest says of the gate."""

    decision: _ReleasedDecision
    candidate: dict[str, dict[str, float]]


_ROUNDS = TypeAdapter(list[RoundRecord])
_SAID = TypeAdapter(dict[str, _Said])


class _Problems(list[str]):
    """Lines about what could not be read, each once."""

    def read(self, what: str, read: Callable[[], _T]) -> _T | None:
        """What `read` returns, or None, and a line here that says why."""
        try:
            return read()
        except FedshelfError as error:
            self._add(str(error))
        except OSError as error:
            self._add(f"{error.filename or what}: cannot be read ({error.strerror})")
        except (ValueError, KeyError):  # valid JSON of another form, as a hand can make it
            self._add(f"{what}: not of the expected form; restore it from a backup")
        return None

    def _add(self, line: str) -> None:
        if line not in self:
            self.append(line)


def snapshot(hq: Headquarters, *, now: datetime | None = None) -> dict[str, Any]:
    """Everything the page shows, from the folder's files alone; nothing is written.

    Args:
        hq: the open folder.
        now: when it is read; the clock's time by default.

    Returns:
        Plain JSON values; times are ISO 8601 in UTC, figures that are not finite are None. A part
        that could not be read is None, and `problems` says why. No token and no key of a region is
        in it.
    """
    moment, problems = now or datetime.now(UTC), _Problems()
    known = [_training(one, problems) for one in trainings(hq.trainings)]
    tables = trainings(hq.matrices)
    gates = [one["gate"] for one in known if one["gate"]]
    found = {
        "made": moment,
        "name": hq.config.name,
        "address": hq.config.address,
        "base_fingerprint": hq.fingerprint,
        "release_key": hq.release_key,
        "state": _state(known, tables, moment),
        "regions": problems.read(str(hq.regions), lambda: _regions(hq, tables, moment, problems)),
        "training": known[-1] if known else None,
        "trainings": [_summary(one) for one in known],
        "gate": gates[-1] if gates else None,
        "releases": _releases(hq, moment, problems),
        "matrix": _newest_matrix(tables, problems),
        "audit": _audit(hq),
        "problems": problems,
    }
    plain: dict[str, Any] = _plain(found)
    return plain


# -- trainings -------------------------------------------------------------------------------------


def _training(one: Training, problems: _Problems) -> dict[str, Any]:
    """One training; what of it is damaged is left out."""
    records = problems.read(str(one.folder / "headquarters/history.json"), lambda: _rounds(one))
    config = problems.read(str(one.folder / "config.json"), lambda: _config(one))
    done = records or []
    return {
        "number": one.number,
        "parent": config[1] if config else None,
        "num_rounds": config[0].num_rounds if config else None,
        "release": problems.read(str(one.folder / "release.json"), lambda: one.release),
        "rounds": [asdict(record) | {"mean": _mean(record)} for record in done],
        "curves": dict(by_region(done)),
        "best_round": one.history.best_round() if done else None,
        "gate": problems.read(str(one.folder / "headquarters/gate.json"), lambda: _gate(one)),
        "complete": _done(one),
        "activity": _activity(one),
    }


def _summary(one: Mapping[str, Any]) -> dict[str, Any]:
    """A training without its rounds, for the list of all of them."""
    keys = ("number", "parent", "num_rounds", "best_round", "release", "complete", "activity")
    last, gate = one["rounds"][-1:], one["gate"]
    return {key: one[key] for key in keys} | {
        "rounds_done": last[0]["round"] if last else None,
        "accepted": gate["accepted"] if gate else None,
    }


def _rounds(one: Training) -> list[RoundRecord]:
    return _ROUNDS.validate_python([asdict(record) for record in one.history.rounds()])


def _mean(record: RoundRecord) -> float | None:
    """As `RoundRecord.mean`, but unknown where no region measured."""
    measured = any(METRIC in row for row in record.validation.values())
    return record.mean(METRIC) if measured else None


def _config(one: Training) -> tuple[FederationConfig, int | None]:
    """The run config with its defaults, and the parent."""
    config = _Config.model_validate(one.config)
    try:
        return parse_run_config({**default_run_config(), **config.run_config}), config.parent
    except ConfigError as error:
        raise ConfigError(f"{one.folder / 'config.json'}: {error}") from None


def _gate(one: Training) -> dict[str, Any] | None:
    raw = one.history.gate()
    if raw is None:
        return None
    gate, config = _Gate.model_validate(raw), _config(one)[0]
    return {
        **asdict(from_json(gate.decision)),
        "training": one.number,
        "round": gate.round,
        "candidate": gate.candidate,
        "rejected": gate.rejected,
        "tolerance": config.gate_tolerance,
        "confidence": config.gate_confidence,
        "min_queries": config.gate_min_queries,
    }


def _activity(one: Training) -> datetime:
    """When a file of it was last written."""
    names = ("run.json", *(f"headquarters/{name}.json" for name in ("history", "regions", "gate")))
    paths = [path for path in (one.folder / name for name in names) if path.is_file()]
    newest = max(path.stat().st_mtime for path in [one.folder, *paths])
    return datetime.fromtimestamp(newest, UTC).replace(microsecond=0)


def _state(
    known: Sequence[Mapping[str, Any]], tables: Sequence[Training], now: datetime
) -> dict[str, Any]:
    """What headquarters is at, as its files tell; whether a process is alive they do not."""
    state = _training_state(known[-1]) if known else None
    if tables and not _done(tables[-1]):
        since = _activity(tables[-1])
        if not known or since > known[-1]["activity"]:  # otherwise it was given up
            state = {"kind": "matrix", "number": tables[-1].number, "since": since}
    if state is None:
        return {"kind": "idle"}
    quiet_s = (now - state["since"]).total_seconds()
    return {**state, "quiet": quiet_s > max(_QUIET_S, 3 * state.pop("longest_s", 0.0))}


def _training_state(one: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a training is at; None if it is over.

    Round 0 is the evaluation before training; after the last round comes the gate, and after a gate
    that accepted the release.
    """
    rounds, gate, number = one["rounds"], one["gate"], one["num_rounds"]
    if one["complete"] and not (gate and gate["accepted"] and one["release"] is None):
        return None
    at = rounds[-1]["round"] + 1 if rounds else 0
    kind = "gate" if number is not None and at > number else "training"
    return {
        "kind": "release" if one["complete"] else kind,
        "number": one["number"],
        "round": at,
        "num_rounds": number,
        "since": one["activity"],
        "longest_s": max((record["seconds"] for record in rounds), default=0.0),
    }


def _done(one: Training) -> bool:
    """Whether its Flower run is done, also if what it left is damaged."""
    return any((one.history.folder / name).is_file() for name in ("gate.json", "matrix.json"))


# -- regions ---------------------------------------------------------------------------------------


def _regions(
    hq: Headquarters, tables: Sequence[Training], now: datetime, problems: _Problems
) -> list[dict[str, Any]]:
    """Every region that was ever invited, and every node that was refused under another name."""
    said, rows = _said([*trainings(hq.trainings), *tables], problems), []
    for name, record in regions(hq).items():
        expired = record.state == "invited" and now > record.expires
        rows.append(
            {
                "region": name,
                "state": "expired" if expired else record.state,
                "invited": record.invited,
                "expires": record.expires,
                "admitted": record.admitted,
                "revoked": record.revoked,
                "key_fingerprint": record.key_fingerprint,
                **said.pop(name, _Said()).model_dump(),
            }
        )
    strangers = sorted(said.items())
    return rows + [
        {"region": name, "state": "unknown", **one.model_dump()} for name, one in strangers
    ]


def _said(known: Iterable[Training], problems: _Problems) -> dict[str, _Said]:
    """What each region said last. A refusal says nothing of the region, so the rest stays."""
    entries: list[tuple[str, _Said]] = []
    for one in known:
        path = str(one.history.folder / "regions.json")
        found = problems.read(path, lambda one=one: _SAID.validate_python(one.history.regions()))  # type: ignore[misc]
        entries += (found or {}).items()
    said: dict[str, _Said] = {}
    for name, entry in sorted(entries, key=lambda item: item[1].moment):
        newer = entry.model_dump(exclude_unset=True)
        said[name] = said.get(name, _Said()).model_copy(update=newer)
    return said


# -- releases, cross-site table, audit -------------------------------------------------------------


def _releases(hq: Headquarters, now: datetime, problems: _Problems) -> dict[str, Any]:
    current = problems.read(str(hq.releases / "current.json"), lambda: _current(hq, now))
    numbers = reversed(release_numbers(hq.releases))
    in_use = current["release"] if current else None
    return {"current": current, "rows": [_release(hq, number, in_use) for number in numbers]}


def _current(hq: Headquarters, now: datetime) -> dict[str, Any] | None:
    if not (hq.releases / "current.json").exists():
        return None
    current = read_current_of_any_age(hq.releases, public_key_hex=hq.release_key)
    return {**current.model_dump(), "expired": now > current.expiry}


def _release(hq: Headquarters, number: int, in_use: int | None) -> dict[str, Any]:
    """One release, every byte of it verified; a damaged one says why."""
    row: dict[str, Any] = {"number": number, "in_use": number == in_use, "damaged": None}
    folder = hq.releases / str(number)
    trouble = _Problems()
    manifest = trouble.read(
        str(folder),
        lambda: read_release(folder, public_key_hex=hq.release_key, expected_number=number),
    )
    if manifest is None:
        return {**row, "damaged": "; ".join(trouble)}
    keys = {"created", "parent", "rounds", "strategy", "encoder_digest"}
    return {**row, **manifest.model_dump(include=keys), **_gate_figures(manifest)}


def _gate_figures(manifest: ReleaseManifest) -> dict[str, Any]:
    """What the gate measured before the release: its mean against each reference, and nDCG@10."""
    try:
        gate = _ReleasedGate.model_validate(manifest.quality.get("gate"))
    except ValidationError:  # quality is free: a release need not have been through a gate
        return {"gate": [], METRIC: None}
    values = [row[METRIC] for row in gate.candidate.values() if METRIC in row]
    means = [asdict(check) for check in gate.decision.checks if check.scope == MEAN]
    return {"gate": means, METRIC: fmean(values) if values else None}


def _newest_matrix(tables: Sequence[Training], problems: _Problems) -> dict[str, Any] | None:
    for table in reversed(tables):
        path = table.history.folder / "matrix.json"
        raw = problems.read(str(path), table.history.matrix)
        matrix = problems.read(str(path), lambda raw=raw: raw and _Matrix.model_validate(raw))  # type: ignore[misc]
        if matrix:
            made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return {**matrix.model_dump(), "number": table.number, "made": made}
    return None


def _audit(hq: Headquarters) -> dict[str, Any]:
    """The newest entries of a log that verifies; of one that does not, only why."""
    if not hq.audit.exists() and not hq.audit.with_suffix(".head").exists():
        return {"broken": None, "num_entries": 0, "head": str(EMPTY), "entries": []}
    trouble = _Problems()
    entries = trouble.read(str(hq.audit), lambda: read_audit(hq.audit))
    if entries is None:
        return {"broken": "; ".join(trouble), "num_entries": None, "head": None, "entries": []}
    newest = [entry.model_dump() for entry in reversed(entries[-SHOWN_ENTRIES:])]
    head = entries[-1].head() if entries else EMPTY
    return {"broken": None, "num_entries": len(entries), "head": str(head), "entries": newest}


def _plain(value: Any) -> Any:
    """As JSON says it: times as text, tuples as lists, and no figure that is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    return None if isinstance(value, float) and not isfinite(value) else value
