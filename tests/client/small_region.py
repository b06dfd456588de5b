"""Ways to spoil a region that `fedshelf simulate` prepared, and to ask what its check finds."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from client.check import CheckRow, check_region
from shared.schema import RegionConfig, load_region_config, render_region_toml


def change(folder: Path, **sections: object) -> Path:
    """Change keys of `region.toml`, section by section."""
    values = load_region_config(folder).model_dump(mode="json", exclude_none=True)
    for name, value in sections.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    toml = render_region_toml(RegionConfig.model_validate(values))
    (folder / "region.toml").write_text(toml, encoding="utf-8")
    return folder


def rows_of(folder: Path, **options: object) -> dict[str, CheckRow]:
    rows = check_region(folder, sample=8, **options)  # type: ignore[arg-type]
    return {row.what: row for row in rows}


def verdicts(rows: dict[str, CheckRow], verdict: str) -> list[str]:
    return [what for what, row in rows.items() if row.verdict == verdict]


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder below: mode, time of change, bytes."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.stat()
        data = b"" if path.is_dir() else path.read_bytes()
        found[str(path)] = (status.st_mode, status.st_mtime_ns, data)
    return found


def edit(path: Path, change_rows: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change_rows(pl.read_parquet(path)).write_parquet(path)


def set_cell(name: str, row: int, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change_rows(table: pl.DataFrame) -> pl.DataFrame:
        cells = table[name].to_list()
        cells[row] = value
        return table.with_columns(pl.Series(name, cells, dtype=table[name].dtype))

    return change_rows
