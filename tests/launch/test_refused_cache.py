"""A cache that is refused when it is compared with the teacher at the end of its build."""

from click.testing import CliRunner

from raykd.cli import main

# As many axes as images have directions lose nothing where they are fitted, and much elsewhere.
EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 24, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 8}}
  method: mimic_embedding
  embedding_codec: {name: pca, rank: 23, tolerance: 0.001}
  optim: {epochs: 2, batch: 8}
scale: {workers: 0}
"""


def test_no_student_reads_a_cache_that_was_refused(tmp_path):
    file, store = tmp_path / "refused.yaml", tmp_path / "store"
    file.write_text(EXPERIMENT)
    shards: list[set[str]] = []
    for _ in range(2):  # the second time there is nothing left to compute
        done = CliRunner().invoke(main, ["run", str(file), "--store", str(store)])
        assert done.exit_code == 2, (done.output, done.exception)
        assert "run.embedding_codec: pca 23 loses" in done.stderr
        assert not [*store.glob("students/*/result.json")]
        shards.append({str(path) for path in store.glob("caches/*/view-*.arrow")})
    assert shards[0] == shards[1] != set()
