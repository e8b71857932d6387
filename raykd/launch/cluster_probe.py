"""Probe of an address: does a Ray cluster answer there within some seconds?

`ray.init` waits for a cluster that is down for ten minutes (Ray 2.60), in code that no signal
interrupts.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Literal

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

_MESSAGES: Any = gcs_service_pb2  # its classes are made at import, so they have no types
_CLIENT = "ray://"  # prefix of Ray's client protocol, which has a server of its own
_CLIENT_PORT = 10001
ANSWER_SECONDS = 10.0
_TRIES = 2
_PAUSE_SECONDS = 1.0

_ALIVE = 0  # the state of a node (`GcsNodeInfo.GcsNodeState`)

Answer = Literal["ready", "token"]  # token: it wants one, or another one than was sent


def answer_of(address: str, tries: int = _TRIES, seconds: float = ANSWER_SECONDS) -> Answer:
    """The kind of server at an address, `HOST:PORT` or `ray://HOST:PORT`.

    Raises `ConnectionError` with the reason where no cluster does.
    """
    target = _target(address)
    for left in reversed(range(tries)):
        try:
            return _check_alive(target, seconds, client=address.startswith(_CLIENT))
        except ConnectionError:
            if not left:
                raise
        time.sleep(_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _target(address: str) -> str:
    """HOST:PORT of an address. Raises `ConnectionError` where it is malformed."""
    target = address.removeprefix(_CLIENT)
    host, colon, port = target.rpartition(":")
    if address.startswith(_CLIENT) and not colon:
        return f"{target}:{_CLIENT_PORT}"
    if not (host and port.isdigit() and 0 < int(port) < 1 << 16) or "/" in target:
        raise ConnectionError("an address is HOST:PORT, or ray://HOST:PORT")
    return target


def _check_alive(target: str, seconds: float, *, client: bool) -> Answer:
    """Call the head's health check; raises `ConnectionError`."""
    with _nodes(target) as nodes:
        try:
            nodes.CheckAlive(_MESSAGES.CheckAliveRequest(), timeout=seconds)
        except AuthenticationError:  # RAY_AUTH_MODE=token, and there is none to send (Ray 2.60)
            return "token"
        except grpc.RpcError as error:
            call: Any = error
            code = call.code()
            if code == grpc.StatusCode.UNAUTHENTICATED:
                return "token"
            if client and code == grpc.StatusCode.UNIMPLEMENTED:
                return "ready"  # the client's server answers, and knows only its own calls
            raise ConnectionError(_reason(code, call.details() or "", seconds)) from error
    return "ready"


@contextlib.contextmanager
def _nodes(target: str) -> Iterator[Any]:
    """Context manager: stub for the head's calls about nodes, with the token where one is used."""
    channel: Any = init_grpc_channel(target, [("grpc.enable_http_proxy", 0)])
    with contextlib.closing(channel):
        yield gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)


def has_node(address: str, node: str, seconds: float = ANSWER_SECONDS) -> bool:
    """True where a cluster counts a node, by its hexadecimal id, among the living ones.

    Raises `ConnectionError` where the cluster does not answer.
    """
    wanted = bytes.fromhex(node)
    request = _MESSAGES.GetAllNodeInfoRequest()
    request.node_selectors.add().node_id = wanted
    with _nodes(_target(address)) as nodes:
        try:
            answer = nodes.GetAllNodeInfo(request, timeout=seconds)
        except grpc.RpcError as error:
            call: Any = error
            raise ConnectionError(_reason(call.code(), call.details() or "", seconds)) from error
    return any(each.node_id == wanted and each.state == _ALIVE for each in answer.node_info_list)


def _reason(code: grpc.StatusCode, details: str, seconds: float) -> str:
    """The reason why there is no cluster, for messages."""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {seconds:g} s"
    if "resol" in details or "Domain name" in details:
        return "the host's name is not known"
    if "refused" in details:
        return "nothing listens there"
    if "HTTP/2" in details or "http1" in details or code == grpc.StatusCode.UNIMPLEMENTED:
        return "what listens there is no Ray cluster"
    return details.rpartition(": ")[2].splitlines()[0] if details else code.name
