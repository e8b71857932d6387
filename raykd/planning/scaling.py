"""Time of a training on a cluster, computed from numbers alone.

A step of n workers, with a batch of B images in all, takes

    max(compute + allreduce, decoding, storage, network)     seconds, where

    compute    fixed + B / n * image                         time of one worker by itself
    allreduce  max(0, ring(n) - overlap * compute)           the part not hidden by compute
    ring(n)    2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency
    decoding   B * decode / (nodes * cpus)
    storage    bytes that all nodes read for a step / bandwidth of the storage
    network    bytes that one node reads for a step / bandwidth of its network + ring(n)

A ring passes every node's network once in each direction, however many GPUs the node has
(Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 3); within one node it
passes the link between its GPUs. Every node reads a view of a cache whole, in every epoch, as its
workers look up rows all over it; an encoded image is read by the worker that shows it.

All times are in seconds, sizes in bytes; a GB is 10**9 bytes.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated

from pydantic import Field, model_validator

from raykd.core.record import Limits, Record

GROUP_SECONDS = 25.0  # to start a group of Ray Train workers, on 2 cores (Ray 2.60)
REPORT_EVERY_SECONDS = 5.0  # at least, between a training's reports: `launch.train.REPORT_SECONDS`

_Count = Annotated[int, Field(ge=1, le=Limits.WORKERS)]
_Positive = Annotated[float, Field(gt=0, le=Limits.WEIGHT)]
_Amount = Annotated[float, Field(ge=0, le=Limits.WEIGHT)]


class Cluster(Record):
    """Machines of one kind, the network between them, and their price.

    The speed of a GPU is given either by `rate`, a multiple of this machine's, where steps are then
    measured, or by `tflops` and `utilisation`. Both are assumptions until a step was timed on
    such a GPU.
    """

    nodes: _Count
    gpus: _Count  # per node; for a node without GPUs, its workers on CPUs
    cpus: _Count = 8  # per node, for decoding
    network_gbit: _Positive  # Gbit/s of a node, in each direction
    latency_us: _Amount = 20.0  # latency of a message between two nodes
    link_gb: _Positive = 50.0  # GB/s between two GPUs of one node
    storage_gb: _Positive  # GB/s that the storage gives all nodes together
    node_price: _Amount = 0.0  # price of a node per hour
    currency: str = "USD"
    rate: _Positive | None = None  # speed of a GPU, in multiples of this machine's
    tflops: _Positive | None = None  # peak of a GPU, in 10**12 operations per second
    utilisation: float = Field(default=0.3, gt=0, le=1)  # share of `tflops` that a step reaches
    fixed_ms: _Amount = 5.0  # constant part of a step, for any batch size
    overlap: float = Field(default=0.0, ge=0, le=1)  # share of compute that hides an allreduce
    decode_ms: _Positive | None = (
        None  # decoding an image on one CPU; None: measured on this machine
    )
    report_ms: _Amount = 5.0  # time of the head node for one worker's report

    @model_validator(mode="after")
    def _check(self) -> "Cluster":
        if (self.rate is None) == (self.tflops is None):
            raise ValueError(
                "say how fast a GPU is, by one of rate (a multiple of this machine) and tflops"
            )
        return self

    def workers(self) -> int:
        """Number of GPUs of all nodes."""
        return self.nodes * self.gpus

    def nodes_of(self, workers: int) -> int:
        """Number of nodes that so many workers fill."""
        return math.ceil(workers / self.gpus)

    @property
    def operations(self) -> float:
        """Operations per second that a GPU reaches; 0 where `rate` says how fast it is."""
        return (self.tflops or 0.0) * 1e12 * self.utilisation

    def price(self, seconds: float) -> float:
        """Price of all nodes for so long."""
        return self.nodes * self.node_price * seconds / 3600


@dataclass(frozen=True)
class Work:
    """A training, independent of the machines."""

    images: int  # per epoch
    epochs: int
    batch: int  # images per step, all workers together
    image_seconds: float  # forward and backward on one GPU, with a live teacher's forward
    parameter_bytes: int  # size of the gradients
    view_bytes: int = 0  # size of a view of the cache, which every node reads in every epoch
    encoded_bytes: int = 0  # size of an epoch's encoded images; 0 if they are in memory
    decode_seconds: float = 0.0  # per image on one CPU; 0 if nothing is decoded

    def steps(self) -> int:
        """Number of steps of an epoch; an incomplete last batch is left out."""
        return max(1, self.images // self.batch)


@dataclass(frozen=True)
class Step:
    """Seconds of the parts of a step; see the formulas above."""

    compute: float
    allreduce: float  # the part not hidden by compute
    decoding: float
    storage: float
    network: float

    @property
    def seconds(self) -> float:
        """Seconds of a step: the slowest of its concurrent parts."""
        return max(self.compute + self.allreduce, self.decoding, self.storage, self.network)

    @property
    def limit(self) -> str:
        """Name of the slowest part."""
        if self.seconds == self.compute + self.allreduce:
            return "allreduce" if self.allreduce > self.compute else "compute"
        return max(fields(self), key=lambda field: getattr(self, field.name)).name


def ring_seconds(cluster: Cluster, size: int, workers: int) -> float:
    """Seconds to average `size` bytes over the workers; 0 for one."""
    between = cluster.nodes_of(workers) > 1
    bandwidth = cluster.network_gbit / 8 * 1e9 if between else cluster.link_gb * 1e9
    passes = 2 * (workers - 1)
    latency = cluster.latency_us * 1e-6 if between else 0.0
    return passes / workers * size / bandwidth + passes * latency


def step(work: Work, cluster: Cluster, workers: int, at_once: int = 1) -> Step:
    """A step on `workers` GPUs, while `at_once` such trainings share the storage."""
    nodes = cluster.nodes_of(workers)
    share = math.ceil(work.batch / workers)
    compute = cluster.fixed_ms / 1000 + share * work.image_seconds
    ring = ring_seconds(cluster, work.parameter_bytes, workers)
    views = work.view_bytes / work.steps()  # bytes per step and node
    encoded = work.encoded_bytes / work.images * work.batch  # bytes per step, all nodes
    network = (views + encoded / nodes) / (cluster.network_gbit / 8 * 1e9)
    cpus = nodes * cluster.cpus * min(1.0, workers / (nodes * cluster.gpus))
    return Step(
        compute=compute,
        allreduce=max(0.0, ring - cluster.overlap * compute),
        decoding=work.batch * work.decode_seconds / cpus,
        storage=at_once * (nodes * views + encoded) / (cluster.storage_gb * 1e9),
        network=network + (ring if nodes > 1 else 0.0),
    )


def head_load(cluster: Cluster, trainings: int, workers: int, epoch_seconds: float) -> float:
    """Share of the head node's time spent on reports; above 1 it is overloaded.

    A training's workers report after an epoch, at most every `REPORT_EVERY_SECONDS`.
    """
    every = max(REPORT_EVERY_SECONDS, epoch_seconds) if workers > 1 else epoch_seconds
    return trainings * workers * cluster.report_ms / 1000 / every


@dataclass(frozen=True)
class Forecast:
    """Time on a cluster."""

    seconds: float
    limit: str  # the slowest part
    at_once: int = 1  # concurrent trainings


def trainings(work: Work, cluster: Cluster, workers: int, count: int = 1) -> Forecast:
    """Time of `count` equal trainings with `workers` GPUs each, as many at a time as fit."""
    at_once = max(1, min(count, cluster.workers() // workers))
    one = step(work, cluster, workers, at_once)
    epoch = work.steps() * one.seconds
    load = head_load(cluster, at_once, workers, epoch)
    started = GROUP_SECONDS if workers > 1 else 0.0
    rounds = math.ceil(count / at_once)
    seconds = rounds * (started + work.epochs * epoch * max(1.0, load))
    return Forecast(seconds, "head node" if load > 1 else one.limit, at_once)


def outputs(
    rows: int,
    image_seconds: float,
    written: int,
    cluster: Cluster,
    *,
    encoded_bytes: int = 0,
    decode_seconds: float = 0.0,
) -> Forecast:
    """Time of a cache of `rows` outputs, which all GPUs compute together.

    image_seconds: of a forward on one GPU. written: size of the cache in bytes.
    """
    moved = encoded_bytes + written
    parts = {
        "compute": rows * image_seconds / cluster.workers(),
        "decoding": rows * decode_seconds / (cluster.nodes * cluster.cpus),
        "storage": moved / (cluster.storage_gb * 1e9),
        "network": moved / cluster.nodes / (cluster.network_gbit / 8 * 1e9),
    }
    limit = max(parts, key=lambda name: parts[name])
    return Forecast(parts[limit], limit, cluster.workers())
