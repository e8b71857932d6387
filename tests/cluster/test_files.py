"""The files that make clusters, read by what would read them; no cloud is needed for that."""

import copy
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.crd import narrower, of_crd
from tests.each import each

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
MANIFESTS = ("raycluster.yaml", "rayjob.yaml")
# The folder of KubeRay's published CRDs (ray.io_rayclusters.yaml.gz, ...), where it is at hand.
CRDS = os.environ.get("RAYKD_KUBERAY_CRDS")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def slim() -> dict[str, Any]:
    return json.loads((KUBERAY / "schema.json").read_text())


def ray_version() -> str:
    return next(
        line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )


# `ray up`


@pytest.mark.ray
@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_accepts_what_ray_up_reads(name):
    # Private functions of Ray, whose version is pinned: what `ray up` calls first.
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(CLUSTER / name)))


@pytest.mark.ray
@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(max_worker=3),
        lambda config: config.update(head_node_type="haed"),
        lambda config: config["available_node_types"]["gpu-spot"].update(max_worker=3),
        lambda config: config["available_node_types"]["gpu-spot"].update(min_workers=9),
        lambda config: config["available_node_types"]["gpu-spot"]["resources"].update(GPU=0.5),
    ],
)
def test_ray_refuses_a_mistake_in_them(spoil):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read(CLUSTER / "aws.yaml")
    spoil(config)
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        validate_config(prepare_config(config))


@each("name", ["aws.yaml", "gcp.yaml"])
def test_a_cluster_in_a_cloud_costs_a_head_and_is_closed(name):
    config = read(CLUSTER / name)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    [worker] = [kind for kind in config["available_node_types"].values() if kind is not head]
    assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    assert worker["resources"]["GPU"] >= 1 and worker["idle_timeout_s"] <= 600
    assert "spot" in json.dumps(worker["node_config"]).lower()
    assert "spot" not in json.dumps(head["node_config"]).lower()
    # Commands that are not stated are Ray's own, which install other versions.
    for key in ("setup", "head_setup", "worker_setup", "initialization"):
        assert isinstance(config[f"{key}_commands"], list)
    starts = [" ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker")]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    watch = f"~/raykd/cluster/spot_notice.py {config['provider']['type']} -- ray drain-node"
    assert watch in starts[1] and "RAY_ADDRESS=$RAY_HEAD_IP:6379 setsid" in starts[1]
    assert not re.search(r"0\.0\.0\.0", (CLUSTER / name).read_text())
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


# KubeRay


@each("name", MANIFESTS)
def test_a_manifest_has_only_fields_that_there_are(name):
    jsonschema.Draft202012Validator.check_schema(slim())
    jsonschema.validate(read(KUBERAY / name), slim())


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def renamed(part: dict[str, Any], old: str, new: str) -> None:
    part[new] = part.pop(old)


MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a field that is no field": lambda c: renamed(
        c["workerGroupSpecs"][0], "maxReplicas", "maxReplica"
    ),
    "no name of the group": lambda c: c["workerGroupSpecs"][0].pop("groupName"),
    "no such autoscaler": lambda c: c["autoscalerOptions"].update(version="v3"),
    "a number as text": lambda c: c["workerGroupSpecs"][0].update(replicas="0"),
    "text as a number": lambda c: c["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    "no such mode": lambda c: c["authOptions"].update(mode="tokens"),
    "a container's typo": lambda c: renamed(
        c["headGroupSpec"]["template"]["spec"]["containers"][0], "volumeMounts", "volumeMount"
    ),
    "no head": lambda c: c.pop("headGroupSpec"),
}


@each("name", MANIFESTS)
def test_a_mistake_in_a_manifest_is_found(name):
    for make_mistake in MISTAKES.values():
        manifest = read(KUBERAY / name)
        make_mistake(cluster_of(manifest))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(manifest, slim())


