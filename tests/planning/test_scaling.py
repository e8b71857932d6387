"""The arithmetic of a cluster, against numbers that were worked out by hand."""

import pytest
from pydantic import ValidationError

from raykd.planning import scaling
from raykd.planning.scaling import Cluster, Forecast, Step, Work

# 4 nodes of 2 GPUs. A network of 80 Gbit/s is 10 GB/s.
FIELDS = {
    "nodes": 4,
    "gpus": 2,
    "cpus": 10,
    "network_gbit": 80.0,
    "latency_us": 100.0,
    "link_gb": 100.0,
    "storage_gb": 2.0,
    "node_price": 3.0,
    "tflops": 10.0,
    "utilisation": 0.5,
    "fixed_ms": 10.0,
    "report_ms": 5.0,
}
CLUSTER = Cluster(**FIELDS)
WORK = Work(
    images=100_000, epochs=3, batch=1000, image_seconds=0.001, parameter_bytes=1_000_000_000
)


def cluster(**changes) -> Cluster:
    return Cluster(**(FIELDS | changes))


def work(**changes) -> Work:
    return Work(**(vars(WORK) | changes))


def test_a_ring_passes_the_link_of_a_node_or_the_network_between_nodes():
    assert scaling.ring_seconds(CLUSTER, 10**9, 1) == 0.0
    assert scaling.ring_seconds(CLUSTER, 10**9, 2) == pytest.approx(2 * 1 / 2 / 100)
    # 2 * 7/8 GB over 10 GB/s, and 14 messages of 0.1 ms.
    assert scaling.ring_seconds(CLUSTER, 10**9, 8) == pytest.approx(0.175 + 0.0014)


def test_a_step_by_hand():
    one = scaling.step(work(view_bytes=10**10, encoded_bytes=10**11), CLUSTER, 8)
    assert one.compute == pytest.approx(0.010 + 125 * 0.001)
    assert one.allreduce == pytest.approx(0.1764)
    # 100 steps of an epoch: each node reads 0.1 GB of the view, all together 1 GB of images.
    assert one.storage == pytest.approx((4 * 0.1 + 1.0) / 2)
    assert one.network == pytest.approx((0.1 + 0.25) / 10 + 0.1764)
    assert one.decoding == 0.0
    assert (one.seconds, one.limit) == (one.storage, "storage")


def test_decoding_is_done_by_the_processors_of_the_nodes_that_train():
    slow = work(decode_seconds=0.01)
    assert scaling.step(slow, CLUSTER, 8).decoding == pytest.approx(1000 * 0.01 / 40)
    assert scaling.step(slow, CLUSTER, 1).decoding == pytest.approx(1000 * 0.01 / 5)  # its share


def test_messages_hide_behind_the_backward_as_far_as_it_goes():
    ring, compute = 0.1764, 0.135
    half = scaling.step(WORK, cluster(overlap=0.5), 8)
    assert half.allreduce == pytest.approx(ring - 0.5 * compute)
    assert scaling.step(work(parameter_bytes=10), cluster(overlap=1.0), 8).allreduce == 0.0


def test_more_workers_are_faster_and_less_efficient():
    wide = cluster(nodes=256, gpus=2)
    small = work(parameter_bytes=10**6)
    gpu_seconds = [n * scaling.step(small, wide, n).seconds for n in (1, 2, 8, 64, 128)]
    assert gpu_seconds == sorted(set(gpu_seconds))


def test_the_limit_of_a_step_is_its_slowest_part():
    assert Step(1.0, 0.5, 1.4, 0.0, 0.0).limit == "compute"
    assert Step(1.0, 1.1, 1.4, 0.0, 0.0).limit == "allreduce"
    assert Step(1.0, 0.5, 1.6, 0.0, 1.7).limit == "network"
    assert Step(1.0, 0.5, 1.6, 0.0, 0.0).limit == "decoding"


def test_trainings_go_side_by_side_as_far_as_gpus_reach():
    alone = scaling.trainings(WORK, CLUSTER, 1)
    # 100 steps of 0.01 + 1 seconds, three epochs.
    assert alone == Forecast(pytest.approx(303.0), "compute", 1)
    assert scaling.trainings(WORK, CLUSTER, 1, 8) == Forecast(pytest.approx(303.0), "compute", 8)
    assert scaling.trainings(WORK, CLUSTER, 1, 9).seconds == pytest.approx(2 * 303.0)
    pairs = scaling.trainings(WORK, CLUSTER, 2, 4)
    assert pairs.at_once == 4
    each = scaling.step(WORK, CLUSTER, 2, 4).seconds
    assert pairs.seconds == pytest.approx(scaling.GROUP_SECONDS + 300 * each)
    reading = work(encoded_bytes=10**11)
    one, four = (scaling.step(reading, CLUSTER, 2, count).storage for count in (1, 4))
    assert four == 4 * one == pytest.approx(2.0)  # they share the storage


def test_the_head_node_hears_every_worker_of_every_training():
    # 100 trainings of 8 workers every 5 s: 160 reports a second of 5 ms.
    assert scaling.head_load(CLUSTER, 100, 8, 1.0) == pytest.approx(0.8)
    assert scaling.head_load(CLUSTER, 100, 8, 50.0) == pytest.approx(0.08)
    assert scaling.head_load(CLUSTER, 400, 1, 1.0) == pytest.approx(2.0)
    short = work(images=1000, image_seconds=1e-6, parameter_bytes=4)
    many = scaling.trainings(short, cluster(nodes=500, fixed_ms=0.0), 1, 1000)
    assert many.limit == "head node"
    assert many.seconds == pytest.approx(1000 * 0.005 * 3)  # an epoch is as long as its reports


def test_a_cache_is_made_by_all_gpus():
    found = scaling.outputs(10**6, 0.002, 10**9, CLUSTER)
    assert found == Forecast(pytest.approx(250.0), "compute", 8)
    found = scaling.outputs(10**6, 0.0, 10**12, CLUSTER, encoded_bytes=10**12)
    assert found == Forecast(pytest.approx(1000.0), "storage", 8)
    found = scaling.outputs(10**6, 0.0, 1, CLUSTER, decode_seconds=0.01)
    assert found == Forecast(pytest.approx(250.0), "decoding", 8)


def test_a_cluster_says_how_fast_a_gpu_is_in_one_way_and_costs_all_its_nodes():
    assert CLUSTER.operations == 5e12
    assert CLUSTER.price(1800.0) == pytest.approx(4 * 3.0 / 2)
    for speeds in ({"tflops": None}, {"rate": 1.0}):
        with pytest.raises(ValidationError, match="one of rate"):
            cluster(**speeds)


def test_impossible_clusters_are_refused():
    for change in ({"nodes": 0}, {"network_gbit": 0}, {"utilisation": 1.1}, {"x": 1}):
        with pytest.raises(ValidationError):
            cluster(**change)
