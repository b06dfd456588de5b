"""The dashboard reads everything, changes nothing, and answers nobody it should not."""

import asyncio
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from busy_headquarters import (
    START,
    busy_headquarters,
    differences,
    empty_headquarters,
    judge,
    record,
    train,
)
from fastapi import FastAPI

import server.dashboard_page
from server.dashboard import _Latest, make_app, serve_dashboard
from server.dashboard_facts import SHOWN_ENTRIES, snapshot
from server.dashboard_page import REFRESH_S, Scale, render_page
from server.headquarters import Headquarters, rotate_signing_key
from server.releases import publish_release
from server.training import abandon, start_training, trainings
from shared.audit import AuditLog
from shared.errors import ConfigError

NASTY = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def _busy(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Headquarters:
    return busy_headquarters(tmp_path_factory.mktemp("busy") / "hq", tiny_base)


@pytest.fixture
def busy(_busy: Headquarters) -> Headquarters:
    """To look at; nobody changes it."""
    return _busy


@pytest.fixture
def own(_busy: Headquarters, tmp_path: Path) -> Headquarters:
    """A copy to change."""
    shutil.copytree(_busy.folder, tmp_path / "hq")
    return Headquarters(tmp_path / "hq", _busy.config, _busy.fingerprint, _busy.release_key)


@pytest.fixture
def empty(tmp_path: Path, tiny_base: Path) -> Headquarters:
    return empty_headquarters(tmp_path / "hq", tiny_base)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


def ask(
    app: FastAPI, path: str, *, host: str | None = "localhost:8060", how: str = "GET"
) -> Answer:
    """One HTTP request, straight into the app."""
    sent: list[dict[str, Any]] = []
    headers = [] if host is None else [(b"host", host.encode())]
    scope = {"type": "http", "http_version": "1.1", "method": how, "path": path, "headers": headers}
    scope |= {"query_string": b"", "scheme": "http", "server": ("127.0.0.1", 8060)}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], names, b"".join(one["body"] for one in sent[1:]).decode())


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def row_of(rows: Sequence[dict[str, Any]], key: str, value: object) -> dict[str, Any]:
    (found,) = [row for row in rows if row[key] == value]
    return found


def page(hq: Headquarters) -> str:
    return render_page(snapshot(hq))


# -- what is read ----------------------------------------------------------------------------------


def test_a_snapshot_is_json_and_reading_changes_nothing(busy: Headquarters) -> None:
    before = files(busy.folder)
    found = snapshot(busy)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["problems"] == []
    assert files(busy.folder) == before


def test_a_region_is_shown_as_it_last_described_itself(busy: Headquarters) -> None:
    rows = snapshot(busy)["regions"]
    east = row_of(rows, "region", "east")
    assert (east["state"], east["num_products"], east["device"]) == ("admitted", 48_210, "cuda")
    assert (east["verdict"], east["verdict_release"], east["refused"]) == ("accepted", 2, None)
    assert row_of(rows, "region", "islands")["state"] == "invited"
    assert row_of(rows, "region", "harbour")["state"] == "revoked"
    assert row_of(rows, "region", "islands")["seen"] is None


def test_a_refusal_leaves_what_the_region_said_before(own: Headquarters) -> None:
    abandon(trainings(own.trainings)[-1], "given up")
    newer = train(own, rounds=2, done=0, parent=2, gain=0.0)
    newer.history.note_regions({}, [{"region": "east", "reason": "another base"}])
    east = row_of(snapshot(own)["regions"], "region", "east")
    assert (east["refused"], east["num_products"]) == ("another base", 48_210)


def test_a_node_that_is_no_region_is_shown_as_that(own: Headquarters) -> None:
    history = trainings(own.trainings)[-1].history
    history.note_regions({}, [{"region": "node 77", "reason": "no reply"}])
    assert row_of(snapshot(own)["regions"], "region", "node 77")["state"] == "unknown"
    assert "not enrolled" in page(own)


def test_an_invitation_that_is_over_says_so(busy: Headquarters) -> None:
    late = datetime.now(UTC) + timedelta(days=8)
    rows = snapshot(busy, now=late)["regions"]
    assert row_of(rows, "region", "islands")["state"] == "expired"


def test_neither_tokens_nor_keys_of_regions_are_told(busy: Headquarters) -> None:
    told = json.dumps(snapshot(busy)) + page(busy)
    known = json.loads(busy.regions.read_bytes())["regions"].values()
    secrets = [one[key] for one in known for key in ("token_sha256", "public_key") if one[key]]
    assert len(secrets) == len(START) + 2
    assert not [secret for secret in secrets if secret in told]


