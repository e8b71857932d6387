"""Addresses at which no Ray cluster answers: said within seconds, whatever is there instead."""

import http.server
import socket
import threading
import time

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.scale import Scale
from raykd.core.errors import NoRoom, Unreachable, WorkFailed
from raykd.launch import cluster_probe
from raykd.launch.cluster import connected
from raykd.launch.cluster_watch import Watch, check
from tests.launch.ray_head import free_ports
from tests.tiers import slow_but

FILE = """
run: {model: resnet8, data: {name: digits, limit: 64}, method: label_only, optim: {epochs: 1}}
scale: {workers: 1}
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No cluster anywhere."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def joined(address: str) -> str:
    """The sentence with which joining fails."""
    with pytest.raises(Unreachable) as raised, connected(Scale(address=address), lambda text: None):
        pass
    said = str(raised.value)
    assert said.startswith(f"no Ray cluster answers at {address} (")
    assert said.endswith("); start it, or unset RAY_ADDRESS")
    return said


@pytest.mark.parametrize("scheme", slow_but(["", "ray://"], [""]))
def test_a_port_where_nothing_listens_is_no_cluster(scheme):
    [port] = free_ports(1)
    assert "nothing listens there" in joined(f"{scheme}127.0.0.1:{port}")


@pytest.mark.slow
@pytest.mark.parametrize("address", ["no.such.host.invalid:6379", "ray://no.such.host.invalid"])
def test_a_host_that_is_not_known_is_no_cluster(address):
    joined(address)


def test_what_is_no_address_is_told_how_one_looks():
    for address in ("head", "127.0.0.1:99999", "http://127.0.0.1:8265", ":6379"):
        with pytest.raises(ConnectionError, match="an address is HOST:PORT, or ray://HOST:PORT"):
            cluster_probe.answer_of(address)


@pytest.mark.slow
def test_a_server_of_something_else_is_no_cluster():
    kind = http.server.BaseHTTPRequestHandler
    kind.log_message = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    with http.server.HTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "what listens there is no Ray cluster" in joined(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_server_that_says_nothing_is_no_cluster():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"no answer within 0\.2 s"):
            cluster_probe.answer_of(address, tries=1, seconds=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("by", slow_but(["RAY_ADDRESS", "scale.address"], ["scale.address"]))
def test_a_run_on_a_dead_cluster_ends_with_status_9(tmp_path, monkeypatch, by):
    [port] = free_ports(1)
    (tmp_path / "small.yaml").write_text(FILE)
    words = ["run", str(tmp_path / "small.yaml"), "--store", str(tmp_path / "store")]
    if by == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    else:
        words.append(f"scale.address=127.0.0.1:{port}")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 9, done.output
    assert f"error: no Ray cluster answers at 127.0.0.1:{port} (nothing listens" in done.output


def waiting(watch: Watch) -> None:
    with watch.watching():
        time.sleep(600)


def failing(watch: Watch) -> None:
    with watch.watching():
        raise NoRoom("the cluster has 0 CPUs")


def checking(watch: Watch) -> None:
    with watch.watching():
        check()


def test_what_waits_for_a_lost_cluster_is_interrupted():
    watch, gone = Watch(), time.monotonic() + 0.2
    watch.use(lambda urgent: WorkFailed("a raylet died") if time.monotonic() > gone else None)
    with pytest.raises(WorkFailed, match="a raylet died"):
        waiting(watch)


def test_a_limit_that_is_over_is_an_end_with_its_error():
    watch = Watch()
    with pytest.raises(NoRoom, match="too slow"), watch.limited(0.0, NoRoom("too slow")):
        waiting(watch)


@pytest.mark.parametrize("call", [failing, checking])
def test_an_error_that_comes_of_the_loss_is_told_as_the_loss(call):
    watch = Watch()
    watch.use(lambda urgent: WorkFailed("gone") if urgent else None)
    with pytest.raises(WorkFailed, match="gone"):
        call(watch)


def test_an_error_of_a_cluster_that_is_there_stays_what_it_is():
    with pytest.raises(NoRoom, match="0 CPUs"):
        failing(Watch())
    checking(Watch())
    check()  # where nothing is looked after
