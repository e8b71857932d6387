"""Asking an address whether a Ray cluster answers there, for some seconds and no longer.

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

_MESSAGES: Any = gcs_service_pb2  # whose classes are made when it is imported
_CLIENT = "ray://"  # Ray's client protocol; what answers there is a server of its own
_CLIENT_PORT = 10001
ANSWER_SECONDS = 10.0
_TRIES = 2
_PAUSE_SECONDS = 1.0

_ALIVE = 0  # the state of a node (`GcsNodeInfo.GcsNodeState`)

Answer = Literal["ready", "token", ""]  # the second: it wants a token, or another one


def answer_of(address: str, tries: int = _TRIES, seconds: float = ANSWER_SECONDS) -> Answer:
    """The kind of server at an address, `HOST:PORT` or `ray://HOST:PORT`.

    Raises `ConnectionError` with the reason where no cluster does.
    """
    place = _place(address)
    for left in reversed(range(tries)):
        try:
            return _asked(place, seconds, client=address.startswith(_CLIENT))
        except ConnectionError:
            if not left:
                raise
        time.sleep(_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _place(address: str) -> str:
    """The host and the port of an address."""
    place = address.removeprefix(_CLIENT)
    host, colon, port = place.rpartition(":")
    if address.startswith(_CLIENT) and not colon:
        return f"{place}:{_CLIENT_PORT}"
    if not (host and port.isdigit() and 0 < int(port) < 1 << 16) or "/" in place:
        raise ConnectionError("an address is HOST:PORT, or ray://HOST:PORT")
    return place


def _asked(place: str, seconds: float, *, client: bool) -> Answer:
    with _nodes(place) as nodes:
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
                return "ready"  # which answers, and knows only its own calls
            raise ConnectionError(_reason(code, call.details() or "", seconds)) from error
    return "ready"


@contextlib.contextmanager
def _nodes(place: str) -> Iterator[Any]:
    """The calls about nodes that a cluster's head answers, with the token where one is used."""
    channel: Any = init_grpc_channel(place, [("grpc.enable_http_proxy", 0)])
    with contextlib.closing(channel):
        yield gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)


def has_node(address: str, node: str, seconds: float = ANSWER_SECONDS) -> bool:
    """True where a cluster counts a node, by its hexadecimal id, among the living ones.

    Raises `ConnectionError` where the cluster does not answer.
    """
    wanted = bytes.fromhex(node)
    request = _MESSAGES.GetAllNodeInfoRequest()
    request.node_selectors.add().node_id = wanted
    with _nodes(_place(address)) as nodes:
        try:
            answer = nodes.GetAllNodeInfo(request, timeout=seconds)
        except grpc.RpcError as error:
            call: Any = error
            raise ConnectionError(_reason(call.code(), call.details() or "", seconds)) from error
    return any(each.node_id == wanted and each.state == _ALIVE for each in answer.node_info_list)


def _reason(code: grpc.StatusCode, details: str, seconds: float) -> str:
    """Why there is no cluster, in a few words."""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {seconds:g} s"
    if "resol" in details or "Domain name" in details:
        return "the host's name is not known"
    if "refused" in details:
        return "nothing listens there"
    if "HTTP/2" in details or "http1" in details or code == grpc.StatusCode.UNIMPLEMENTED:
        return "what listens there is no Ray cluster"
    return details.rpartition(": ")[2].splitlines()[0] if details else code.name
