"""Tensors in Arrow files: what comes back, what is not read, what is refused."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from raykd.core.errors import CacheCorrupt
from raykd.storage import arrow
from tests.each import each

COLUMNS = {
    "half": torch.tensor([0.0, -0.0, 65504, 6e-8, float("inf"), float("nan")]).half(),
    "single": torch.tensor([0.0, -0.0, 3.4e38, 1e-45, float("-inf"), float("nan")]),
    "byte": torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8),
    "long": torch.tensor([0, -1, 2**62, -(2**63), 2**63 - 1, 7]),
}
BITS = {torch.float16: torch.int16, torch.float32: torch.int32}


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """True where two tensors have equal dtypes, shapes and bits; NaN equals itself."""
    bits = BITS.get(one.dtype, one.dtype)
    return one.dtype == two.dtype and torch.equal(one.view(bits), two.view(bits))


@each("shape", [(6,), (3, 2), (1, 6), (6, 1)])
def test_every_dtype_comes_back_bit_for_bit(tmp_path, shape):
    columns = {name: value.view(shape) for name, value in COLUMNS.items()}
    # Columns of one file have equal lengths; their widths may differ.
    columns["wide"] = torch.randn(shape[0], 5, generator=torch.Generator().manual_seed(0))
    arrow.write(tmp_path / "x.arrow", columns)
    found = arrow.read(tmp_path / "x.arrow")
    assert list(found) == list(columns)
    for name, value in columns.items():
        assert same(found[name], value), name


def test_a_tensor_with_strides_comes_back_as_it_looked(tmp_path):
    value = torch.arange(12).view(3, 4).T
    arrow.write(tmp_path / "x.arrow", {"x": value, "y": torch.arange(8)[::2]})
    found = arrow.read(tmp_path / "x.arrow")
    assert torch.equal(found["x"], value)
    assert torch.equal(found["y"], torch.tensor([0, 2, 4, 6]))


def test_empty_columns_keep_their_width(tmp_path):
    for dtype in [value.dtype for value in COLUMNS.values()]:
        columns = {"x": torch.empty(0, dtype=dtype), "y": torch.empty(0, 5, dtype=dtype)}
        arrow.write(tmp_path / "x.arrow", columns)
        found = arrow.read(tmp_path / "x.arrow")
        assert {name: (v.shape, v.dtype) for name, v in found.items()} == {
            "x": ((0,), dtype),
            "y": ((0, 5), dtype),
        }


def test_the_checksum_is_that_of_the_bytes_and_of_the_file(tmp_path):
    data = arrow.pack(COLUMNS)
    checksum = arrow.write(tmp_path / "x.arrow", COLUMNS)
    assert (tmp_path / "x.arrow").read_bytes() == data
    assert checksum == arrow.checksum(data) == arrow.file_checksum(tmp_path / "x.arrow")
    assert len(checksum) == 24
    (tmp_path / "x.arrow").write_bytes(data[:-1] + b"?")
    assert arrow.file_checksum(tmp_path / "x.arrow") != checksum


def resident() -> int:
    """Bytes of memory that belong to this process alone or that it has touched in files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def mapped(path: Path) -> list[range]:
    """The addresses at which a file is mapped into this process."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if line[5:] == [str(path)]]
    return [range(int(start, 16), int(stop, 16)) for start, stop in spans]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_columns_are_views_of_the_file_and_nothing_is_read_before_it_is_used(tmp_path):
    path = (tmp_path / "big.arrow").resolve()
    columns = {"x": torch.ones(1 << 20, 16), "y": torch.arange(1 << 20)}
    arrow.write(path, columns)
    del columns
    before = resident()
    found = arrow.read(path)
    grown = resident() - before
    for value in found.values():
        last = value.data_ptr() + value.numel() * value.element_size() - 1
        assert any(value.data_ptr() in span and last in span for span in mapped(path))
    assert grown < 8 << 20, f"{grown} bytes of a file of 72 MB were read"
    assert found["x"][-1].tolist() == [1.0] * 16


def test_two_readers_share_nothing_but_the_file(tmp_path):
    arrow.write(tmp_path / "x.arrow", {"x": torch.arange(1000)})
    one, two = arrow.read(tmp_path / "x.arrow")["x"], arrow.read(tmp_path / "x.arrow")["x"]
    assert one.data_ptr() != two.data_ptr()
    del one
    assert torch.equal(two, torch.arange(1000))


def test_an_open_column_outlives_its_file(tmp_path):
    arrow.write(tmp_path / "x.arrow", {"x": torch.arange(1000)})
    found = arrow.read(tmp_path / "x.arrow")["x"]
    arrow.write(tmp_path / "x.arrow", {"x": torch.zeros(1000)})
    (tmp_path / "x.arrow").unlink()
    assert torch.equal(found, torch.arange(1000))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CacheCorrupt) as error:
        arrow.read(tmp_path / "x.arrow")
    assert str(error.value) == f"{tmp_path / 'x.arrow'}: the file is missing"


def assert_refused(path: Path) -> None:
    with pytest.raises(CacheCorrupt) as error:
        arrow.read(path)
    assert str(error.value).startswith(f"{path}: not an Arrow file that raykd wrote (")


@pytest.mark.slow
def test_a_file_cut_off_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "x.arrow"
    whole = arrow.pack(COLUMNS)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_refused(path)


def test_what_is_no_arrow_file_is_refused(tmp_path):
    for data in [b"", b"\0", b"garbage" * 1000, b"ARROW1\0\0" + b"\xff" * 500]:
        (tmp_path / "x.arrow").write_bytes(data)
        assert_refused(tmp_path / "x.arrow")


def test_a_folder_is_refused(tmp_path):
    assert_refused(tmp_path)


def write_batches(path: Path, *batches: pa.RecordBatch) -> None:
    with pa.ipc.new_file(str(path), batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


FOREIGN = {
    "a type that we never write": pa.array(["a", "b"]),
    "integers of 32 bits": pa.array([1, 2], pa.int32()),
    "a missing value": pa.array([1, None], pa.int64()),
    "lists of any length": pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32())),
    "a missing row": pa.array([[1.0], None], pa.list_(pa.float32(), 1)),
}


def test_an_arrow_file_of_another_form_is_refused(tmp_path):
    for column in FOREIGN.values():
        write_batches(tmp_path / "x.arrow", pa.record_batch([column], names=["x"]))
        assert_refused(tmp_path / "x.arrow")


def test_a_file_of_several_batches_is_refused(tmp_path):
    batch = pa.record_batch([pa.array([1, 2])], names=["x"])
    write_batches(tmp_path / "x.arrow", batch, batch)
    assert_refused(tmp_path / "x.arrow")