def test_the_latest_training_with_its_curves_and_best_round(busy: Headquarters) -> None:
    training = snapshot(busy)["training"]
    expected = [record(number, 0.04) for number in range(6)]
    assert training["number"] == 4
    assert training["curves"]["west"][3] is None
    assert training["curves"]["east"] == [one.validation["east"]["ndcg@10"] for one in expected]
    means = [one.mean("ndcg@10") for one in expected]
    assert [one["mean"] for one in training["rounds"]] == means
    assert training["best_round"] == means.index(max(means))
    assert training["rounds"][3]["rejected"] == [
        {"region": "west", "reason": "no reply within 3600 s"}
    ]


def test_the_gate_shown_is_the_last_that_decided(busy: Headquarters) -> None:
    gate = snapshot(busy)["gate"]
    assert (gate["training"], gate["accepted"], gate["tolerance"]) == (3, False, 0.02)
    failed = {(c["reference"], c["scope"]) for c in gate["checks"] if c["counted"] > c["passed"]}
    assert failed == {(2, "mean"), (2, "south")}
    assert "declined" in page(busy)


def test_releases_newest_first_with_what_the_gate_measured(busy: Headquarters) -> None:
    releases = snapshot(busy)["releases"]
    assert [row["number"] for row in releases["rows"]] == [2, 1]
    assert [row["in_use"] for row in releases["rows"]] == [True, False]
    assert releases["current"]["sequence"] == 2
    second = releases["rows"][0]
    assert (second["parent"], second["encoder_digest"]) == (1, "02" * 32)
    assert [check["reference"] for check in second["gate"]] == [1]
    assert not releases["current"]["expired"]


def test_a_statement_that_expired_is_marked(busy: Headquarters) -> None:
    late = snapshot(busy, now=datetime.now(UTC) + timedelta(days=91))
    assert late["releases"]["current"]["expired"]
    assert "fedshelf server promote 2" in render_page(late)


def test_a_damaged_release_shows_its_reason_and_the_rest_stays(own: Headquarters) -> None:
    (own.releases / "1" / "fusion.safetensors").write_bytes(b"other bytes")
    rows = snapshot(own)["releases"]["rows"]
    assert "fusion.safetensors: not the file that was signed" in rows[1]["damaged"]
    assert rows[0]["damaged"] is None
    assert "not the file that was signed" in page(own)


def test_the_cross_site_table_is_the_newest_that_is_done(own: Headquarters) -> None:
    assert snapshot(own)["matrix"]["rows"]["release 2"]["east"] == pytest.approx(0.595)
    pending(own)
    found = snapshot(own)
    assert found["matrix"]["number"] == 1
    assert found["state"]["kind"] == "matrix"


def pending(hq: Headquarters) -> None:
    """A cross-site table that has only begun, after everything else that happened."""
    made = start_training(
        hq.matrices,
        initial={"a": torch.zeros(1)},
        base_fingerprint=hq.fingerprint,
        references={},
        parent=None,
        run_config={"task": "matrix"},
    )
    later = datetime.now(UTC).timestamp() + 60
    os.utime(made.folder, (later, later))


def test_the_audit_log_is_shown_newest_first_and_only_its_end(own: Headquarters) -> None:
    log = AuditLog(own.audit)
    for number in range(SHOWN_ENTRIES):
        log.append("training.started", training=number)
    audit = snapshot(own)["audit"]
    seqs = [entry["seq"] for entry in audit["entries"]]
    assert seqs == list(range(audit["num_entries"], audit["num_entries"] - SHOWN_ENTRIES, -1))
    assert audit["head"] == f"{seqs[0]}:{audit['entries'][0]['hash']}"


def test_digests_are_cut_short_wherever_they_stand(own: Headquarters) -> None:
    received = {"train": {"north": "3f" * 32}}
    AuditLog(own.audit).append("round.completed", adapter="ab" * 32, received=received)
    text = page(own)
    assert "<span>adapter</span> abababababab</span>" in text
    assert "{&#34;train&#34;: {&#34;north&#34;: &#34;3f3f3f3f3f3f&#34;}}" in text


@pytest.mark.parametrize("deed", ["changed", "removed"])
def test_an_audit_log_that_was_tampered_with_is_broken(own: Headquarters, deed: str) -> None:
    if deed == "changed":
        own.audit.write_bytes(own.audit.read_bytes().replace(b"harbour", b"harbor"))
    else:
        own.audit.unlink()
    audit = snapshot(own)["audit"]
    assert audit["entries"] == []
    assert {"changed": "was changed", "removed": "not found"}[deed] in audit["broken"]
    assert "The chain is broken." in page(own)


# -- what headquarters is at -----------------------------------------------------------------------


def test_idle_before_anything(empty: Headquarters) -> None:
    assert snapshot(empty)["state"] == {"kind": "idle"}


