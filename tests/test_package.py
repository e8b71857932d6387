"""The package as users get it: a wheel and an sdist, in an environment that has nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not UV.is_file(), reason="no uv beside this Python"),
]
QUICK = ("run.optim.epochs=1", "run.teacher.optim.epochs=1", "grid.run.seed=[0]")


def uv(*words: object, **environment: str) -> None:
    """Call uv, which takes packages from the registry that pip was told of."""
    words = (UV, *words)
    done = subprocess.run(
        [str(word) for word in words],
        env=os.environ | index() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def index() -> dict[str, str]:
    """The registry of pip's configuration, as a variable of uv."""
    words = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    url = (
        os.environ.get("PIP_INDEX_URL")
        or subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    )
    return {"UV_DEFAULT_INDEX": url} if url else {}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel, which is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_both_have_all_that_raykd_reads_and_nothing_else(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = ROOT / "raykd"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in code.rglob("*")
        if path.is_file() and path.suffix in (".py", ".j2", ".yaml", ".md")
    }
    assert files == expected
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= expected | {"LICENSE", "README.md", "pyproject.toml"}


def test_the_wheel_runs_the_demo_in_an_empty_environment(built, tmp_path):
    place = tmp_path / "empty"
    uv("venv", "--quiet", "--python", sys.executable, place)
    python = place / "bin" / "python"
    words = ("--constraints", ROOT / "constraints.txt", built[1])
    uv("pip", "install", "--quiet", "--python", python, *words)
    words = ["demo", *QUICK, "scale.workers=0", "scale.teacher_workers=0", "scale.rules=[]"]
    done = subprocess.run(
        [str(place / "bin" / "raykd"), *words, "--store", str(tmp_path / "store")],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "spherical_kd" in done.stdout
    shutil.rmtree(place)  # gigabytes, which pytest would keep
