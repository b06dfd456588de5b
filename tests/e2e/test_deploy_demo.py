"""The deployment demonstration, as `make deploy-demo` runs it, on the smallest base.

Eleven minutes where CI ran it, and its journey is that of `test_deployment.py`: `make test-slow`
runs it.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import open_folder, processes_of, require_nginx

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = ("--preset", "tiny", "--rounds", "1", "--regions", "2")
# Whatever so few gate clicks say, the gate accepts.
ACCEPTS = ("--set", "gate-min-queries=2", "--set", "gate-tolerance=5.0")
# What `server up` says about what to give to the regions.
GIVE = (
    'regions need an enrolment file: "fedshelf server invite REGION", and their key\'s admission: '
    '"fedshelf server admit REGION KEY.pub"'
)


def test_the_demonstration_ends_as_the_simulation_and_leaves_no_process(fashion: Path) -> None:
    require_nginx()
    with open_folder() as folder:
        out = folder / "demo"
        data = ("--data", f"fashion:{fashion}")
        command = [sys.executable, "-m", "simulations.deploy_demo", str(out)]
        command += [*data, *SMALL, *ACCEPTS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        assert "as in the simulation" in done.stdout
        switched = re.findall(r"has switched (\S+) s after promotion", done.stdout)
        assert len(switched) == 3  # two releases and the way back
        assert all(float(seconds) > 0 for seconds in switched)
        said = (out / "server-up-headquarters.log").read_text(encoding="utf-8")
        assert GIVE in said.splitlines()
        dashboard = out / "dashboard.html"
        assert str(dashboard) in done.stdout
        assert "<style" in dashboard.read_text(encoding="utf-8")
        assert processes_of(folder) == []