@pytest.mark.parametrize(
    ("done", "kind", "at"), [(0, "training", 1), (2, "training", 3), (3, "gate", 4)]
)
def test_the_round_under_way_is_the_one_after_the_last(
    empty: Headquarters, done: int, kind: str, at: int
) -> None:
    train(empty, rounds=3, done=done, parent=None, gain=0.1)
    state = snapshot(empty)["state"]
    assert (state["kind"], state["round"], state["quiet"]) == (kind, at, False)


def test_what_the_gate_accepted_waits_for_its_release(empty: Headquarters) -> None:
    training = train(empty, rounds=2, parent=None, gain=0.1)
    judge(training, {0: differences(0.07)})
    found = snapshot(empty)
    assert found["state"]["kind"] == "release"
    assert "not released yet" in render_page(found)
    training.released(1)
    assert snapshot(empty)["state"] == {"kind": "idle"}


def test_a_training_that_was_given_up_is_over(empty: Headquarters) -> None:
    abandon(train(empty, rounds=3, done=1, parent=None, gain=0.1), "given up by headquarters")
    found = snapshot(empty)
    assert found["state"] == {"kind": "idle"}
    assert "given up by headquarters" in render_page(found)


def test_a_training_without_news_says_what_to_do(busy: Headquarters) -> None:
    found = snapshot(busy, now=datetime.now(UTC) + timedelta(minutes=16))
    assert found["state"]["quiet"]
    assert "fedshelf server train --resume" in render_page(found)


# -- what is damaged -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("regions.json", "{"),
        ("trainings/0004/config.json", "[]"),
        ("trainings/0004/config.json", '{"parent": null, "run_config": {"num-rounds": "x"}}'),
        ("trainings/0004/headquarters/history.json", '[{"round": "one"}]'),
        ("trainings/0004/headquarters/history.json", "{"),
        ("trainings/0004/headquarters/regions.json", '{"east": {"num_products": "many"}}'),
        ("trainings/0003/headquarters/gate.json", "{}"),
        ("trainings/0003/headquarters/gate.json", '{"round": 1, "decision": []}'),
        ("trainings/0002/release.json", "{}"),
        ("matrices/0001/headquarters/matrix.json", '{"rows": 5}'),
        ("public/releases/current.json", "{}"),
    ],
)
def test_a_damaged_file_is_one_line_and_the_rest_stays(
    own: Headquarters, name: str, content: str
) -> None:
    (own.folder / name).write_text(content)
    found = snapshot(own)
    assert [Path(name).name in line for line in found["problems"]] == [True]
    assert "\n" not in found["problems"][0]
    assert found["audit"]["num_entries"] > 0
    assert "What cannot be read:" in render_page(found)


def test_a_figure_that_is_not_finite_is_unknown(own: Headquarters) -> None:
    path = own.folder / "trainings/0004/headquarters/history.json"
    path.write_text(path.read_text().replace('"loss": 1.', '"loss": NaN, "seconds": 1.', 1))
    found = snapshot(own)
    assert [one["loss"] for one in found["training"]["rounds"]].count(None) == 2
    json.dumps(found, allow_nan=False)
    render_page(found)


# -- the page --------------------------------------------------------------------------------------


def test_an_empty_headquarters_says_what_to_do_next(empty: Headquarters) -> None:
    text = page(empty)
    for command in ("invite REGION", "train", "train --promote", "matrix"):
        assert f"<code>fedshelf server {command}</code>" in text


def test_other_peoples_text_is_escaped(own: Headquarters) -> None:
    history = trainings(own.trainings)[-1].history
    history.note_regions({NASTY: {"verdict": NASTY, "device": NASTY}}, [])
    history.note_regions({}, [{"region": NASTY, "reason": NASTY}])
    extra = record(6, 0.04)
    extra.cohort.append(NASTY)
    extra.validation[NASTY] = {"ndcg@10": 0.5}
    extra.rejected.append({"region": NASTY, "reason": NASTY})
    history.append(extra, {})
    AuditLog(own.audit).append("region.invited", region=NASTY)
    text = page(own)
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") >= 8


def test_nothing_on_the_page_is_elsewhere_or_inline(busy: Headquarters) -> None:
    text = page(busy)
    assert "http://www.w3.org" in text  # the icon's namespace, in a data URL
    assert text.count("http") == 1 + text.count("http-equiv")
    for inline in (" style=", "<style", " onclick=", "javascript:"):
        assert inline not in text


def test_a_page_to_keep_asks_nobody_for_anything(busy: Headquarters) -> None:
    text = render_page(snapshot(busy), alone=True)
    style = (
        Path(server.dashboard_page.__file__).parent / "templates" / "dashboard.css"
    ).read_text()
    assert f"<style>{style}</style>" in text
    rest = text.replace(style, "")
    assert "<script" not in rest and "dashboard.css" not in rest and "http-equiv" not in rest


