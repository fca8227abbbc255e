"""Which replica takes a conversation: the least busy one. Imported by Ray's proxies only; needs Ray."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class LeastBusy(FIFOMixin, RequestRouter):
    """Asks every replica, every time, how many sockets it has.

    Ray's own router compares two and remembers the answers for ten seconds, preferring the replica it
    remembers. Conversations are few and long: the next would go where the last one went.
    """

    queue_len_response_deadline_s = 1.0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **(kwargs | {"use_replica_queue_len_cache": False}))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """See ``RequestRouter``: one rank with all, of which the least busy is taken."""
        return [
            random.sample(candidate_replicas, len(candidate_replicas))
        ]  # the first of equals wins
