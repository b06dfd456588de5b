"""What headquarters knows, as tables and JSON: whole, damaged, offline, and with odd names."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from busy_headquarters import busy_headquarters, description, empty_headquarters
from rich.console import Console

from server import status
from server.control import NodeRecord, NodeStatus
from server.headquarters import Headquarters
from server.status import (
    draw_matrix,
    matrix_table,
    read_releases,
    read_status,
    release_table,
    status_tables,
)
from server.training import trainings
from shared.errors import FederationError, ReleaseError

SVG = "{http://www.w3.org/2000/svg}"
MATRIX: dict[str, Any] = {
    "num_queries": {"south": 40, "east": 30},
    "rows": {
        "east alone": {"east": 0.75, "south": 0.25},
        "release 0": {"east": 0.5, "south": 0.5},
        "release 10": {"east": 0.7, "south": 0.4},
        "release 2": {"east": 0.6, "south": 0.6},
    },
}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Headquarters:
    """Nobody changes it."""
    return busy_headquarters(tmp_path_factory.mktemp("busy") / "hq", tiny_base)


@pytest.fixture
def own(tmp_path: Path, tiny_base: Path) -> Headquarters:
    return busy_headquarters(tmp_path / "hq", tiny_base)


def shown(*tables: Any) -> str:
    """What a wide terminal shows."""
    console = Console(width=1000, no_color=True)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    return captured.get()


def line_of(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return line


def connected(monkeypatch: pytest.MonkeyPatch, **nodes: NodeStatus) -> None:
    """Flower's list of nodes."""
    found = [
        NodeRecord(at, name, state, "", "", 0.0, "")
        for at, (name, state) in enumerate(nodes.items())
    ]

    class Up:
        def __init__(self, home: Path) -> None:
            assert home.name == "flower"

        def list_nodes(self) -> list[NodeRecord]:
            return found

    monkeypatch.setattr(status, "Control", Up)


# -- status ----------------------------------------------------------------------------------------


def test_status_is_plain_json_with_every_region(busy: Headquarters) -> None:
    found = read_status(busy)
    assert json.loads(json.dumps(found)) == found
    assert found["name"] == "Nordwind Retail"
    assert found["release"] == 2
    states = {row["region"]: row["state"] for row in found["regions"]}
    assert states == {
        "east": "admitted",
        "harbour": "revoked",
        "islands": "invited",
        "north": "admitted",
        "south": "admitted",
        "west": "admitted",
    }
    east = found["regions"][0]
    assert (east["num_examples"], east["verdict"], east["verdict_release"]) == (
        182_344,
        "accepted",
        2,
    )
    assert east["refused"] is None
    assert found["regions"][-1]["refused"].startswith('region "west": base 91cc07aa21f0')
    islands = found["regions"][2]
    assert islands["seen"] is None  # never there
    training = found["training"]
    assert (training["number"], training["rounds_done"], training["num_rounds"]) == (4, 5, 8)
    assert (training["complete"], training["gate"], training["release"]) == (False, None, None)
    assert training["last_round"]["round"] == 5


def test_without_headquarters_up_nobody_knows_who_is_online(
    busy: Headquarters, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {row["online"] for row in read_status(busy)["regions"]} == {None}

    class Down:
        def __init__(self, home: Path) -> None:
            raise FederationError("headquarters: its SuperLink does not answer")

    monkeypatch.setattr(status, "Control", Down)
    found = read_status(busy)
    assert {row["online"] for row in found["regions"]} == {None}
    assert "│ admitted │" in line_of(shown(*status_tables(found)), "east")


def test_who_is_online_is_flowers_word(busy: Headquarters, monkeypatch: pytest.MonkeyPatch) -> None:
    connected(monkeypatch, east="online", north="offline", south="registered")
    found = read_status(busy)
    online = {row["region"]: row["online"] for row in found["regions"]}
    assert online == {
        "east": True,
        "harbour": False,
        "islands": False,
        "north": False,
        "south": False,
        "west": False,
    }
    text = shown(*status_tables(found))
    assert "admitted, online" in line_of(text, "east")
    assert "admitted, offline" in line_of(text, "north")


def test_the_table_for_people(busy: Headquarters) -> None:
    text = shown(*status_tables(read_status(busy)))
    assert "declined 2: nDCG@10 -0.031 on 173 own queries, tolerance 0.02" in line_of(text, "south")
    assert 'region "west": base 91cc07aa21f0' in line_of(text, "west")
    assert "never" in line_of(text, "islands")
    assert "release in use: 2, believed until 20" in text
    assert "server certificate until 20" in text
    assert text.endswith("training 4: 5 of 8 rounds, not complete\n")


def test_a_new_headquarters_has_nothing_yet(tmp_path: Path, tiny_base: Path) -> None:
    hq = empty_headquarters(tmp_path / "hq", tiny_base)
    found = read_status(hq)
    assert (found["regions"], found["release"], found["training"]) == ([], None, None)
    assert found["release_expires"] is None
    assert "release in use: none yet\n" in shown(*status_tables(found))
    assert read_releases(hq) == []


def test_what_a_region_said_last_counts_over_all_trainings(own: Headquarters) -> None:
    older, newer = trainings(own.trainings)[0], trainings(own.trainings)[-1]
    for training, examples in ((older, 1), (newer, 2)):
        said = {"east": {"num_examples": examples}}
        training.history.note_regions(said, [])
    older.history.note_regions({"harbour": {"num_examples": 3}}, [])
    known = {row["region"]: row["num_examples"] for row in read_status(own)["regions"]}
    assert (known["east"], known["harbour"]) == (2, 3)


@pytest.mark.parametrize("odd", ["[/] boots", "[bold red]boots[/bold red]", "[link=x]boots", "\\["])
def test_what_a_region_says_is_shown_as_it_is(odd: str, own: Headquarters) -> None:
    said = replace(description("east", 0, "declined", 2, odd), region="east")
    history = trainings(own.trainings)[-1].history
    history.note_regions({"east": vars(said)}, [{"region": "north", "reason": odd}])
    text = shown(*status_tables(read_status(own)))
    assert f"declined 2: {odd}" in line_of(text, "east")
    assert odd in line_of(text, "north")


# -- releases --------------------------------------------------------------------------------------


def test_releases_with_their_figures(busy: Headquarters) -> None:
    rows = read_releases(busy)
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["release"], row["in_use"], row["parent"]) for row in rows] == [
        (1, False, None),
        (2, True, 1),
    ]
    assert {row["damaged"] for row in rows} == {None}
    text = shown(release_table(rows))
    assert "base" in line_of(text, "1")
    assert "in use" not in line_of(text, "1")
    assert "in use" in line_of(text, "2")
    (mean,) = (
        check["mean"]
        for check in rows[1]["quality"]["gate"]["decision"]["checks"]
        if check["scope"] == "mean"
    )
    assert f"{mean:+.4f}" in line_of(text, "2")
    assert rows[1]["encoder_digest"][:12] in line_of(text, "2")


