"""A real server that speaks S3, on loopback."""

import logging
import secrets
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of moto's server; what is stored in it is gone with the session."""
    server = pytest.importorskip("moto.server", exc_type=ImportError)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    own = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    own.start()
    host, port = own.get_host_and_port()
    yield f"http://{host}:{port}"
    own.stop()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the server, and none of the user's."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    values = {"ACCESS_KEY_ID": "somebody", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in values.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(s3_server: str, credentials: None) -> str:
    """The URL of a folder in a new bucket."""
    from pyarrow import fs

    name = f"b{secrets.token_hex(8)}"
    query = f"endpoint_override={s3_server}&region=us-east-1"
    files, _ = fs.FileSystem.from_uri(f"s3://{name}?{query}&allow_bucket_creation=true")
    files.create_dir(name)
    return f"s3://{name}/some/where?{query}"
