"""`fedshelf region serve` as the process it is: asked over both wires, killed, moved, stopped.

Everything goes over sockets to a process of its own with the tiny encoder. Load is bounded, and
what is measured in time is printed, never judged.
"""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import schemathesis
import torch
from any_bytes import answers_to_any_bytes
from browsing import Visit, chromium
from deployment import free_ports, processes_of, wait_until
from described import hold
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image
from playwright.sync_api import expect
from small_world import federation, prepare_run, write_fashion

from client.region import open_region, read_clicks
from client.rpc import forward
from client.service.asked import METHODS
from client.service.events import read_tables
from client.service.rpc_api import SERVICE, STATUS
from server.releases import publish_release, write_release
from shared import wire
from shared.encoders.encoder import load_encoder
from shared.records import encode_adapter
from shared.release import ReleaseBase, ReleaseFacts
from shared.schema import RegionConfig, load_region_config
from simulations.regions import write_region_toml

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PLACES = 4  # requests at work and waiting
QUERIES = ("red shirts", "blue heels", "women watches", "acme caps", "jeans")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Regions, base and signing key; nobody changes it."""
    run = tmp_path_factory.mktemp("serve") / "run"
    prepare_run(run, write_fashion(run.parent / "fashion"))
    return run


class Serving:
    """One region, and the process that serves it."""

    def __init__(self, run: Path, command: str = "serve", **serve: Any) -> None:
        self.run, self.command = run, command
        self.folder = run / "regions" / "north"
        http, rpc = free_ports(2)
        self.http, self.grpc = f"http://127.0.0.1:{http}", f"127.0.0.1:{rpc}"
        addresses = {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{rpc}"}
        self.configure(serve={**addresses, "max_requests": PLACES, **serve})
        self.log = run / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, **sections: dict[str, Any]) -> None:
        values = load_region_config(self.folder).model_dump(mode="json", exclude_none=True)
        # Whatever a few gate clicks say, a release is taken into use, and soon.
        values["publication"] |= {"poll_s": 0.2, "tolerance": 5.0}
        values["worker"] |= {"threads": 1}
        for name, changes in sections.items():
            values[name] = {**values.get(name, {}), **changes}
        write_region_toml(self.folder, RegionConfig.model_validate(values))

    def __enter__(self) -> "Serving":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "fedshelf", "region", self.command, str(self.folder)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        wait_until("the service is ready", self._ready)

    def _ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.said
        try:
            return httpx.get(f"{self.http}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def post(self, name: str, content: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.http}/v1/{name}", json=content, timeout=60, **options)

    def ask(self, name: str, **content: Any) -> Any:
        """Ask over HTTP; a refusal for want of a place is asked again, as its header says."""
        while True:
            response = self.post(name, content)
            if response.status_code != 429:
                assert response.status_code == 200, response.text
                return response.json()
            time.sleep(0.02)

    def find(self, query: str, **options: Any) -> list[str]:
        return [hit["product_id"] for hit in self.ask("search", query=query, **options)["hits"]]


@pytest.fixture
def place(prepared: Path) -> Iterator[Path]:
    """A copy of the run with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        yield shutil.copytree(prepared, Path(name) / "run")