@pytest.mark.parametrize("number", [1, 7, 8, 30])
def test_any_number_of_regions_can_be_drawn(empty: Headquarters, number: int) -> None:
    training = train(empty, rounds=1, done=0, parent=None, gain=0.0)
    extra = record(1, 0.0)
    extra.cohort[:] = [f"region-{place:02d}" for place in range(number)]
    extra.validation = {name: {"ndcg@10": 0.5} for name in extra.cohort}
    training.history.append(extra, {})
    assert page(empty).count('<li><i class="c') == number + len(START)


def test_a_scale_goes_from_start_to_end() -> None:
    scale = Scale(0.25, 0.75, 100.0, 0.0)
    assert [scale.at(value) for value in (0.25, 0.5, 0.75)] == [100.0, 50.0, 0.0]
    assert Scale(3.0, 3.0, 0.0, 10.0).at(3.0) == 5.0


# -- serving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/api/snapshot", "/healthz", "/dashboard.css", "/dashboard.js"]
)
def test_every_page_is_guarded_by_headers(busy: Headquarters, path: str) -> None:
    answer = ask(make_app(busy.folder), path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_snapshot_is_served_as_json(busy: Headquarters) -> None:
    answer = ask(make_app(busy.folder), "/api/snapshot")
    assert json.loads(answer.body)["name"] == "Nordwind Retail"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8060", "[::1]:8060"])
def test_loopback_names_are_answered(busy: Headquarters, host: str) -> None:
    assert ask(make_app(busy.folder), "/healthz", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "localhost.evil.example:8060",
        "127.0.0.1@evil",
        "10.0.0.1",
        "[::2]",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/snapshot", "/healthz"])
def test_another_name_is_refused(busy: Headquarters, host: str | None, path: str) -> None:
    answer = ask(make_app(busy.folder), path, host=host)
    assert answer.status == 421
    assert "Nordwind" not in answer.body
    assert answer.headers["x-frame-options"] == "DENY"


def test_a_name_that_was_allowed_is_answered(busy: Headquarters) -> None:
    app = make_app(busy.folder, names=["Shelf.example"])
    assert ask(app, "/", host="shelf.example:443").status == 200


@pytest.mark.parametrize("how", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/api/snapshot"])
def test_nothing_can_be_changed(busy: Headquarters, how: str, path: str) -> None:
    assert ask(make_app(busy.folder), path, how=how).status == 405


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/../server.toml", "/x"])
def test_nothing_else_is_served(busy: Headquarters, path: str) -> None:
    answer = ask(make_app(busy.folder), path)
    assert answer.status == 404
    assert "content-security-policy" in answer.headers


def test_a_headquarters_that_went_away_is_one_line(own: Headquarters) -> None:
    app = make_app(own.folder)
    own.regions.unlink()
    answer = ask(app, "/")
    assert (answer.status, answer.body.count("\n")) == (503, 1)
    assert "regions.json: missing" in answer.body


def test_a_rotated_key_counts_without_a_restart(own: Headquarters) -> None:
    app = make_app(own.folder)
    public = rotate_signing_key(own.folder)
    assert json.loads(ask(app, "/api/snapshot").body)["release_key"] == public


def test_many_readers_share_one_reading_for_a_while(own: Headquarters) -> None:
    now = [0.0]
    latest = _Latest(own.folder, clock=lambda: now[0])
    first = latest.read()
    publish_release(own.releases, 1, signing_key=own.signing_key)
    now[0] = REFRESH_S / 2 - 0.1
    assert latest.read() is first
    now[0] = REFRESH_S / 2
    assert latest.read()["releases"]["current"]["release"] == 1


def test_a_slow_reading_is_kept_ten_times_as_long(busy: Headquarters) -> None:
    moments = iter([0.0, 4.0, 43.9, 44.0, 44.0])
    latest = _Latest(busy.folder, clock=lambda: next(moments))
    first = latest.read()
    assert latest.read() is first
    assert latest.read() is not first


def test_a_folder_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no server\.toml"):
        make_app(tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "hq.example"])
def test_an_address_that_others_reach_is_refused(busy: Headquarters, host: str) -> None:
    with pytest.raises(ConfigError, match=r"no login; listen on 127\.0\.0\.1.*proxy.*tunnel"):
        serve_dashboard(busy.folder, host=host, port=0, on_ready=pytest.fail)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield int(held.getsockname()[1])


def test_a_port_that_is_taken_is_one_line(busy: Headquarters, taken: int) -> None:
    with pytest.raises(ConfigError, match=f"127.0.0.1:{taken}: cannot listen.*another port"):
        serve_dashboard(busy.folder, port=taken, on_ready=pytest.fail)
