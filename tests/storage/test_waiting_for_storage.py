"""Storage elsewhere that answers late, or not at all."""

import contextlib
import time

import pytest

from raykd.core.errors import Unreachable
from raykd.core.futures import begun
from raykd.storage.filesystem import Remote
from tests.servers.proxy import Proxy


@pytest.fixture
def slow(bucket, s3_server):
    proxy = Proxy(s3_server)
    yield proxy, bucket.replace(s3_server, proxy.address)
    proxy.close()


@pytest.mark.slow
def test_who_waits_for_storage_says_so_and_ends(slow, caplog):
    proxy, url = slow
    remote = Remote(url)
    assert remote.entries() == []
    caplog.clear()  # a busy machine may be waited for
    proxy.delay = 600
    waiting = begun(remote.entries)
    while not caplog.messages:
        time.sleep(0.2)
    assert caplog.messages[0].startswith(f"waiting for {remote.shown}, ")
    proxy.delay = 0
    with contextlib.suppress(Unreachable):  # where it had tried often enough
        assert waiting.result() == []
