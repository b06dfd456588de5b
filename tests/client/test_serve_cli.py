"""`fedshelf region serve`, `report`, `forget` and `rules check`: what they say, and exit codes."""

import json
from pathlib import Path

import pytest
from small_world import Call
from words_shop import WordsShop, write_shop_region

from client.service.messages import Event, EventsRequest, SearchRequest

KEY = "shopper-4711"
EXPERIMENT = '[serve]\nrules = "rules.toml"\n[serve.experiment]\na = "lexical"\nb = "dense"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A region that was served for a while, with two rankers interleaved."""
    region = write_shop_region(tmp_path / "north", toml=EXPERIMENT)
    (region / "rules.toml").write_text("", encoding="utf-8")
    with WordsShop(region, 1) as opened:
        for number in range(4):
            found = opened.shop.search(
                SearchRequest(query="red hat", k=4, user_key=KEY if number < 3 else "")
            )
            click = Event(
                event_id=f"e{number}",
                request_id=found.request_id,
                product_id=found.hits[number].product_id,
                type="click",
            )
            opened.shop.log_events(EventsRequest(events=(click,)))
    return region


def test_serve_needs_a_region(tmp_path: Path, call: Call) -> None:
    answer = call("region", "serve", tmp_path / "nowhere")
    assert answer.code == 1
    assert "region.toml: not found" in answer.error


def test_serve_names_a_wrong_key(tmp_path: Path, call: Call) -> None:
    folder = write_shop_region(tmp_path / "n", toml='[serve]\nhttp = "0.0.0.0"\n')
    answer = call("region", "serve", folder / "region.toml")
    assert answer.code == 1
    assert "serve.http" in answer.error and "correct or remove this key" in answer.error


def test_report_says_how_it_is_used_and_who_wins(folder: Path, call: Call) -> None:
    said = call("region", "report", folder)
    assert said.code == 0 and said.err == ""
    assert "interleaved" in said.out and "100.0%" in said.out
    assert "lexical against dense, release 1: " in said.out
    assert "in 4 answers" in " ".join(said.out.split())
    facts = json.loads(call("region", "report", folder / "region.toml", "--json").out)
    assert facts["usage"] == [
        {
            "ranker": "interleaved:lexical|dense",
            "release": 1,
            "answers": 4,
            "clicked": 4,
            "first_position": 2.5,
        }
    ]
    assert facts["num_bots"] == 0
    [found] = facts["experiments"]
    assert (found["a"], found["b"], found["answers"]) == ("lexical", "dense", 4)
    assert found["verdict"]["wins_a"] + found["verdict"]["wins_b"] == 4
    assert found["verdict"]["ties"] == 0


def test_an_experiment_keeps_its_name_when_another_one_begins(folder: Path, call: Call) -> None:
    config = folder / "region.toml"
    config.write_text(config.read_text("utf-8").replace('"lexical"', '"hybrid"'), "utf-8")
    with WordsShop(folder, 1) as opened:
        opened.shop.search(SearchRequest(query="red hat", k=4))
    said = " ".join(call("region", "report", folder).out.split())
    assert "lexical against dense, release 1: " in said and "in 4 answers" in said
    assert "hybrid against dense, release 1: 0 to 0, 0 ties in 1 answers" in said


def test_report_before_anything_was_served(tmp_path: Path, call: Call) -> None:
    answer = call("region", "report", write_shop_region(tmp_path / "n"))
    assert answer.code == 1
    assert 'let the region serve first ("fedshelf region serve")' in answer.error


def test_forget_says_how_much_and_never_whom(folder: Path, call: Call) -> None:
    said = call("region", "forget", KEY, "--region", folder)
    assert (said.code, said.out) == (0, "erased 12 impressions and 3 events\n")
    again = call("region", "forget", KEY, "--region", folder, "--json")
    assert (again.code, json.loads(again.out)) == (0, {"impressions": 0, "events": 0})
    assert KEY not in said.out + said.err + again.out + again.err
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path.name
    assert call("region", "report", folder).out.count("interleaved") == 1  # the other one is there


def test_forget_refuses_the_empty_key(folder: Path, call: Call) -> None:
    answer = call("region", "forget", "", "--region", folder)
    assert answer.code == 1 and "name the key to forget" in answer.error


def test_rules_in_order(folder: Path, call: Call) -> None:
    said = call("region", "rules", "check", folder)
    assert (said.code, said.out) == (0, "rules.toml: in order\n")
    facts = call("region", "rules", "check", folder, "--json")
    assert json.loads(facts.out) == {"errors": [], "warnings": []}


def test_rules_of_products_that_are_not_there_are_a_warning(folder: Path, call: Call) -> None:
    (folder / "rules.toml").write_text('[[block]]\nproducts = ["never"]\n', encoding="utf-8")
    said = call("region", "rules", "check", folder)
    assert said.code == 0 and said.out.startswith("warning: ")
    facts = json.loads(call("region", "rules", "check", folder, "--json").out)
    assert facts["errors"] == [] and len(facts["warnings"]) == 1


@pytest.mark.parametrize("wrong", ["synonyms = 5", "synonyms = [", '[[pin]]\nproduct = ["a"]'])
def test_rules_that_are_wrong_are_an_error(folder: Path, call: Call, wrong: str) -> None:
    (folder / "rules.toml").write_text(wrong, encoding="utf-8")
    said = call("region", "rules", "check", folder)
    assert said.code == 1 and said.out.startswith("error: ") and "Traceback" not in said.err
    facts = json.loads(call("region", "rules", "check", folder, "--json").out)
    assert len(facts["errors"]) == 1


def test_rules_need_a_file_that_is_named(tmp_path: Path, call: Call) -> None:
    answer = call("region", "rules", "check", write_shop_region(tmp_path / "n"))
    assert answer.code == 1 and "serve.rules: not set; name a file of rules" in answer.error


def test_rules_need_a_file_that_is_there(folder: Path, call: Call) -> None:
    (folder / "rules.toml").unlink()
    said = call("region", "rules", "check", folder)
    assert said.code == 1 and "rules.toml" in said.out + said.err
