"""Whatever happens to a training, it resumes to the same weights. For a longer search: LAE_FAST_CAMPAIGN=MINUTES pytest -m slow tests/test_campaign.py"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MINUTES = float(os.environ.get("LAE_FAST_CAMPAIGN", 0))
TRIALS = 5  # at least


@pytest.mark.slow
def test_runs_survive_signals_and_full_disks(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("campaign.py")), tmp_path, 60 * MINUTES, TRIALS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    wrong, strikes, done = json.loads(result.stdout.splitlines()[-1])
    assert not wrong, "\n\n".join(wrong)
    assert done >= TRIALS
    assert sum(strikes.values()) >= TRIALS // 2, strikes  # most disturbances came before the end
