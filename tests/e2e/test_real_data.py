"""What federation must reach on real products; minutes a run, on data that is not ours to ship.

`make test-slow FASHION=DIR ICECAT=DIR` runs these; docs/simulation.md says what is in the folders.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


def simulate(kind: str, out: Path, *options: str) -> dict[str, Any]:
    folder = os.environ.get(f"FEDSHELF_{kind.upper()}")
    if not folder:
        pytest.skip(f"no real data: set {kind.upper()}=DIR")
    command = [sys.executable, "-m", "fedshelf", "simulate", "--data", f"{kind}:{folder}"]
    done = subprocess.run(
        [*command, *options, "--out", str(out), "--json"], check=True, stdout=subprocess.PIPE
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("seed", [7, 8])
def test_federation_nears_pooling_on_real_products(seed: int, tmp_path: Path) -> None:
    options = ("--partition", "dirichlet:0.5", "--seed", str(seed))
    mean = simulate("fashion", tmp_path / "run", *options)["mean"]
    ndcg = {method: row["ndcg@10"] for method, row in mean.items()}
    assert ndcg["federated"] >= ndcg["zero_shot"] + 0.10
    assert ndcg["federated"] >= 0.96 * ndcg["centralized"]
    assert ndcg["federated"] >= ndcg["local_only"]


def test_federation_helps_by_human_judgment(tmp_path: Path) -> None:
    options = ("--partition", "supplier", "--rounds", "2")
    union = simulate("icecat", tmp_path / "run", *options)["union"]
    for metric in ("ndcg@10", "ndcg@10_judged"):
        assert union["federated"][metric] > union["zero_shot"][metric]
