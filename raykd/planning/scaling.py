"""How long a training takes on a cluster, by arithmetic: pure, nothing is measured here.

A step of n workers, with a batch of B images in all, takes

    max(compute + allreduce, decoding, storage, network)     seconds, where

    compute    fixed + B / n * image                         what one worker does by itself
    allreduce  max(0, ring(n) - overlap * compute)           what does not hide behind it
    ring(n)    2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency
    decoding   B * decode / (nodes * cpus)
    storage    what all nodes read for a step / bandwidth of the storage
    network    what one node reads for a step / bandwidth of its network + ring(n)

A ring passes every node's network once in each direction, however many GPUs the node has
(Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms", section 3); within one node it
passes the link between its GPUs. Every node reads a view of a cache whole, in every epoch, as its
workers look up rows all over it; an encoded image is read by the worker that shows it.

All times are in seconds, sizes in bytes; a GB is 10**9 bytes.
"""

import math
from dataclasses import dataclass, fields

from pydantic import Field, model_validator

from raykd.core.record import Limits, Record

GROUP_SECONDS = 25.0  # to start a group of Ray Train workers, on 2 cores (Ray 2.60)
REPORT_EVERY_SECONDS = 5.0  # at least, between a training's reports: `launch.train.REPORT_SECONDS`


