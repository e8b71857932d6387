"""A cache as a dataset of Ray Data."""

import numpy as np

import raykd
from tests.launch.ray_marks import RAY

pytestmark = RAY
STUDENT = raykd.Student(
    "resnet8",
    data=raykd.Data("digits", holdout=0.1, limit=96, augment={"pad": 1}),
    teacher=raykd.Teacher("resnet14", optim={"epochs": 1, "batch": 32}),
    method="rkd",
    optim={"epochs": 2, "batch": 32},
)


def test_a_cache_is_a_dataset_of_ray(cluster, tmp_path):
    caches = raykd.cache(STUDENT, tmp_path / "store", workers=0, quiet=True)
    for cache in caches:
        rows = sorted(cache.to_ray().take_all(), key=lambda row: (row["view"], row["id"]))
        table = cache.to_arrow()
        assert [row["id"] for row in rows] == table["id"].to_pylist()
        assert [row["view"] for row in rows] == table["view"].to_pylist()
        for name in table.column_names[2:]:
            stored = np.stack(table[name].to_numpy())
            assert np.array_equal(np.stack([row[name] for row in rows]), stored)
