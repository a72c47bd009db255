"""Answers to images seen before: what is kept, what is forgotten, what it may be used for."""

import shutil

import numpy as np
import pytest
from processes import TIMEOUT, serving, until
from tiny import PURE, jpeg, tiny_bundle

from packshot import Client
from serving.cache import ENTRY_BYTES, Cache
from serving.engines import Answer
from serving.metrics import Metrics

RED = jpeg(PURE["red"])
HIT, MISS = (f'packshot_cache_lookups_total{{result="{result}"}}' for result in ("hit", "miss"))
SIZE = 8 * 4 + ENTRY_BYTES


def answer(value: float = 0) -> Answer:
    """32 bytes of numbers, rows of a batch as engines give them."""
    batch = np.full((16, 4), value, np.float32)
    return Answer(batch[0], batch[1])


@pytest.fixture
def metrics():
    return Metrics()


def key_of(cache: Cache, name: str) -> tuple[object, ...]:
    return cache.key(1, "fp32", name.encode(), is_pixels=False)


def kept_bytes(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("packshot_cache_bytes")


def test_the_least_recently_used_goes_first(metrics):
    cache = Cache(3 * SIZE, metrics)
    for name in "abc":
        cache.put(key_of(cache, name), answer())
    assert cache.get(key_of(cache, "a")) is not None
    cache.put(key_of(cache, "d"), answer())
    assert [cache.get(key_of(cache, name)) is not None for name in "abcd"] == [
        True, False, True, True,
    ]  # fmt: skip
    assert kept_bytes(metrics) == 3 * SIZE


def test_an_answer_larger_than_the_whole_is_not_kept(metrics):
    cache = Cache(3 * SIZE, metrics)
    cache.put(key_of(cache, "a"), answer())
    cache.put(key_of(cache, "big"), Answer(np.zeros(3 * SIZE, np.float32), np.zeros(1, np.float32)))
    assert cache.get(key_of(cache, "big")) is None
    assert cache.get(key_of(cache, "a")) is not None, "nothing was forgotten for it"
    assert kept_bytes(metrics) == SIZE


def test_the_same_answer_again_takes_no_more_room(metrics):
    cache = Cache(3 * SIZE, metrics)
    for _ in range(5):
        cache.put(key_of(cache, "a"), answer())
    assert kept_bytes(metrics) == SIZE


def test_it_keeps_the_row_and_not_the_batch(metrics):
    cache = Cache(3 * SIZE, metrics)
    given = answer(7)
    cache.put(key_of(cache, "a"), given)
    given.logits[:] = 0
    found = cache.get(key_of(cache, "a"))
    assert found.logits.tolist() == found.embedding.tolist() == [7] * 4
    assert found.logits.base is None


def test_everything_in_the_key_counts(metrics):
    cache = Cache(SIZE, metrics)
    keys = {
        cache.key(1, "fp32", b"a", is_pixels=False), cache.key(2, "fp32", b"a", is_pixels=False),
        cache.key(1, "int8", b"a", is_pixels=False), cache.key(1, "fp32", b"b", is_pixels=False),
        cache.key(1, "fp32", b"a", is_pixels=True),
    }  # fmt: skip
    assert len(keys) == 5


def test_of_no_size_it_does_nothing(metrics):
    cache = Cache(0, metrics)
    assert key_of(cache, "a") == ()
    assert cache.get(key_of(cache, "a")) is None
    assert (
        metrics.registry.get_sample_value("packshot_cache_lookups_total", {"result": "miss"}) == 0
    )


def test_off_by_default(server):
    with Client(server.target) as client:
        client.classify([RED, RED])
    assert server.metric(HIT) == server.metric(MISS) == 0


def test_the_second_time_no_engine_runs(store):
    with (
        serving("--models", store, "--cache-bytes", 1_000_000, "--reload-seconds", 0.05) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        runs = "packshot_batch_images_sum"
        (first,) = client.classify(RED, include_logits=True)
        assert (server.metric(HIT), server.metric(MISS), server.metric(runs)) == (0, 1, 1)
        (second,) = client.classify(RED, include_logits=True)
        assert second == first
        assert client.embed(RED)[0].engine == "fp32"
        (streamed,) = client.classify_stream([("id", RED)])
        assert streamed.label == "red"
        assert (server.metric(HIT), server.metric(MISS), server.metric(runs)) == (3, 1, 1)

        known, new = client.classify([RED, jpeg(PURE["blue"])])
        assert (known.label, new.label) == ("red", "blue")
        assert (server.metric(HIT), server.metric(MISS), server.metric(runs)) == (4, 2, 2)

        assert client.classify(b"text")[0].reason == "not_an_image"
        assert client.classify(b"text")[0].reason == "not_an_image"
        assert (server.metric(HIT), server.metric(runs)) == (4, 2), "errors are not kept"

        tiny_bundle(store)
        until(lambda: client.model().version == 2)
        assert client.classify(RED)[0].version == 2
        assert (server.metric(HIT), server.metric(runs)) == (4, 3), "another version looks anew"


def test_a_number_that_is_given_again_does_not_bring_old_answers_back(store):
    """Version 2 is withdrawn, and another one exported: it is version 2 again."""
    tiny_bundle(store)
    with (
        serving("--models", store, "--cache-bytes", 1_000_000, "--reload-seconds", 0.05) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        client.classify(RED)
        shutil.rmtree(store / "colours" / "2")
        until(lambda: client.model().version == 1)
        tiny_bundle(store)
        until(lambda: client.model().version == 2)
        client.classify(RED)
        assert server.metric(HIT) == 0


def test_pixels_are_not_taken_for_a_file_of_the_same_bytes(store):
    pixels = np.zeros((224, 224, 3), np.uint8)
    with (
        serving("--models", store, "--cache-bytes", 1_000_000) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        assert client.classify(pixels)[0].error is None
        assert client.classify(pixels.tobytes())[0].reason == "not_an_image"
        assert server.metric(HIT) == 0


def test_a_server_keeps_no_more_than_it_may(store):
    limit = 3 * (6 * 4 + ENTRY_BYTES)
    with (
        serving("--models", store, "--cache-bytes", limit) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        client.classify([jpeg((200, 0, level)) for level in range(0, 200, 10)])
        assert server.metric("packshot_cache_bytes") == limit
