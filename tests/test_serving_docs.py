"""docs/serving.md says only what the service does: paths, bodies, codes, figures and files."""

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from client.service.asked import METHODS
from client.service.failures import HTTP_STATUS
from client.service.limits import MAX_REQUEST_BYTES, MAX_UPSERT_BYTES
from client.service.messages import (
    MAX_BATCH,
    MAX_ID_CHARS,
    MAX_PAGE,
    MAX_QUERY_CHARS,
    ImageSearchRequest,
    InfoRequest,
    SearchRequest,
)
from client.service.observe import Observer
from client.service.paging import KEPT_FOR_S, MAX_KEPT
from client.service.rpc_api import STATUS
from client.service.shop import CHANGED_SHARE, MIN_CHANGES
from client.shelves import MAX_LATE
from shared.retrieval.filters import MAX_ATTRIBUTES, MAX_VALUES
from shared.retrieval.hybrid import DEFAULT_DENSE_WEIGHT, MIN_QUERIES, WEIGHTS
from shared.retrieval.lexical import MAX_TERMS
from shared.retrieval.plan import EXACT_LIMIT, HNSW_LIMIT
from shared.retrieval.recall import RECALL_TARGET
from shared.retrieval.rules import check_rules_file
from shared.retrieval.shelf import DEPTH
from shared.retrieval.vectors import ELIGIBLE_LIMIT
from shared.schema import DataConfig, ServeConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "serving.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str = "") -> list[str]:
    found = re.findall(r"```([a-z]*)\n(.*?)```", TEXT, flags=re.DOTALL)
    return [block for name, block in found if name == language]


def curls() -> list[tuple[str, list[str]]]:
    """Path and words of every curl line of the page; a body may span lines."""
    starts = re.findall(r"^curl -s (?:[^'\n]|'[^']*')+", "\n".join(blocks()), flags=re.MULTILINE)
    found = []
    for line in starts:
        words = shlex.split(line)
        (url,) = (word for word in words if word.startswith("http://"))
        found.append((re.sub(r"^http://[^/]+", "", url), words))
    return found


def test_every_method_stands_on_the_page() -> None:
    for method in METHODS:
        assert re.search(rf"`(GET )?{method.path}`, {method.name}\b", TEXT), method.name


def test_every_curl_line_is_a_request_that_is_understood() -> None:
    methods = {method.path: method for method in METHODS}
    seen = set()
    for path, words in curls():
        request = methods[path].request
        seen.add(path)
        if request is ImageSearchRequest:
            (part,) = (word for word in words if word.startswith("request="))
            SearchRequest.model_validate_json(part.removeprefix("request="), strict=True)
        elif request is InfoRequest:
            assert "-d" not in words
        else:
            assert "content-type: application/json" in words
            request.model_validate_json(words[words.index("-d") + 1], strict=True)
    assert len(seen) >= len(METHODS) - 1


def test_answers_shown_are_answers() -> None:
    methods = {method.path: method for method in METHODS}
    shown = re.findall(
        r"^curl -s http://[^/]+(/v1/(?:suggest|upsert|delete|events))\b"
        r"(?:[^'\n]|'[^']*')+\n    (\{.*\})$",
        TEXT,
        flags=re.MULTILINE,
    )
    assert len(shown) == 4
    for path, answer in shown:
        methods[path].response.model_validate_json(answer)


def test_the_table_of_codes_is_the_one_in_use() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\d+)[^|]*\| ([A-Z_]+) \|", TEXT, flags=re.MULTILINE)
    assert {code: int(status) for code, status, _ in rows} == HTTP_STATUS
    assert {code: name for code, _, name in rows} == {c: s.name for c, s in STATUS.items()}


def test_every_figure_is_measured() -> None:
    rendered = Observer().render().decode()
    named = set(re.findall(r"`(fedshelf_\w+)", TEXT)) | set(re.findall(r"/ (fedshelf_\w+)", TEXT))
    assert len(named) > 10
    for name in named:
        assert re.search(
            rf"^# TYPE {name.removesuffix('_total')}\b|^# TYPE {name}\b", rendered, re.M
        )


@pytest.mark.parametrize("block", blocks("toml"))
def test_settings_are_ones(block: str, tmp_path: Path) -> None:
    values = tomllib.loads(block)
    if "serve" in values:
        ServeConfig.model_validate(values["serve"])
    elif "data" in values:
        DataConfig.model_validate(values["data"])
    else:
        path = tmp_path / "rules.toml"
        path.write_text(block, encoding="utf-8")
        assert check_rules_file(path, ["north-00130", "north-00967"]) == ([], [])


def test_numbers_are_those_of_the_code() -> None:
    served = ServeConfig()
    for number in (
        f"`max_requests`, {served.max_requests}",
        f"`max_image_bytes`, {served.max_image_bytes // 2**20} MiB",
        f"`max_image_pixels`, {served.max_image_pixels:,}",
        f"`retention_days` ({served.retention_days})",
        f"upsert {MAX_UPSERT_BYTES // 2**20} MiB, anything else {MAX_REQUEST_BYTES // 2**20} MiB",
        f"{MAX_QUERY_CHARS:,} characters; its first {MAX_TERMS} different words",
        f"| {MAX_PAGE}; {MAX_BATCH:,} |",
        f"| {MAX_ID_CHARS} characters; {MAX_VALUES}; {MAX_ATTRIBUTES} |",
        f"lives {KEPT_FOR_S / 60:g} minutes, or\n  {MAX_KEPT:,} answers",
        f"up to {DEPTH} products each",
        f"{len(WEIGHTS)} weights",
        f"below {MIN_QUERIES} queries\n   it is {DEFAULT_DENSE_WEIGHT}",
        f"up to {EXACT_LIMIT:,} products of 384 dimensions",
        f"up to {HNSW_LIMIT:,},",
        f"at most {ELIGIBLE_LIMIT:,} products",
        f"reaches {RECALL_TARGET}",
        f"more than {MIN_CHANGES:,} rows, and more than a tenth",
        f"up to {MAX_LATE:,} of them",
    ):
        assert number in TEXT, number
    assert CHANGED_SHARE == 1 / 10


def test_the_example_in_python_is_python() -> None:
    (program,) = blocks("python")
    tree = ast.parse(program)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert any(isinstance(call.func, ast.Name) and call.func.id == "search" for call in calls)
    assert json.dumps("fedshelf.v1.Retrieval") in program
