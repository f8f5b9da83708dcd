"""`async for piece in decoder.astream(...)`: any event loop, one row or several, left early or cancelled."""

import asyncio
import threading

import pytest
from rows_decoders import PROMPTS, make_rows

from radar.errors import UsageError

PROMPTS = PROMPTS[:3]


@pytest.fixture(params=[("radar", 1), ("radar", 3), ("plain", 2)], ids=str)
def decoder(request):
    return make_rows(*request.param)


async def pieces(decoder, prompt, **options):
    return [piece async for piece in decoder.astream(prompt, max_new_tokens=9, **options)]


async def gathered(decoder):
    return ["".join(found) for found in await asyncio.gather(*(pieces(decoder, prompt) for prompt in PROMPTS))]


def expected(decoder):
    return [decoder.generate(prompt, max_new_tokens=9).text for prompt in PROMPTS]


def test_pieces_are_those_of_a_stream(decoder):
    stream = decoder.stream(PROMPTS[0], max_new_tokens=9)
    assert asyncio.run(pieces(decoder, PROMPTS[0])) == list(stream)
    assert stream.output.finish_reason == "length"


def test_two_event_loops_at_once(decoder):
    wanted, found = expected(decoder), {}
    loops = [threading.Thread(target=lambda k=k: found.update({k: asyncio.run(gathered(decoder))})) for k in range(2)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join(60)
    assert found == {0: wanted, 1: wanted}


def test_the_loop_goes_on_while_a_round_is_made(decoder):
    """A criterion waits for what only the event loop can do."""
    told = threading.Event()

    async def work():
        asyncio.get_running_loop().call_soon(told.set)
        return await pieces(decoder, PROMPTS[1], stopping_criteria=[lambda ids, scores: not told.wait(60)])

    assert "".join(asyncio.run(work())) == decoder.generate(PROMPTS[1], max_new_tokens=9).text


@pytest.mark.parametrize("how", ["break", "cancel", "aclose"])
def test_leaving_early_frees_the_row(decoder, how):
    rows = decoder.max_batch_size
    reached, opened = threading.Event(), threading.Event()
    streams = []

    def gate(ids, scores):
        if how == "cancel" and ids.shape[1] > len(PROMPTS[0]) + 2:
            reached.set()
            assert opened.wait(60)
        return False

    async def endless():
        stream = decoder.astream(PROMPTS[0], stopping_criteria=[gate])
        streams.append(stream)
        async for _ in stream:
            if how == "break":
                break
            if how == "aclose":
                await stream.aclose()

    async def work():
        tasks = [asyncio.create_task(endless()) for _ in range(rows)]
        if how == "cancel":
            await asyncio.to_thread(reached.wait, 60)
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        opened.set()
        if how == "break":
            streams.clear()
        return await gathered(decoder)

    wanted = expected(decoder)
    assert asyncio.run(work()) == wanted
    assert all(stream.output.finish_reason == "cancelled" for stream in streams)


def test_errors_come_where_they_belong(decoder):
    with pytest.raises(UsageError, match="the prompt is empty"):
        decoder.astream([])

    def fail(ids, scores):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(pieces(decoder, PROMPTS[0], stopping_criteria=[fail]))
    assert asyncio.run(gathered(decoder)) == expected(decoder)


def test_output_is_there_at_the_end(decoder):
    async def work():
        stream = decoder.astream(PROMPTS[0], max_new_tokens=9)
        text = ""
        async for piece in stream:
            text += piece
        assert stream.output.text == text
        assert stream.output.finish_reason == "length"

    asyncio.run(work())
