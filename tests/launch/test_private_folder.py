"""The folder and the token of a cluster of our own."""

import os
import stat

import pytest

from raykd.core.errors import NoRoom
from raykd.launch import private_folder
from raykd.launch.private_folder import Private


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def place(monkeypatch):
    """A folder with a short name for temporary files."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    own = Private(lambda text: None)
    monkeypatch.setenv("RAY_TMPDIR", str(own.folder))
    yield own.folder
    own.remove()


def test_no_other_user_can_enter_it_and_it_goes_whole(place):
    said = []
    before = os.umask(0)
    try:
        own = Private(said.append)
        own.note("127.0.0.1:1")
    finally:
        os.umask(before)
    assert own.folder.parent == place and not said
    assert mode(own.folder) == 0o700
    assert mode(own.token) == mode(own.folder / "address") == 0o600
    assert len(own.token.read_text()) == 64
    (own.session / "logs").mkdir(parents=True)
    own.remove()
    assert not own.folder.exists()


def test_each_has_a_token_of_its_own(place):
    assert Private(print).token.read_text() != Private(print).token.read_text()


@pytest.mark.parametrize("name", ["a" * 60, "\N{GREEK SMALL LETTER PI}" * 30])
def test_a_name_that_is_too_long_for_sockets_gives_way_to_a_shorter_one(
    place, monkeypatch, tmp_path, name
):
    (tmp_path / name).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / name))
    said = []
    own = Private(said.append)
    own.remove()
    longest = own.session / f"session_2026-01-01_00-00-00_000000_{1 << 22}/sockets/dash_MetricsHead"
    assert len(os.fsencode(longest)) <= 107
    assert len(said) == 1 and "too long a name for Ray's sockets" in said[0]
    assert str(own.folder.parent) in said[0]


def test_without_any_short_name_there_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(private_folder, "places", lambda: [tmp_path / ("a" * 90)])
    with pytest.raises(NoRoom, match=r"at most 1\d\d bytes, .* set RAY_TMPDIR to a folder with a"):
        Private(print)


def test_the_token_of_an_address_is_found_where_only_its_user_may_write(place):
    own = Private(print)
    own.note("127.0.0.1:4711")
    assert private_folder.token_of("127.0.0.1:4711") == own.token
    assert private_folder.token_of("127.0.0.1:471") is None
    own.folder.chmod(0o755)
    assert private_folder.token_of("127.0.0.1:4711") is None


def test_authentication_is_afterwards_what_it_was(place, monkeypatch):
    monkeypatch.setenv(private_folder.TOKEN, "someone's")
    monkeypatch.delenv(private_folder.MODE, raising=False)
    own = Private(print)
    with private_folder.restored():
        private_folder.ask_for(own.token)
        assert private_folder.mode() == "token" and private_folder.has_token()
        assert os.environ[private_folder.TOKEN_PATH] == str(own.token)
        assert private_folder.TOKEN not in os.environ
    assert os.environ[private_folder.TOKEN] == "someone's"
    assert private_folder.mode() == "" and private_folder.TOKEN_PATH not in os.environ
