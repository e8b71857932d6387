"""The upload of a working directory by `ray job submit`."""

import zipfile

from ray._private.runtime_env.packaging import create_package

from raykd.storage.store import Store


def test_a_store_in_a_checkout_is_left_out(tmp_path):
    checkout, package = tmp_path / "checkout", tmp_path / "package.zip"
    store = Store(checkout / "results" / "store")
    store.ensure_root()
    (store.root / "students").mkdir()
    (store.root / "students" / "weights.safetensors").write_bytes(bytes(100))
    (checkout / "experiment.py").write_text("")
    create_package(str(checkout), package, include_gitignore=True)
    files = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert files == {"experiment.py"}
