"""Neighbours keep to their budget of memory, as the process that looks for them sees it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MEASURED = """
import resource, torch
from genview.evaluation import Features
from genview.evaluation.knn import neighbours

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
known, asked = (Features(torch.randn(n, 64), torch.zeros(n, dtype=torch.int64)) for n in (20_000, 6_000))
neighbours(Features(known.x[:64], known.y[:64]), Features(asked.x[:8], asked.y[:8]), 5)
before = peak()
neighbours(known, asked, 200, budget=50_000_000)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes of ru_maxrss, and the heap, are Linux's")
def test_a_small_budget_is_kept() -> None:
    """50 MB, 10 MB of keys and as much for the results; with a tensor of keys for each part it was 450 MB."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEASURED], env=alone, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 120