@pytest.fixture(scope="module")
def served(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One process for the tests that only ask."""
    run = shutil.copytree(prepared, tmp_path_factory.mktemp("served") / "run")
    with Serving(run) as serving:
        yield serving


def photo(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 32), colour).save(file, "JPEG")
    return file.getvalue()


# -- asking ----------------------------------------------------------------------------------------


def test_it_answers_over_http(served: Serving) -> None:
    found = served.ask("search", query="acme shirts", facets=True, explain=True, k=5)
    assert found["release"] == 0 and len(found["hits"]) == 5 and found["facets"]
    assert all("Acme" in hit["title"] or "Shirts" in hit["title"] for hit in found["hits"][:3])
    first = found["hits"][0]
    picture = httpx.get(f"{served.http}{first['image']}")
    assert picture.status_code == 200 and picture.headers["content-type"] == "image/jpeg"
    files = {"image": ("photo.jpg", photo((200, 30, 30)), "image/jpeg")}
    parts = {"request": json.dumps({"query": "shirts"})}
    by_photo = httpx.post(f"{served.http}/v1/search-by-image", files=files, data=parts)
    assert by_photo.status_code == 200 and by_photo.json()["hits"]
    similar = served.ask("similar", product_id=first["product_id"])
    assert first["product_id"] not in [hit["product_id"] for hit in similar["hits"]]
    assert served.ask("for-you", recent=[first["product_id"]])["hits"]
    assert served.ask("suggest", prefix="ac")["suggestions"]
    assert httpx.get(f"{served.http}/v1/info").json()["releases"] == [0]
    assert httpx.get(f"{served.http}/").status_code == 200
    figures = httpx.get(f"{served.http}/metrics").text
    assert 'method="Search",wire="http"' in figures


def test_it_answers_over_grpc_to_a_stranger(served: Serving) -> None:
    """By what reflection says alone."""
    with grpc.insecure_channel(served.grpc) as channel:
        described = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service: Any = described.FindServiceByName(SERVICE)

        def call(name: str, **fields: Any) -> Any:
            method = service.methods_by_name[name]
            send = channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            return send(GetMessageClass(method.input_type)(**fields), timeout=60)

        found = call("Search", query="acme shirts", k=5)
        assert [hit.product_id for hit in found.hits] == served.find("acme shirts", k=5)
        assert call("SearchByImage", image=photo((200, 30, 30)), k=3).hits
        assert call("Info").num_products == served_products(served)
        with pytest.raises(grpc.RpcError) as failed:
            call("Similar", product_id="nobody")
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def served_products(serving: Serving) -> int:
    return int(httpx.get(f"{serving.http}/v1/info").json()["num_products"])


def test_above_capacity_some_are_refused_and_none_fails(served: Serving) -> None:
    def ask(number: int) -> int:
        response = served.post("search", {"query": f"{QUERIES[number % 5]} {number}"})
        if response.status_code == 429:
            assert response.headers["retry-after"]
        return response.status_code

    with ThreadPoolExecutor(6 * PLACES) as pool:
        codes = list(pool.map(ask, range(40 * PLACES)))
    assert set(codes) == {200, 429}


def test_no_request_of_whatever_form_is_our_fault(served: Serving) -> None:
    schema = schemathesis.openapi.from_url(f"{served.http}/openapi.json")
    for path in [*(method.path for method in METHODS), "/readyz"]:
        [operation] = schema[path].values()
        hold(operation, ["not_a_server_error"], max_examples=15)
    assert httpx.get(f"{served.http}/readyz").status_code == 200
    assert "Traceback" not in served.said


def test_no_bytes_over_grpc_are_our_fault(served: Serving) -> None:
    with grpc.insecure_channel(served.grpc) as channel:

        def send(name: str, raw: bytes) -> object:
            return channel.unary_unary(f"/{SERVICE}/{name}")(raw, timeout=60)

        answers = answers_to_any_bytes(send, max_examples=300)
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= answers.keys()
    assert answers.keys() <= {grpc.StatusCode.OK, *STATUS.values()}
    assert httpx.get(f"{served.http}/readyz").status_code == 200
    assert "Traceback" not in served.said


# -- the page --------------------------------------------------------------------------------------


browser = pytest.fixture(scope="module")(chromium)


def shown(page: Any) -> list[str]:
    """Ids of the products on the page, once those asked for last are there."""
    page.locator("#products[aria-busy=false]").wait_for()
    ids = page.locator(".card").evaluate_all("all => all.map(one => one.dataset.product)")
    return [str(one) for one in ids]


def test_the_page_shows_what_the_service_answers(place: Path, browser: Any) -> None:
    digests = {1: release(place, 1)}
    with Serving(place, max_requests=64) as serving:
        wait_until("release 1", lambda: serving.ask("search")["release"] == 1)
        digests[2] = release(place, 2)
        wait_until("release 2", lambda: serving.ask("search")["release"] == 2)
        visit = Visit(browser, f"{serving.http}/")
        page, query = visit.page, "acme shirts"
        assert shown(page)

        page.locator("#query").fill(query)
        page.locator("#query").press("Enter")
        expect(page.get_by_role("heading", level=1)).to_contain_text(query)
        answer = serving.ask("search", query=query, k=24, facets=True)
        assert shown(page) == [hit["product_id"] for hit in answer["hits"]]
        expect(page.locator(".card .open").first).to_have_text(answer["hits"][0]["title"])

        badge = page.locator("#badge").locator("span, code")
        expect(badge).to_have_text(["north", "Release 2", digests[2][:12]])
        expect(page.locator("#digest code")).to_have_text(digests[2])

        facet = next(one for one in answer["facets"] if one["name"] == "category")
        chosen = facet["values"][0]
        page.get_by_role("checkbox", name=chosen["value"]).first.check()
        page.locator("#chips button").wait_for()
        expect(page.locator("#total")).to_contain_text(str(chosen["count"]))
        within = {"filters": {facet["name"]: [chosen["value"]]}}
        assert shown(page) == serving.find(query, k=24, **within)

        first = shown(page)[0]
        page.locator(".card .open").first.click()
        similar = serving.ask("similar", product_id=first, k=8)["hits"]
        tiles = page.locator(".detail .tile")
        expect(tiles).to_contain_text([hit["title"] for hit in similar])
        page.keyboard.press("Escape")

        page.get_by_role("button", name="Compare").click()
        page.locator(".ranking").nth(1).wait_for()
        page.get_by_label("Ranker").nth(1).select_option("lexical")
        expect(page.get_by_label("Ranker").nth(1)).to_have_value("lexical")
        page.locator("#products[aria-busy=false]").wait_for()
        for name, number, ranker in (("Left", 2, "hybrid"), ("Right", 1, "lexical")):
            rows = page.get_by_role("region", name=name).locator(".ranking li")
            ids = rows.evaluate_all("all => all.map(one => one.dataset.product)")
            assert ids == serving.find(query, k=20, release=number, ranker=ranker, **within)
        assert visit.wrong() == []
        assert "Traceback" not in serving.said


# -- kill ------------------------------------------------------------------------------------------


def test_what_was_acknowledged_outlives_kill_minus_9(place: Path) -> None:
    upserted, deleted, gone = set[str](), set[str](), set[str]()
    clicked, clicked_in = set[str](), set[str]()
    with Serving(place) as serving:
        alive = threading.Event()
        alive.set()

        def until_killed(step: Callable[[int], None]) -> None:
            number = 0
            with suppress(httpx.TransportError):  # the kill
                while alive.is_set():
                    step(number)
                    number += 1

        def change(number: int) -> None:
            names = [f"live-{number}-{each}" for each in range(3)]
            rows = [{"product_id": one, "title": f"live tent {one}"} for one in names]
            serving.ask("upsert", products=rows)
            upserted.update(names)
            deleted.add(names[0])  # from here on it may be gone
            serving.ask("delete", product_ids=names[:1])
            gone.add(names[0])

        def click(number: int) -> None:
            found = serving.ask("search", query=QUERIES[number % 5], k=3, user_key=f"u{number}")
            hit = found["hits"][number % 3]["product_id"]
            event = {"event_id": f"click-{number}", "request_id": found["request_id"]}
            answer = serving.ask("events", events=[{**event, "product_id": hit, "type": "click"}])
            assert answer == {"accepted": 1, "repeated": 0, "unknown": 0}
            clicked.add(event["event_id"])
            clicked_in.add(found["request_id"])

        with ThreadPoolExecutor(3) as pool:
            threads = [pool.submit(until_killed, step) for step in (change, click)]
            wait_until("some of each", lambda: len(gone) >= 5 and len(clicked) >= 20)
            serving.kill()
            alive.clear()
            for thread in threads:
                thread.result()
        serving.start()
        for one in sorted(upserted - deleted):
            assert serving.find(one, k=1) == [one], one
        for one in sorted(gone):
            every = serving.find(f"live tent {one}", k=100)
            assert one not in every
        # Sent again, as a sender does that heard nothing: none counts twice.
        again = [
            {"event_id": one, "request_id": "r", "product_id": "p", "type": "click"}
            for one in sorted(clicked)
        ]
        answer = serving.ask("events", events=again)
        assert (answer["accepted"], answer["repeated"]) == (0, len(clicked))
    tables = read_tables(serving.folder / "state" / "events.sqlite")
    once = tables.events["request_id"].value_counts().filter(count=1)["request_id"].to_list()
    assert clicked_in <= set(once)
    assert clicked_in <= set(tables.requests["request_id"])


# -- releases --------------------------------------------------------------------------------------


def release(run: Path, seed: int) -> str:
    """Write and publish another release, whose adapter is far from any other; its digest."""
    encoder = load_encoder(run / "base", device="cpu")
    encoder.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in encoder.adapter().items()
    }
    encoder.load_adapter(moved)
    key, registry = run / "headquarters" / "signing.key", run / "headquarters" / "releases"
    with tempfile.TemporaryDirectory() as files:
        encoder.save_release_files(Path(files))
        facts = ReleaseFacts(
            base=ReleaseBase(fingerprint=encoder.base.fingerprint, ids={"text": "tiny"}),
            dims={"vector": encoder.dim},
            encoder_digest=encoder.digest,
            rounds=1,
            strategy="fedavg",
        )
        number = write_release(registry, files=Path(files), facts=facts, signing_key=key)
    publish_release(registry, number, signing_key=key)
    return encoder.digest


def test_a_release_comes_into_use_under_load(place: Path) -> None:
    digests = {1: release(place, 1)}
    answers: list[tuple[str, Any]] = []
    with Serving(place, max_requests=64) as serving, ThreadPoolExecutor(4) as pool:
        wait_until("release 1", lambda: serving.ask("search")["release"] == 1)
        done = threading.Event()

        def search(seed: int) -> None:
            rng = np.random.default_rng(seed)
            with httpx.Client(base_url=serving.http, timeout=60) as client:
                while not done.is_set():
                    query = QUERIES[rng.integers(len(QUERIES))]
                    asked = {"query": query, "ranker": "dense", "k": 20}
                    response = client.post("/v1/search", json=asked)
                    assert response.status_code == 200, response.text
                    answers.append((query, response.json()))

        searchers = [pool.submit(search, seed) for seed in range(3)]
        for number in (2, 3):
            digests[number] = release(place, number)
            wait_until(
                f"release {number}",
                lambda: serving.ask("search")["release"] == number,  # noqa: B023
            )
            so_far = len(answers)
            wait_until("some answers", lambda: len(answers) > so_far + 20)  # noqa: B023
        named = {
            (query, number): serving.find(query, ranker="dense", k=20, release=number)
            for query in QUERIES
            for number in (2, 3)
        }
        done.set()
        for searcher in searchers:
            searcher.result()
    assert {answer["release"] for _, answer in answers} == {1, 2, 3}
    lists: dict[tuple[str, int], list[str]] = dict(named)
    for query, answer in answers:
        number = answer["release"]
        assert answer["encoder_digest"] == digests[number]
        ids = [hit["product_id"] for hit in answer["hits"]]
        assert lists.setdefault((query, number), ids) == ids
    assert any(lists[query, 2] != lists[query, 3] for query in QUERIES)


def test_a_broken_export_does_not_end_the_service(place: Path) -> None:
    with Serving(place) as serving:
        catalog = serving.folder / "catalog.parquet"
        sound, there = catalog.read_bytes(), served_products(serving)
        catalog.write_bytes(b"half an export")
        wait_until("it says so", lambda: "catalog.parquet: cannot be read" in serving.said)
        assert serving.find("acme shirts")
        serving.ask("delete", product_ids=serving.find("acme shirts", k=1))
        before = serving.said.count("the index in use answers")
        catalog.write_bytes(sound)
        wait_until("it goes on", lambda: serving.said.count("index in use answers") > before)
        assert served_products(serving) == there - 1


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_answers_what_is_at_work_and_leaves_nothing(
    place: Path, sent: signal.Signals
) -> None:
    rows = [{"product_id": f"n{n}", "title": f"tent {n} " * 20} for n in range(200)]
    with Serving(place) as serving, ThreadPoolExecutor(1) as pool:
        at_work = pool.submit(serving.post, "upsert", {"products": rows})
        wait_until("it is at work", lambda: in_flight(serving) >= 1 or at_work.done())
        assert serving.process is not None
        serving.process.send_signal(sent)
        assert at_work.result().status_code == 200
        assert serving.process.wait(timeout=60) == 0
        assert processes_of(serving.folder) == []
        for address in (serving.http.removeprefix("http://"), serving.grpc):
            host, _, port = address.rpartition(":")
            with socket.create_server((host, int(port))):
                pass  # free again
        assert "Traceback" not in serving.said
        serving.start()
        assert serving.find("n199", k=1) == ["n199"]


def in_flight(serving: Serving) -> float:
    lines = httpx.get(f"{serving.http}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("fedshelf_in_flight"))


def test_an_address_that_is_taken_is_one_line(place: Path) -> None:
    serving = Serving(place)
    with socket.create_server(("127.0.0.1", int(serving.http.rpartition(":")[2]))):
        done = subprocess.run(
            [sys.executable, "-m", "fedshelf", "region", "serve", str(serving.folder)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert "serve.http: cannot listen on" in done.stderr and "Traceback" not in done.stderr


# -- learning --------------------------------------------------------------------------------------


def test_searches_are_answered_while_it_trains(place: Path) -> None:
    """Also the whole loop: the clicks of the service are what the next training reads."""
    with Serving(place, "worker", max_requests=16) as serving, ThreadPoolExecutor(1) as pool:
        encoder = load_encoder(place / "base", device="cpu")
        encoder.reset(seed=7)
        config = federation(place, local_epochs=60).train_config(1)
        request = wire.train_request(encode_adapter(encoder.adapter()), config, 1)
        worker = serving.folder / "run" / "worker.sock"
        alone = latencies(serving, until=lambda count: count >= 60)
        training = pool.submit(forward, worker, "train", request, timeout_s=300)
        beside = latencies(serving, until=lambda count: training.done() and count >= 1)
        assert training.result() is not None
        for name, found in (("alone", alone), ("beside training", beside)):
            p50, p99 = np.percentile(np.array(found) * 1e3, [50, 99])
            print(f"searches {name}: {len(found)}, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        os.kill(serving.process.pid, signal.SIGTERM)  # type: ignore[union-attr]
        assert serving.process.wait(timeout=60) == 0  # type: ignore[union-attr]
    toml = load_region_config(serving.folder)
    logged = toml.data.model_copy(update={"clicks": "state/events.sqlite"})
    write_region_toml(serving.folder, toml.model_copy(update={"data": logged}))
    assert read_clicks(open_region(serving.folder)).height == 10 * (len(alone) + len(beside))


def latencies(serving: Serving, *, until: Callable[[int], bool]) -> list[float]:
    """Seconds of searches one after another, no two for the same words."""
    found: list[float] = []
    with httpx.Client(base_url=serving.http, timeout=60) as client:
        while not until(len(found)):
            start = time.perf_counter()
            asked = {"query": f"{QUERIES[len(found) % 5]} {time.monotonic_ns()}"}
            response = client.post("/v1/search", json=asked)
            assert response.status_code == 200, response.text
            found.append(time.perf_counter() - start)
    return found
