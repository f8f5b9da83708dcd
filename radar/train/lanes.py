"""Several texts decoded at once, in threads that wait for one GPU, and given back in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

from radar.train.drafted import Drafted, FullRounds

__all__ = ["Job", "in_order"]


class Job(NamedTuple):
    """One text to record. `limit`: output tokens, for which the cache has room."""

    number: int
    prompt: Sequence[int]
    limit: int
    seed: int


def in_order(sources: Sequence[FullRounds], texts: Iterable[Job]) -> Generator[tuple[Job, list[Drafted]]]:
    """The texts' rounds, one after the other, while the sources work on as many at once."""

    def drafted(source: FullRounds, job: Job) -> list[Drafted]:
        return list(source.of(job.prompt, job.limit, seed=job.seed))

    if len(sources) == 1:
        yield from ((job, drafted(sources[0], job)) for job in texts)
        return
    free: SimpleQueue[FullRounds] = SimpleQueue()
    for source in sources:
        free.put(source)

    def on_a_free_one(job: Job) -> list[Drafted]:
        source = free.get()
        try:
            return drafted(source, job)
        finally:
            free.put(source)

    waiting: deque[tuple[Job, Future[list[Drafted]]]] = deque()
    with ThreadPoolExecutor(len(sources)) as pool:
        try:
            for job in texts:
                waiting.append((job, pool.submit(on_a_free_one, job)))
                if len(waiting) > 2 * len(sources):  # more would only wait in memory
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # of an interruption; texts in work are waited for