def test_a_damaged_release_says_why_and_the_others_are_shown(own: Headquarters) -> None:
    (own.releases / "1" / "README.md").write_text("better")
    first, second = read_releases(own)
    assert first.keys() == {"release", "in_use", "damaged"}
    assert "1/README.md: not the file that was signed" in first["damaged"]
    assert second["damaged"] is None
    text = shown(release_table([first, second]))
    assert line_of(text, "1").rstrip().endswith("damaged │")
    assert "not the file that was signed" in line_of(text, "1")
    assert "in use" in line_of(text, "2")


def test_a_release_in_anothers_place_is_damaged(own: Headquarters) -> None:
    (own.releases / "2").rename(own.releases / "3")
    (own.releases / "1").rename(own.releases / "2")
    assert ["holds release" in row["damaged"] for row in read_releases(own)] == [True, True]


def test_a_damaged_statement_is_one_line(own: Headquarters) -> None:
    (own.releases / "current.json").write_text("{}")
    for read in (read_status, read_releases):
        with pytest.raises(ReleaseError, match=r"current\.json: no signature"):
            read(own)  # type: ignore[operator]


# -- the cross-site table --------------------------------------------------------------------------

IN_ORDER = ["release 0", "release 2", "release 10", "east alone"]


def test_the_table_has_releases_first_and_by_number() -> None:
    text = shown(matrix_table(MATRIX))
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert [row.strip("│ ").split("  ")[0].split(" │")[0] for row in rows] == IN_ORDER
    assert "east (30)" in text
    assert text.index("east (30)") < text.index("south (40)")
    assert "0.7000" in line_of(text, "release 10")
    assert "0.4000" in line_of(text, "release 10")


def texts(svg: str) -> list[str]:
    return [str(node.text) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_heat_map_is_well_formed_and_says_what_the_table_says() -> None:
    svg = draw_matrix(MATRIX)
    said = texts(svg)
    assert said[:2] == ["east", "south"]
    assert [text for text in said if text in IN_ORDER] == IN_ORDER
    numbers = [text for text in said if text.startswith("0.")]
    assert numbers[:2] == ["0.500", "0.500"]
    assert numbers[-2:] == ["0.750", "0.250"]
    cells = [node for node in ElementTree.fromstring(svg).iter(f"{SVG}rect")][1:]
    assert len(cells) == 2 * 4


def test_each_column_has_its_own_scale() -> None:
    cells = [node for node in ElementTree.fromstring(draw_matrix(MATRIX)).iter(f"{SVG}rect")][1:]
    east, south = cells[0::2], cells[1::2]
    darkest, palest = "hsl(205, 70%, 56%)", "hsl(205, 70%, 96%)"
    assert [cell.get("fill") for cell in east].index(darkest) == 3  # east alone
    assert [cell.get("fill") for cell in east].index(palest) == 0  # release 0
    assert [cell.get("fill") for cell in south].index(darkest) == 1  # release 2
    assert [cell.get("fill") for cell in south].index(palest) == 3  # east alone


def test_where_all_are_alike_all_have_one_shade() -> None:
    rows = {"release 0": {"east": 0.5}, "release 1": {"east": 0.5}}
    svg = draw_matrix({"num_queries": {"east": 4}, "rows": rows})
    cells = [node.get("fill") for node in ElementTree.fromstring(svg).iter(f"{SVG}rect")][1:]
    assert cells == ["hsl(205, 70%, 76%)"] * 2


def test_odd_names_are_escaped() -> None:
    odd = "<script>\"&'</script>"
    rows = {f"{odd} alone": {odd: 0.5}}
    assert texts(draw_matrix({"num_queries": {odd: 4}, "rows": rows})) == [
        odd,
        f"{odd} alone",
        "0.500",
    ]


def test_an_empty_table_can_be_shown_too() -> None:
    assert texts(draw_matrix({})) == []
    assert "adapter" in shown(matrix_table({}))
