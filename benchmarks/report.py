"""Figures with the machine they come from, as `bench.json` and as a table.

A figure without its machine is none: cores, threads, versions, date and how busy the machine was
stand beside them.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.timing import Seconds, Spread, quantile_ms, ratio
from shared.durable import replace_file
from shared.errors import ConfigError

DENSE_TARGET: Final = 1.1  # of raw FAISS
BUSY_SHARE: Final = 0.25  # of the cores at work before anything is measured: figures are marked
_AT_LEAST: Final = ("recall", "times")  # units of which more is better
_PACKAGES = ("fedshelf", "faiss-cpu", "tantivy", "bm25s", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        section: what it belongs to, such as "dense" or "learning".
        name: what was measured.
        value: median over the rounds, or the one value there is.
        unit: "ms", "1/s", "ratio", "times", "s", "bytes", "recall", "nDCG", "cosine", "requests",
            "GB/s", "GFLOP/s" or "TFLOP/s".
        low: lower quartile; None where there were no rounds.
        high: upper quartile.
        target: what it should be at most, or, of `_AT_LEAST`, at least; None without one.
    """

    section: str
    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.unit in _AT_LEAST else self.value <= self.target


@dataclass
class Report:
    """Figures as they come in.

    Attributes:
        machine: facts of it.
        settings: what was asked for.
        figures: in order.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)

    def add(
        self,
        section: str,
        name: str,
        value: float | Spread,
        unit: str,
        *,
        target: float | None = None,
    ) -> None:
        """Put a figure down.

        Args:
            section: of the table.
            name: what was measured.
            value: one value, or that of several rounds.
            unit: as in `Figure`.
            target: as in `Figure`.
        """
        spread = value if isinstance(value, Spread) else None
        self.figures.append(
            Figure(
                section=section,
                name=name,
                value=spread.median if spread else float(value),  # type: ignore[arg-type]
                unit=unit,
                low=spread.low if spread else None,
                high=spread.high if spread else None,
                target=target,
            )
        )
        print(f"  {_line(self.figures[-1])}", flush=True)

    def compare(
        self,
        section: str,
        name: str,
        taken: dict[str, Seconds],
        *,
        target: float | None = None,
    ) -> None:
        """Put down p50 and p99 of each way, and the first one's ratio to each of the others.

        Args:
            section: of the table.
            name: what was done.
            taken: from `in_turns`; ours is the first.
            target: of the ratios.
        """
        ours, *others = taken
        for quantile, label in ((0.5, "p50"), (0.99, "p99")):
            of = {way: quantile_ms(seconds, quantile) for way, seconds in taken.items()}
            for way in taken:
                self.add(section, f"{name}, {way}, {label}", Spread.of(of[way]), "ms")
            for way in others:
                found = f"{name}, {ours} / {way}, {label}"
                self.add(section, found, ratio(of[ours], of[way]), "ratio", target=target)

    def write(self, path: Path) -> None:
        """Write all of it as JSON.

        Args:
            path: the file; points of `benchmarks.scaling` in it stay.
        """
        content = {
            "machine": self.machine | {"load_at_end": _load()},
            "settings": self.settings,
            "figures": [asdict(figure) | {"met": figure.met} for figure in self.figures],
        }
        write_json(path, content)


def read_json(path: Path) -> dict[str, Any]:
    """What a file of figures holds; empty where there is none.

    Raises:
        ConfigError: the file is not one of ours.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: no file of figures; name another with --out") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace some keys of a file of figures; the others stay.

    Args:
        path: the file, made if missing; a kill leaves the old one or the new.
        content: by key.
    """
    replace_file(path, (json.dumps(read_json(path) | content, indent=1) + "\n").encode())


def machine_facts(*, threads: int) -> dict[str, Any]:
    """What must stand beside every figure.

    Args:
        threads: of torch; FAISS has one a search unless a figure says otherwise.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "torch_threads": threads,
        "load_at_start": _load(),
        "busy": share_in_use() > BUSY_SHARE,
    }


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table.

    Args:
        figures: in order.
    """
    lines = ["| what | median | quartiles | unit | target |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        quartiles = "" if figure.low is None else f"{_number(figure.low)} to {_number(figure.high)}"
        wanted = "" if figure.target is None else f"{figure.target:g}: {_verdict(figure)}"
        name = f"{figure.section}: {figure.name}"
        lines.append(
            f"| {name} | {_number(figure.value)} | {quartiles} | {figure.unit} | {wanted} |"
        )
    return "\n".join(lines)


def _line(figure: Figure) -> str:
    spread = "" if figure.low is None else f" ({_number(figure.low)} to {_number(figure.high)})"
    wanted = "" if figure.target is None else f"; target {figure.target:g}: {_verdict(figure)}"
    return f"{figure.name}: {_number(figure.value)}{spread} {figure.unit}{wanted}"


def _verdict(figure: Figure) -> str:
    return "met" if figure.met else "missed"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _load() -> float:
    """Processes that want a core, this one among them, over the last minute."""
    return round(os.getloadavg()[0], 2)


def share_in_use(*, seconds: float = 1.0, stat: Path = Path("/proc/stat")) -> float:
    """Share of this process's cores that are at work while it sleeps, in [0, 1].

    The load average would not do: it remembers what ended a minute ago.

    Args:
        seconds: to look for.
        stat: the kernel's count of ticks by core.
    """
    before = _ticks(stat)
    time.sleep(seconds)
    idle, total = (after - first for after, first in zip(_ticks(stat), before, strict=True))
    return 1 - idle / total if total else 0.0


def _ticks(stat: Path) -> tuple[int, int]:
    """Ticks that this process's cores were idle, and all ticks (proc_stat(5))."""
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
    counts = [[int(count) for count in row[1:9]] for row in rows if row and row[0] in mine]
    return sum(row[3] + row[4] for row in counts), sum(map(sum, counts))


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(name)
    except PackageNotFoundError:  # faiss-gpu instead of faiss-cpu
        return ""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
