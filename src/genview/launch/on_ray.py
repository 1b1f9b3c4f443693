"""Actors of a Ray cluster do the shards; Ray carries shard ids, and nothing that was made."""

from __future__ import annotations

import ipaddress
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from genview.errors import UserError
from genview.launch.crew import Crew, Doer, Told
from genview.launch.work import Tally, Tell, Work


@dataclass(frozen=True)
class Ray:
    """The cluster at `address` ('auto' finds the one of this machine), or one of this machine for the time being.

    There is an actor for each GPU of the cluster, or for each core where it has none, as nodes come and go. All nodes
    must see the run folder and the images under the same paths.
    """

    address: str = ""
    kind: Literal["ray"] = "ray"

    def run(self, work: Work, shards: Sequence[int], tell: Tell) -> None:
        """Hand out the shards one at a time; an actor that dies or raises loses no more than its own.

        Raises:
            UserError: Ray is not installed, or there is no cluster at the address.
        """
        tally = Tally(work, shards, tell)
        if tally:
            with _cluster(self.address) as ray:
                Crew(_Cluster(ray), work, tally).run()


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected; a connection that was there before is used, and left as it was."""
    ray = _imported(alone=not address)
    if ray.is_initialized():
        yield ray
        return
    try:
        _connect(ray, address)
        yield ray
    finally:
        ray.shutdown()


def _imported(alone: bool) -> Any:
    if alone and "ray" not in sys.modules:
        # What makes Ray keep to the loopback on other systems does so here; it is read when Ray is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("The launcher 'ray' needs Ray: pip install 'genview[ray]'.") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    if not address:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
            raise UserError(
                "Ray was imported before genview could keep it to the loopback, so its ports would be open to "
                "others. Start a cluster yourself and give its address, or import ray later."
            )
        return
    path = os.environ.get("PYTHONPATH")
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": path}} if path else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The Ray cluster at '{address}' cannot be reached ({str(error).splitlines()[0]}). Start one with "
            "ray start --head, set RAY_AUTH_MODE=token if it wants a token, or leave the address out for one of this "
            "machine alone."
        ) from error


@dataclass
class _Actor:
    actor: Any
    answer: Any


class _Cluster:
    """A cluster as a host of actors."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def places(self) -> Sequence[str]:
        found = self._ray.cluster_resources()
        return ("cuda",) * int(found.get("GPU", 0)) or ("cpu",) * int(found.get("CPU", 0))

    def start(self, work: Work, device: str) -> _Actor:
        """Let Ray find a place; it shows an actor its own GPU alone."""
        need = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
        actor = self._ray.remote(**need)(Doer).remote(work)
        return _Actor(actor, actor.prepare.remote(device))

    def give(self, worker: _Actor, shard: int) -> None:
        worker.answer = worker.actor.do.remote(shard)

    def listen(self, workers: Sequence[_Actor]) -> list[tuple[_Actor, Told]]:
        waiting = {worker.answer: worker for worker in workers if worker.answer is not None}
        if not waiting:
            time.sleep(1.0)
            return []
        answers, _ = self._ray.wait(list(waiting), timeout=1.0)
        return [(waiting[answer], self._said(waiting[answer])) for answer in answers]

    def _said(self, worker: _Actor) -> Told:
        answer, worker.answer = worker.answer, None
        try:
            told: Told = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            return "failed", f"The actor was lost. {error}"
        return told

    def end(self, workers: Sequence[_Actor], abrupt: bool) -> None:  # noqa: ARG002 - what is done lies in files
        for worker in workers:
            self._ray.kill(worker.actor)