@each("name", MANIFESTS)
def test_a_cluster_on_kubernetes_scales_from_zero_on_spot_and_asks_for_a_token(name):
    cluster = cluster_of(read(KUBERAY / name))
    assert cluster["rayVersion"] == ray_version()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [group] = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    claim = read(KUBERAY / "store.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in (cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        shared = volumes["shared"]["persistentVolumeClaim"]["claimName"]
        assert shared == claim["metadata"]["name"]
        [container] = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"/dev/shm", "/shared"}
        assert container["resources"]["limits"] == container["resources"]["requests"]
    worker = group["template"]["spec"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert worker["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert {one["key"] for one in worker["tolerations"]} >= {"nvidia.com/gpu"}


def test_both_manifests_make_the_same_cluster():
    first, second = (cluster_of(read(KUBERAY / name)) for name in MANIFESTS)
    assert first == second


@pytest.mark.skipif(CRDS is None, reason="RAYKD_KUBERAY_CRDS names no folder of KubeRay's CRDs")
def test_the_schema_asks_for_no_less_than_the_crds():
    assert CRDS is not None
    schema = slim()
    for name, kind, plural in zip(
        MANIFESTS, ("RayCluster", "RayJob"), ("rayclusters", "rayjobs"), strict=True
    ):
        with gzip.open(Path(CRDS) / f"ray.io_{plural}.yaml.gz", "rt") as file:
            crd = of_crd(yaml.load(file, Loader=yaml.CSafeLoader), "v1")
        whole = jsonschema.Draft202012Validator(crd)
        manifest = read(KUBERAY / name)
        whole.validate(manifest)
        for mistake in MISTAKES.values():
            spoilt = copy.deepcopy(manifest)
            mistake(cluster_of(spoilt))
            assert not whole.is_valid(spoilt)
        assert narrower(schema["$defs"][kind], crd, schema["$defs"]) == []
        wider = copy.deepcopy(schema)
        wider["$defs"]["cluster"]["properties"]["rayVersoin"] = {"type": "string"}
        [fault] = {*narrower(wider["$defs"][kind], crd, wider["$defs"])}
        assert fault.endswith("rayVersoin: is no field")


# Jobs, Slurm, the image


def test_the_environment_of_a_job_brings_no_packages():
    environment = read(CLUSTER / "runtime_env.yaml")
    assert environment == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    job = read(KUBERAY / "rayjob.yaml")["spec"]["runtimeEnvYAML"]
    assert yaml.safe_load(job) == environment


def test_bash_reads_the_script_for_slurm():
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, script], check=True)
    told = subprocess.run(["bash", script], check=False, capture_output=True, text=True)
    assert told.returncode == 2 and "say what to run" in told.stderr
    text = script.read_text()
    assert (
        "--requeue" in text and "--signal=B:TERM@" in text and "--dashboard-host=127.0.0.1" in text
    )
    assert os.access(script, os.X_OK)


def test_the_image_is_made_of_what_there_is():
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    copied = [word for first, *rest in words if first == "COPY" for word in rest[:-1]]
    sources = {word for word in copied if not word.startswith("--")}
    assert sources == {
        "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "raykd", "experiments",
        "cluster/spot_notice.py",
    }  # fmt: skip
    assert all((ROOT / source).exists() for source in sources)
    kept = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in kept if line.startswith("!")} == sources
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = "\n".join(lines)
    extras = re.search(r'--constraint constraints.txt +"\.\[([a-z,]+)\]"', text)
    assert extras and {*extras[1].split(",")} == {*project["project"]["optional-dependencies"]} - {
        "dev",
        "docs",
    }
    assert "USER ray" in lines and "ENV HOME=/home/ray" in text
    assert "/opt/" not in text  # login shells, which `ray up` uses, forget PATH
    python = re.search(r"ARG PYTHON=3\.(\d+)", text)
    assert python and int(python[1]) >= 11
    assert project["project"]["requires-python"] == ">=3.11"
    for name in ("aws.yaml", "gcp.yaml"):
        image = read(CLUSTER / name)["docker"]["image"]
        assert image.rpartition(":")[2] == project["project"]["version"]
    for manifest in MANIFESTS:
        assert f"raykd:{project['project']['version']}" in (KUBERAY / manifest).read_text()


def test_every_package_of_the_image_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for key in extras for one in extras[key])]
    pinned = {
        line.partition("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {re.split(r"[\[>=<~! ]", one)[0] for one in wanted}
    assert names - pinned == set()


# What the texts name


def texts() -> Iterator[Path]:
    others = (".json", ".png", ".pyc")
    yield from (path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix not in others)


def test_every_file_that_is_named_is_there():
    named = re.compile(r"(?<![\w/.-])((?:experiments|cluster|raykd|tests)/[\w./-]+\.\w+)")
    found = {name for path in texts() for name in named.findall(path.read_text())}
    assert {"experiments/imagenet_skd.py", "cluster/runtime_env.yaml"} <= found
    assert [name for name in sorted(found) if not (ROOT / name).is_file()] == []


def commands() -> Iterator[list[str]]:
    """The words of every `raykd ...` and `python experiments/...` in the files of `cluster/`."""
    from raykd.cli import main

    start = re.compile(rf"(raykd (?:{'|'.join(main.commands)})|python experiments/\w+\.py)\b")
    for path in texts():
        text = re.sub(r"\\?\n *(?=--)", " ", path.read_text())  # a command on several lines
        for line in text.splitlines():
            for match in start.finditer(line):
                yield re.split(r"`| #|;", line[match.start() :])[0].split()


@pytest.mark.slow  # imports all that the scripts need
def test_every_option_of_a_command_is_one():
    from click.testing import CliRunner

    from raykd.cli import main

    helps: dict[str, str] = {}
    seen = [*commands()]
    assert len(seen) > 5
    for words in seen:
        script = words[1]
        if script not in helps and words[0] == "raykd":
            helps[script] = CliRunner().invoke(main, [script, "--help"]).output
        elif script not in helps:
            call = [sys.executable, str(ROOT / script), "--help"]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
            helps[script] = done.stdout
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b", helps[script]), f"{' '.join(words)}: {option}"


def test_every_key_of_scale_that_is_named_is_one():
    from raykd.config.experiment import Scale

    named = {key for path in texts() for key in re.findall(r"scale\.([a-z_]+)", path.read_text())}
    assert {"gpus", "workers", "wait_minutes"} <= named
    assert named - {*Scale.model_fields} == set()
