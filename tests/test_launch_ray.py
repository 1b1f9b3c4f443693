"""Ray finishes all shards as the other launchers do, and listens to nobody else."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import sys
from pathlib import Path

import psutil
import pytest

import genview
from genview.errors import UserError
from genview.launch import Ray, launch
from marks import Marks, alive, silent, wait_for


@pytest.fixture
def seen_by_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'genview[ray]'")
    paths = [str(Path(__file__).parent), str(Path(genview.__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.usefixtures("seen_by_actors")
def test_ray_does_the_same_and_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    work = Marks(tmp_path, {1: "die", 3: "raise"})
    during: set[str] = set()
    launch(Ray(), work, range(6), lambda *_: during.update(listening()))
    assert work.all_done(6) == list(range(6))
    for shard in (1, 3):
        first, second = work.attempts(shard)
        assert first != second
    assert during, "this test sees what listens"
    assert all(ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback for address in during)
    wait_for(lambda: not any(alive(int(pid)) for _, _, pid in work.lines()), 60)
    launch(Ray("nowhere:1"), work, range(6), silent)  # nothing to do: no cluster is asked for


def test_without_ray_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'genview\[ray\]'"):
        launch(Ray(), Marks(tmp_path), range(2), silent)


def listening() -> set[str]:
    """Addresses at which this process and those it started listen; some may end while one looks."""
    found = set()
    for process in (own := psutil.Process()), *own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found |= {str(at.laddr.ip) for at in process.net_connections("inet") if at.status == psutil.CONN_LISTEN}
    return found