class Cluster(Record):
    """Machines of one kind, what joins them, and what they cost.

    How fast a GPU is must be said: as `rate`, a multiple of this machine, whose networks are then
    measured; or as `tflops` and the share of them that is used. Neither is known before it was
    tried on such a GPU: they are the assumptions that the forecast stands on.
    """

    nodes: int = Field(ge=1, le=Limits.WORKERS)
    gpus: int = Field(
        ge=1, le=Limits.WORKERS
    )  # of a node; of one without, how many workers on CPUs
    cpus: int = Field(default=8, ge=1, le=Limits.WORKERS)  # of a node, that decode images
    network_gbit: float = Field(gt=0, le=Limits.WEIGHT)  # Gbit/s of a node, in each direction
    latency_us: float = Field(
        default=20.0, ge=0, le=Limits.WEIGHT
    )  # of one message between two nodes
    link_gb: float = Field(
        default=50.0, gt=0, le=Limits.WEIGHT
    )  # GB/s between two GPUs of one node
    storage_gb: float = Field(
        gt=0, le=Limits.WEIGHT
    )  # GB/s that the storage gives all nodes together
    node_price: float = Field(default=0.0, ge=0, le=Limits.WEIGHT)  # of a node, for an hour
    currency: str = "USD"
    rate: float | None = Field(
        default=None, gt=0, le=Limits.WEIGHT
    )  # a GPU's speed, in that of this machine
    tflops: float | None = Field(
        default=None, gt=0, le=Limits.WEIGHT
    )  # 10**12 operations a second, at its best
    utilisation: float = Field(default=0.3, gt=0, le=1)  # share of `tflops` that a step uses
    fixed_ms: float = Field(
        default=5.0, ge=0, le=Limits.WEIGHT
    )  # of a step, however small the batch is
    overlap: float = Field(default=0.0, ge=0, le=1)  # share of compute that hides an allreduce
    decode_ms: float | None = Field(
        default=None, gt=0, le=Limits.WEIGHT
    )  # of an image on one CPU; None: as here
    report_ms: float = Field(
        default=5.0, ge=0, le=Limits.WEIGHT
    )  # of the head node, for one worker's report

    @model_validator(mode="after")
    def _check(self) -> "Cluster":
        if (self.rate is None) == (self.tflops is None):
            raise ValueError(
                "say how fast a GPU is, by one of rate (a multiple of this machine) and tflops"
            )
        return self

    def workers(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus

    def nodes_of(self, workers: int) -> int:
        """The nodes that so many workers fill."""
        return math.ceil(workers / self.gpus)

    def image_seconds(self, here: float, flops: float) -> float:
        """Of an image on one GPU: from its seconds on this machine, or its operations."""
        if self.rate is not None:
            return here / self.rate
        assert self.tflops is not None, "validated"
        return flops / (self.tflops * 1e12 * self.utilisation)


@dataclass(frozen=True)
class Work:
    """A training, whoever does it."""

    images: int  # of an epoch
    epochs: int
    batch: int  # of all workers together
    image_seconds: float  # of forward and backward on one GPU, a live teacher's forward included
    parameter_bytes: int  # of the gradients that are averaged
    view_bytes: int = 0  # of a view of the cache, which every node reads in every epoch
    encoded_bytes: int = 0  # of the encoded images of an epoch; 0 where they are in memory
    decode_seconds: float = 0.0  # of an image on one CPU; 0 where nothing is decoded

    def steps(self) -> int:
        """Of an epoch; the rest that does not fill a batch is left out."""
        return max(1, self.images // self.batch)


@dataclass(frozen=True)
class Step:
    """Where the seconds of a step go; see the top of this file."""

    compute: float
    allreduce: float  # beyond what hides behind compute
    decoding: float
    storage: float
    network: float

    @property
    def seconds(self) -> float:
        """Of a step, once the first images are there: the slowest of what goes on side by side."""
        return max(self.compute + self.allreduce, self.decoding, self.storage, self.network)

    @property
    def limit(self) -> str:
        """What would have to be faster, by name."""
        if self.seconds == self.compute + self.allreduce:
            return "allreduce" if self.allreduce > self.compute else "compute"
        return max(fields(self), key=lambda field: getattr(self, field.name)).name


def ring_seconds(cluster: Cluster, size: int, workers: int) -> float:
    """Of averaging `size` bytes over the workers; nothing over one."""
    between = cluster.nodes_of(workers) > 1
    bandwidth = cluster.network_gbit / 8 * 1e9 if between else cluster.link_gb * 1e9
    passes = 2 * (workers - 1)
    latency = cluster.latency_us * 1e-6 if between else 0.0
    return passes / workers * size / bandwidth + passes * latency


def step(work: Work, cluster: Cluster, workers: int, at_once: int = 1) -> Step:
    """A step of one training on `workers` GPUs, while `at_once` such trainings share the storage.

    More workers than images of a batch leave some without work.
    """
    nodes = cluster.nodes_of(workers)
    share = math.ceil(work.batch / workers)
    compute = cluster.fixed_ms / 1000 + share * work.image_seconds
    ring = ring_seconds(cluster, work.parameter_bytes, workers)
    views = work.view_bytes / work.steps()  # of a step, each node
    encoded = work.encoded_bytes / work.images * work.batch  # of a step, all nodes
    network = (views + encoded / nodes) / (cluster.network_gbit / 8 * 1e9)
    cpus = nodes * cluster.cpus * min(1.0, workers / (nodes * cluster.gpus))
    return Step(
        compute=compute,
        allreduce=max(0.0, ring - cluster.overlap * compute),
        decoding=work.batch * work.decode_seconds / cpus,
        storage=at_once * (nodes * views + encoded) / (cluster.storage_gb * 1e9),
        network=network + (ring if nodes > 1 else 0.0),
    )


def efficiency(work: Work, cluster: Cluster, workers: int) -> float:
    """Images a second of each worker, in those of one worker that has all to itself."""
    one = step(work, cluster, 1)
    return one.seconds / (workers * step(work, cluster, workers).seconds)


def head_load(cluster: Cluster, trainings: int, workers: int, epoch_seconds: float) -> float:
    """Share of its time that the head node is busy with reports; more than 1 cannot be.

    A training's workers report after an epoch, at most every `REPORT_EVERY_SECONDS`.
    """
    every = max(REPORT_EVERY_SECONDS, epoch_seconds) if workers > 1 else epoch_seconds
    return trainings * workers * cluster.report_ms / 1000 / every


@dataclass(frozen=True)
class Forecast:
    """How long something takes on a cluster."""

    seconds: float
    limit: str  # what would have to be faster
    at_once: int = 1  # trainings


def trainings(work: Work, cluster: Cluster, workers: int, count: int = 1) -> Forecast:
    """Of `count` equal trainings with `workers` GPUs each, as many at a time as fit."""
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
    """Of a cache of `rows` outputs, which all GPUs make side by side.

    `image_seconds` are of a forward on one GPU, `written` the bytes of the cache.
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


def cost(cluster: Cluster, seconds: float) -> float:
    """Of all nodes for so long, in the cluster's currency."""
    return cluster.nodes * cluster.node_price * seconds / 3600
