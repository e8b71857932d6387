"""Folder, token and settings of a cluster of our own."""

import os
import stat

import pytest

from raykd.core.errors import NoRoom
from raykd.launch import private_cluster
from raykd.launch.private_cluster import PrivateFolder


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def place(monkeypatch):
    """Folder with a short path, in which private folders are made."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    private = PrivateFolder(lambda text: None)
    monkeypatch.setenv("RAY_TMPDIR", str(private.folder))
    yield private.folder
    private.remove()


def test_no_other_user_can_enter_it_and_it_goes_whole(place):
    said = []
    before = os.umask(0)
    try:
        private = PrivateFolder(said.append)
        private.write_address("127.0.0.1:1")
    finally:
        os.umask(before)
    assert private.folder.parent == place and not said
    assert mode(private.folder) == 0o700
    assert mode(private.token) == mode(private.folder / "address") == 0o600
    assert len(private.token.read_text()) == 64
    (private.session / "logs").mkdir(parents=True)
    private.remove()
    assert not private.folder.exists()


def test_each_has_a_token_of_its_own(place):
    assert PrivateFolder(print).token.read_text() != PrivateFolder(print).token.read_text()


@pytest.mark.parametrize("name", ["a" * 60, "\N{GREEK SMALL LETTER PI}" * 30])
def test_a_name_that_is_too_long_for_sockets_gives_way_to_a_shorter_one(
    place, monkeypatch, tmp_path, name
):
    (tmp_path / name).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / name))
    said = []
    private = PrivateFolder(said.append)
    private.remove()
    longest = (
        private.session / f"session_2026-01-01_00-00-00_000000_{1 << 22}/sockets/dash_MetricsHead"
    )
    assert len(os.fsencode(longest)) <= 107
    assert len(said) == 1 and "too long a name for Ray's sockets" in said[0]
    assert str(private.folder.parent) in said[0]


def test_without_any_short_name_there_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(private_cluster, "parents", lambda: [tmp_path / ("a" * 90)])
    with pytest.raises(NoRoom, match=r"at most 1\d\d bytes, .* set RAY_TMPDIR to a folder with a"):
        PrivateFolder(print)


def test_the_token_of_an_address_is_found_where_only_its_user_may_write(place):
    private = PrivateFolder(print)
    private.write_address("127.0.0.1:4711")
    assert private_cluster.token_of("127.0.0.1:4711") == private.token
    assert private_cluster.token_of("127.0.0.1:471") is None
    private.folder.chmod(0o755)
    assert private_cluster.token_of("127.0.0.1:4711") is None


def test_authentication_is_afterwards_what_it_was(place, monkeypatch):
    monkeypatch.setenv(private_cluster.TOKEN, "someone's")
    monkeypatch.delenv(private_cluster.MODE, raising=False)
    private = PrivateFolder(print)
    with private_cluster.restoring_auth():
        private_cluster.use_token(private.token)
        assert private_cluster.auth_mode() == "token" and private_cluster.has_token()
        assert os.environ[private_cluster.TOKEN_PATH] == str(private.token)
        assert private_cluster.TOKEN not in os.environ
    assert os.environ[private_cluster.TOKEN] == "someone's"
    assert private_cluster.auth_mode() == "" and private_cluster.TOKEN_PATH not in os.environ
