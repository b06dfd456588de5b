"""The page holds every figure, escapes all data, fetches nothing and survives thin results."""

import base64
import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image

from simulations.report import METHODS, METRICS, render_report, write_report

NDCG = {"random": 0.02, "bm25": 0.5, "zero_shot": 0.6}
NDCG |= {"local_only": 0.8, "federated": 0.85, "hybrid": 0.83, "centralized": 0.9}
LUCK = {"queries": "regions", "metric": "ndcg@10", "num_queries": 1234}
NOTHING_SENT = {"loss": None, "seconds": 2.0, "uplink_bytes": 0, "downlink_bytes": 0}
REJECTED = {"region": "south", "reason": "NaN in lora_A"}
VOID = {"meta", "img", "br", "link", "input", "hr"}


def figures(shift=0.0, **changed):
    rows = {**NDCG, **changed}
    return {m: {"ndcg@10": v + shift, "recall@10": v / 2, "mrr@10": v} for m, v in rows.items()}


def make_result(**changed):
    region = {"num_products": 1200, "num_clicks": 34567, "num_test_queries": 89}
    sent = {"loss": 1.25, "seconds": 30.0, "uplink_bytes": 500_000, "downlink_bytes": 1_000_000}
    result = {
        "seed": 7,
        "data": "synthetic",
        "preset": "tiny",
        "regions": [
            {"name": "north", **region, "rows": figures()},
            {"name": "south", **region, "rows": figures(-0.01, local_only=0.95)},
        ],
        "mean": figures(-0.005),
        "worst": figures(-0.01),
        "union": None,
        "tests": [],
        "rounds": [
            {"round": 0, **NOTHING_SENT, "cohort": ["north", "south"], "rejected": []},
            {"round": 1, **sent, "cohort": ["north", "south"], "rejected": []},
            {"round": 2, **sent, "relative_bias": 0.0153, "cohort": 2, "rejected": [REJECTED]},
        ],
        "release": {"number": 1, "encoder_digest": "3f2a1c"},
        "seconds": {"data": 1.5, "local_only": 83.0},
        "peak_rss_bytes": 2_500_000_000,
        "options": {"data": "synthetic", "out": "runs/a b", "json": False, "max_regions": None},
        "problems": [f"catalog.parquet row {row}: duplicate product_id" for row in range(1, 13)],
    }
    return result | changed


CURVES = {"north": [0.5, 0.6, 0.7], "south": [0.4, None, 0.6]}


def product(**changed):
    plain = {"title": "boot", "price": 9.5, "currency": "EUR", "brand": "Aco", "grade": 3}
    return plain | {"image_path": None} | changed


def sample(*products):
    return {"region": "north", "query": "red boots", "before": [], "after": [*products]}


