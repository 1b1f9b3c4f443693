"""The generate stage: an immutable plan, shards that are made in any order by anyone, and one merged store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from genview.errors import UserError
from genview.generators.maker import Maker
from genview.generators.merge import SUMMARY, merge, merged, unfinished
from genview.generators.plan import Plan, Tell
from genview.generators.planning import Job, make_plan
from genview.generators.settings import GenerateSettings
from genview.generators.shard import run_shard

ROUNDS = 3
"""How often shards are made, at most: one that is damaged each time is not the work of chance."""

Launch = Callable[[Plan, list[int], Tell], None]
"""Makes the given shards of a plan, wherever and in whatever order."""


def generate(
    job: Job,
    maker: Maker,
    settings: GenerateSettings,
    folder: Path,
    *,
    identity: Mapping[str, object],
    tell: Tell,
) -> None:
    """Make `draws` views of every analysed image in this process, leaving out the shards that are there.

    Seeds come from run seed, key and draw, so no view depends on shards or batches.

    Raises:
        UserError: see `make_plan`, `run_shard` and `finish`.
    """
    plan = make_plan(job, settings, folder, identity=identity, tell=tell)
    finish(plan, in_this_process(maker), tell)


def finish(plan: Plan, launch: Launch, tell: Tell) -> None:
    """Have the unfinished shards of a plan made and merge the store; nothing is done where it is merged already.

    Raises:
        UserError: a shard was found damaged every time it was made.
    """
    bad: list[int] = []
    for _ in range(ROUNDS):
        if merged(plan):
            return
        if shards := unfinished(plan):
            (plan.folder / SUMMARY).unlink(missing_ok=True)  # readers must not meet an index of shards that change
            launch(plan, shards, tell)
        bad = merge(plan, tell)
        if not bad:
            return
    raise UserError(
        f"{len(bad)} shards in {plan.folder} were damaged each of the {ROUNDS} times they were made, such as "
        f"{plan.sidecar(bad[0]).name}. The disk or the network file system loses what is written to it."
    )


def in_this_process(maker: Maker) -> Launch:
    """Return a launch that makes one shard after another with `maker`."""

    def launch(plan: Plan, shards: list[int], tell: Tell) -> None:
        done = plan.views - sum(len(plan.images_of(shard)) for shard in shards) * plan.draws
        for shard in shards:
            run_shard(plan, shard, maker, _from(done, plan.views, tell))
            done += len(plan.images_of(shard)) * plan.draws
            tell("generate", done, plan.views, "")

    return launch


def _from(start: int, total: int, tell: Tell) -> Callable[[int], None]:
    return lambda done: tell("generate", start + done, total, "")
