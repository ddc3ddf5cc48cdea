"""Rounds beside successions: what came of a replica that is gone is never added to one that has its uid."""

from pathlib import Path
from typing import Any

import numpy as np
from averaging_groups import PATIENT, average, group, round_number
from mesh_in_memory import announce_all
from successions import WIDER, migrate, other_weights

from meshnode.averaging.exchange import Exchanged
from meshnode.hosted import FOLLOWED


async def test_a_round_is_not_committed_to_an_expert_that_was_carried_over_anew_meanwhile(tmp_path: Path) -> None:
    async with group(tmp_path, "ab", PATIENT) as (uid, nodes):
        a, b = nodes
        old, first = a.host.get(uid), other_weights(WIDER, 2, seed="first")
        new = await migrate(a, old, weights=first)
        assert new.lineage is not None
        lineage = a.state.blobs.get(new.lineage)
        await b.host.succeed(uid, architecture=new.architecture, weights=first, lineage=lineage, cause=FOLLOWED)
        await announce_all(nodes)
        learned = await b.learn(new.uid, seed=1)
        before = a.host.snapshot(new.uid)
        exchange = a.averager._exchanges.run

        async def carry_over_anew(*args: Any, **kwargs: Any) -> Exchanged:
            exchanged = await exchange(*args, **kwargs)
            await a.host.roll_back(new.uid)
            await migrate(a, a.host.get(uid), weights=other_weights(WIDER, 2, seed="second"))
            return exchanged

        a.averager._exchanges.run = carry_over_anew  # type: ignore[method-assign]
        await average(nodes, number=round_number(nodes) + 2)
        second = await a.host.vector_of(new.uid, other_weights(WIDER, 2, seed="second"))
        assert np.array_equal(a.host.snapshot(new.uid), second)
        assert a.host.get(new.uid).round == 0
        assert np.allclose(b.host.snapshot(new.uid), (learned + before) / 2, atol=1e-6)