class Page(HTMLParser):
    """Collects what a browser would see and fetch; unbalanced tags fail."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.links, self.words = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def by_class(self, name):
        return [a for _, a in self.tags if name in a.get("class", "").split()]


def page(curves=CURVES, samples=(), **changed):
    return Page(render_report(make_result(**changed), curves, samples))


def test_write_report_replaces_the_page(tmp_path):
    for _ in range(2):
        path = write_report(tmp_path, make_result(), CURVES, [sample(product())])
    assert path == tmp_path / "report.html"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text().startswith("<!doctype html>")


def test_the_same_run_gives_the_same_page():
    assert render_report(make_result(), CURVES, []) == render_report(make_result(), CURVES, [])


def test_headline_figures():
    text = page().text
    assert "raised mean nDCG@10: 0.595 before, 0.845 after" in text
    assert "+0.250 nDCG@10 against zero-shot" in text
    assert "+0.050 nDCG@10 against local only" in text
    assert "94% of centralized quality" in text
    assert "50% of the gap from local to centralized closed" in text
    assert "3.0 MB on the wire in 2 rounds" in text


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({}, "adapters and counts only"),
        ({"drawn-negatives": 0}, "adapters and counts only"),
        ({"drawn-negatives": 8}, "adapters, how vectors lie, and counts only"),
        ({"decorrelation-weight": 0.1}, "adapters, how vectors lie, and counts only"),
    ],
)
def test_what_was_on_the_wire_is_told(knobs, told):
    assert told in page(options={"data": "synthetic", "out": "run", "knobs": knobs}).text


def test_no_gap_is_no_percentage():
    text = page(mean=figures(local_only=0.9)).text
    assert "\N{EN DASH} of the gap from local to centralized closed" in text
    assert "centralized is not above local only" in text


def test_a_loss_is_called_one():
    text = page(mean=figures(federated=0.55)).text
    assert "did not raise mean nDCG@10: 0.600 before, 0.550 after" in text
    assert "-0.050 nDCG@10 against zero-shot" in text


def test_best_deployable_method_of_each_column_is_marked():
    html = render_report(make_result(), CURVES, [])
    best = re.findall(r'<td class="best(?: sum)?">([\d.]+)</td>', html)
    assert sorted(best[:4]) == ["0.840", "0.845", "0.850", "0.940"]


def test_cells_that_look_alike_are_marked_alike():
    html = render_report(make_result(mean=figures(federated=0.91234, hybrid=0.91194)), CURVES, [])
    best = re.findall(r'<td class="best(?: sum)?">([\d.]+)</td>', html)
    assert best.count("0.912") == 4  # nDCG and MRR of both


def test_union_table_only_where_there_is_one():
    union = {m: {"ndcg@10": v, "ndcg@10_judged": 0.9, "judged@10": 1.0} for m, v in NDCG.items()}
    assert "human judgments" not in page().text
    assert "nDCG@10, judged only" in page(union=union).text


def test_the_hybrid_has_a_bar_and_a_row_in_every_table():
    got = page()
    assert len(got.by_class("hybrid")) == 1 + len(METRICS)
    assert "hybrid 0.830 0.820 0.825 0.820" in got.text


@pytest.mark.parametrize(
    ("difference", "p", "told"),
    [
        (0.0614, 0.0004, "+0.061 < 0.001 hybrid is better"),
        (-0.02, 0.0499, "-0.020 0.050 BM25 is better"),
        (-0.02, 0.05, "-0.020 0.050 may be luck"),
        (0.0, 1.0, "0.000 1.000 no difference"),
        (-0.0001, 0.7, "0.000 0.700 may be luck"),
    ],
)
def test_a_comparison_is_read_for_people(difference, p, told):
    test = LUCK | {"a": "hybrid", "b": "bm25", "difference": difference, "p": p}
    got = page(tests=[test])
    assert "Could it be luck?" in got.text
    assert f"hybrid against BM25 nDCG@10, 1,234 test queries of the regions {told}" in got.text


def test_comparisons_by_human_judgments_and_none_at_all():
    test = {"queries": "union", "metric": "ndcg@10_judged", "num_queries": 79}
    test |= {"a": "federated", "b": "zero_shot", "difference": 0.1, "p": 0.2}
    told = "federated against zero-shot nDCG@10, judged only, 79 queries with human judgments"
    assert told in page(tests=[test]).text
    assert "luck?" not in page().text
    result = make_result()
    del result["tests"]  # of a run before there were any
    assert render_report(result, CURVES, []) == render_report(make_result(), CURVES, [])


def test_every_region_and_the_mean_have_a_curve_in_both_sizes():
    got = page()
    assert len(got.by_class("curve")) == 2 * 3
    assert "south, round 2: nDCG@10 0.600" in got.text
    assert "mean, zero-shot: nDCG@10 0.450" in got.text
    assert "mean, round 1" not in got.text


def test_an_unknown_value_breaks_the_line():
    paths = [attrs["d"] for attrs in page().by_class("curve")]
    assert [path.count("M") for path in paths[:2]] == [1, 2]


@pytest.mark.parametrize("curves", [{}, {"north": []}, {"north": [None]}, {"n": [float("nan")]}])
def test_no_curve_at_all(curves):
    assert "No round was measured." in page(curves).text


@pytest.mark.parametrize("curves", [{"n": [0.5]}, {f"r{i}": [0.5] * 60 for i in range(12)}])
def test_labels_of_equal_lines_do_not_cover_each_other(curves):
    labels = [float(a["y"]) for a in page(curves).by_class("name")]
    first_chart = sorted(labels[: len(labels) // 2])
    assert all(b - a >= 14 for a, b in pairwise(first_chart))
    assert all(0 < y < 310 for y in first_chart)


def test_rounds_show_bytes_and_rejections():
    text = page().text
    assert "0 \N{EN DASH} \N{EN DASH} 2.0 s 0 B 0 B 2 of 2 0" in text
    assert "1 1.250 \N{EN DASH} 30.0 s 500 kB 1.0 MB 2 of 2 0" in text
    assert "2 1.250 1.53% 30.0 s 500 kB 1.0 MB 2 of 2 south: NaN in lora_A" in text


def test_how_it_was_made_and_what_was_wrong():
    text = page().text
    assert "fedshelf simulate --data synthetic --out 'runs/a b' Data" in text
    assert "local only 1 min 23 s" in text
    assert "Peak memory, processes added up 2.5 GB" in text
    assert "12 rows or photos left out or emptied, the first of them" in text
    assert text.count("duplicate product_id") == 8
    assert "every row and photo was sound" in page(problems=[]).text


def test_cards_show_what_is_known():
    cards = page(samples=[sample(product(), product(price=None, brand=None, grade=None))])
    assert "●●● exact match boot €9.50 · Aco no photo not judged boot" in cards.text
    assert "before: zero-shot nothing found" in cards.text


def test_photos_are_embedded_and_small(tmp_path):
    Image.new("RGBA", (600, 300), (255, 0, 0, 0)).save(tmp_path / "p.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    paths = [tmp_path / name for name in ("p.png", "broken.jpg", "gone.jpg")]
    got = page(samples=[sample(*(product(image_path=path) for path in paths))])
    (link,) = got.links
    photo = Image.open(io.BytesIO(base64.b64decode(link.removeprefix("data:image/jpeg;base64,"))))
    assert photo.size == (128, 64)
    assert photo.getpixel((5, 5)) == (255, 255, 255)
    assert str(tmp_path) not in got.text


def test_data_is_escaped_and_nothing_is_fetched():
    evil = '<img src="https://example.org/x"><script>alert(1)</script>'
    samples = [{**sample(product(title=evil, brand=evil)), "query": evil}]
    html = render_report(make_result(problems=[evil], data=evil), {evil: [0.1, 0.2]}, samples)
    got = Page(html)
    assert got.links == []
    assert "script" not in {tag for tag, _ in got.tags}
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_thin_results_still_make_a_page():
    thin = {m: {"ndcg@10": 0.5} for m in ("zero_shot", "federated")}
    thin["mine"] = {"ndcg@10": float("nan")}
    region = {"name": "n", "num_products": 1, "num_clicks": 1, "num_test_queries": 1, "rows": thin}
    got = page(
        {}, regions=[region], mean=thin, worst=thin, rounds=[], problems=[], seconds={}, options={}
    )
    assert "no rounds" in got.text
    assert "mine" in got.text
    assert METHODS["centralized"][0] + " 0" not in got.text
