"""An experiment file is read strictly: every mistake is one line before anything is made."""

import re
from pathlib import Path
from typing import get_args

import pytest

from shared.config import DISTANCES, FUSIONS, default_run_config
from shared.errors import ConfigError
from simulations.comparison.spec import DataSpec, Experiment, read_experiment

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "simulations" / "experiments").glob("*.toml"))
HEAD = '[experiment]\nname = "try"\nseeds = [7, 8]\nrounds = 4\n'
DATA = '[[data]]\nsource = "synthetic"\n'
METHODS = """
[[method]]
name = "alone"
kind = "local_only"
[[method]]
name = "fed"
kind = "federated"
[[method]]
name = "pool"
kind = "centralized"
"""


def read(tmp_path: Path, text: str) -> Experiment:
    path = tmp_path / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    return read_experiment(path)


def method(**keys: object) -> str:
    lines = [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join(["[[method]]", *lines, ""])


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    experiment = read(tmp_path, HEAD + DATA + METHODS)
    assert experiment.experiment.preset == "starter"
    assert (experiment.experiment.min_queries, experiment.search) == (50, None)
    assert experiment.data[0].label == "synthetic, 4 regions"
    fed = experiment.method_named("fed")
    assert (experiment.alone_of(fed), experiment.pooled_of(fed)) == ("alone", "pool")


def test_worlds_may_differ_in_fusion_and_distance_alone(tmp_path: Path) -> None:
    more = DATA + 'fusion = "attention"\n' + DATA + 'distance = "manhattan"\n'
    experiment = read(tmp_path, HEAD + DATA + more + METHODS)
    assert [data.label for data in experiment.data] == [
        "synthetic, 4 regions",
        "synthetic, 4 regions, attention",
        "synthetic, 4 regions, manhattan",
    ]
    for key, known in (("fusion", FUSIONS), ("distance", DISTANCES)):
        assert get_args(DataSpec.model_fields[key].annotation) == known
        with pytest.raises(ConfigError, match=f"{key}: Input should be '{known[0]}', "):
            read(tmp_path, HEAD + DATA + f'{key} = "glue"\n' + METHODS)


def test_any_knob_of_the_federation_may_be_set(tmp_path: Path) -> None:
    text = HEAD + DATA + METHODS + method(name='"b"', kind='"federated"', set="{anchor-weight=1.0}")
    experiment = read(tmp_path, text)
    config = experiment.run_config(experiment.method_named("b"), seed=8, regions=3)
    changed = {key: value for key, value in config.items() if default_run_config()[key] != value}
    assert changed == {"anchor-weight": 1.0, "num-rounds": 4, "seed": 8, "min-regions": 3}


def test_a_method_may_name_what_it_is_held_against(tmp_path: Path) -> None:
    more = method(name='"pool2"', kind='"centralized"') + method(
        name='"fed2"', kind='"federated"', pooled='"pool2"'
    )
    experiment = read(tmp_path, HEAD + DATA + METHODS + more)
    assert experiment.pooled_of(experiment.method_named("fed2")) == "pool2"
    assert experiment.pooled_of(experiment.method_named("fed")) == "pool"


def test_candidates_are_all_combinations_the_last_key_changing_fastest(tmp_path: Path) -> None:
    text = HEAD + DATA + METHODS + "[search.keys]\nlearning-rate = [0.001, 0.01]\n"
    text += "anchor-weight = [0.0, 0.3]\n"
    search = read(tmp_path, text).search
    assert search is not None
    assert [tuple(candidate.values()) for candidate in search.candidates] == [
        (0.001, 0.0),
        (0.001, 0.3),
        (0.01, 0.0),
        (0.01, 0.3),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "sed = 1\n" + DATA + METHODS, "experiment.sed: Extra inputs"),
        (HEAD + DATA + 'folder = "/x"\n' + METHODS, "data.0.folder: Extra inputs"),
        (HEAD.replace("rounds = 4", "rounds = 0") + DATA + METHODS, "rounds: .* greater than"),
        (HEAD.replace("[7, 8]", "[]") + DATA + METHODS, "seeds: .* at least 1"),
        (HEAD.replace("[7, 8]", '["7"]') + DATA + METHODS, "seeds.0: .* valid integer"),
        (HEAD + DATA.replace("synthetic", "amazon") + METHODS, "source: .*'fashion'"),
        (HEAD + METHODS, "data: Field required"),
        (HEAD + DATA + DATA + METHODS, 'data: "synthetic, 4 regions" stands there twice'),
        (HEAD + DATA + METHODS + method(name='"fed"', kind='"bm25"'), '"fed" stands there twice'),
        (HEAD + DATA + METHODS + method(name='"x"', kind='"bm26"'), "kind: .*'bm25'"),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"federated"', set="{lr=1}"),
            'method "x": set: run config: unknown key "lr"',
        ),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"federated"', set="{quorum=2.0}"),
            'method "x": set: run config: "quorum" is 2.0',
        ),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"federated"', set="{num-rounds=9}"),
            '"num-rounds" is not for a method to set',
        ),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"federated"', set="{local-epochs=2}"),
            'method "x": set: local-epochs is 2, of "alone" it is 1; train equally long',
        ),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"bm25"', set="{quorum=0.5}"),
            'method "x": set: bm25 trains nothing',
        ),
        (HEAD + DATA + METHODS + method(name='"x"', kind='"hybrid"'), "of: name the method"),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"personalized"', of='"fed"'),
            "train on after the last round; say so",
        ),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"hybrid"', of='"pol"'),
            'of: "pol" is no method of kind zero_shot or',
        ),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"federated"', pooled='"alone"'),
            'pooled: "alone" is no method of kind centralized',
        ),
        (
            HEAD + DATA + METHODS + method(name='"x"', kind='"bm25"', of='"fed"'),
            "of: not for kind bm25",
        ),
        (
            HEAD + DATA + METHODS + "[search.keys]\nbatch-size = [32, 64]\n",
            "batch-size.* would make methods train unequally long",
        ),
        (
            HEAD + DATA + METHODS + "[search.keys]\nquorum = [0.5, 7.0]\n",
            '"quorum" is 7.0',
        ),
        (
            HEAD + DATA + METHODS + "[search]\nfirst-rounds = 5\nkeys = {quorum = [0.5]}\n",
            "search.first-rounds: 5 is more than the experiment's 4 rounds",
        ),
        ("[experiment", "not valid TOML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "experiment.toml" in str(caught.value)


def test_who_trains_longer_says_why(tmp_path: Path) -> None:
    knobs = method(
        name='"x"', kind='"federated"', set="{local-epochs=2}", unequal='"what twice as much gives"'
    )
    assert read(tmp_path, HEAD + DATA + METHODS + knobs).method_named("x").unequal


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: No such file"):
        read_experiment(tmp_path / "gone.toml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_experiments_can_be_read_and_hold_no_folder(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.experiment.name == path.stem
    assert experiment.experiment.rounds <= 20
    assert not re.search(r"[\"'](/|~|\.)", path.read_text(encoding="utf-8"))


def test_there_are_shipped_experiments() -> None:
    assert {"fashion", "synthetic", "icecat", "ablation", "tiny"} <= {p.stem for p in SHIPPED}
