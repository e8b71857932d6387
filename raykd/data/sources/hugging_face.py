"""Datasets of Hugging Face's library `datasets`, as it writes them to a folder.

Three layouts, all of Arrow or Parquet files beside JSON, which are read without the library:

    state.json, dataset_info.json, data-*.arrow    Dataset.save_to_disk: all data
    dataset_dict.json, SPLIT/...                   DatasetDict.save_to_disk: such a folder a split
    dataset_info.json, NAME-SPLIT*.parquet         download_and_prepare, as `hub_datasets` calls it
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from raykd.core.errors import DataError
from raykd.core.safe_names import is_below
from raykd.data.sources import foreign_text
from raykd.data.sources.class_labels import parse_names
from raykd.data.sources.files import Files
from raykd.data.sources.splits import SPLITS, UNLABELLED, About, Dataset
from raykd.data.sources.table_batches import IMAGE_COLUMNS, LABEL_COLUMNS
from raykd.data.sources.tables import Rows, dataset_of, open_rows

SAVED, SAVED_SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
_UNKNOWN = -1  # label of the images of a test split whose labels are kept secret
_LABEL_TYPES = re.compile(r"u?int\d+|(large_)?string")


def is_saved(files: Files) -> bool:
    """True for a folder that `save_to_disk` wrote."""
    return files.has(SAVED) or files.has(SAVED_SPLITS)


def read_saved(location: str, labels: bool = True) -> Dataset:
    """The dataset in a folder of `datasets`.

    Its splits are found by name: train, test (or testing), validation (or val, valid), which is
    the test split where there is no other, or one whose labels are all -1. A single split is all
    data. Images are the column with the feature `Image`, labels that with `ClassLabel`, whose
    names are those of the classes; of several columns, one that is called as in tables (image, img;
    label, labels, fine_label). Without a ClassLabel, numbers or texts in a column called so will
    do.
    Raises `DataError`, naming the columns, where there is none, or more than one.
    """
    files = Files.at(location)
    features, found = _layout(files)
    chosen = _by_role(files, found)
    image = _column(files, features, "Image", IMAGE_COLUMNS)
    label = _label_column(files, features) if labels else None
    columns = {"image_columns": (image,), "label_columns": (label,) if label else LABEL_COLUMNS}
    rows = open_rows(files, {"train": chosen["train"]}, labels, **columns)
    for role in ("test", "val"):
        if role in chosen and "test" not in rows:
            part = open_rows(files, {"test": chosen[role]}, labels, **columns)
            if not labels or not _is_secret(part["test"]):
                rows |= part
    names = features[label].get("names") if label else None
    declared = () if names is None else parse_names(names, f"{files.describe(INFO)}, {label!r}")
    read = {file.name for part in rows.values() for file in part.files}
    left = {split: sum(name not in read for name in part) for split, part in found.items()}
    unread = {f"tables of split {split!r}": count for split, count in left.items() if count}
    return dataset_of(rows, declared, files.walk(), About(unread=unread, declared=bool(declared)))


def _layout(files: Files) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The features of the columns, and the names of the table files of each split."""
    if files.has(SAVED_SPLITS):
        splits = _json(files, SAVED_SPLITS).get("splits")
        if not isinstance(splits, list) or not splits or not all(map(foreign_text.is_text, splits)):
            raise DataError(f"{files.describe(SAVED_SPLITS)}: expected the names of splits")
        tables = {split: _saved_tables(files, f"{split}/") for split in splits}
        return _features(files, f"{splits[0]}/{INFO}"), tables
    if files.has(SAVED):
        return _features(files, INFO), {"train": _saved_tables(files, "")}
    if not files.has(INFO):
        raise DataError(
            f"{files.describe('')}: expected a folder that save_to_disk wrote, with {SAVED} or "
            f"{SAVED_SPLITS}, found neither; for folders of images and for tables of other "
            "programs set run.data.name to folder or table"
        )
    return _features(files, INFO), _prepared_tables(files)


def _saved_tables(files: Files, folder: str) -> list[str]:
    """The table files of a saved split, in their order."""
    state = _json(files, f"{folder}{SAVED}")
    parts = state.get("_data_files")
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and foreign_text.is_text(part.get("filename")) for part in parts
    ):
        raise DataError(f"{files.describe(folder + SAVED)}: expected the names of data files")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{files.describe(folder + SAVED)}: its rows are chosen by an index, as versions of "
            "datasets before 2.0 wrote it; save it again by flatten_indices().save_to_disk(FOLDER)"
        )
    names = [part["filename"] for part in parts]
    for name in names:
        if not is_below(name):
            raise DataError(f"{files.describe(folder + SAVED)}: {name!r} is not a file in there")
    return [f"{folder}{name}" for name in names]


def _prepared_tables(files: Files) -> dict[str, list[str]]:
    """The table files of each split of a prepared folder, in their order."""
    splits = _json(files, INFO).get("splits")
    names = [PurePosixPath(entry.name).name for entry in files.walk()]
    tables = {}
    for split, about in splits.items() if isinstance(splits, dict) else ():
        title = about.get("dataset_name") if isinstance(about, dict) else None
        form = re.compile(re.escape(f"{title}-{split}") + r"(-\d{5}-of-\d{5})?\.(parquet|arrow)")
        tables[split] = sorted(filter(form.fullmatch, names))
    if not any(tables.values()):
        raise DataError(f"{files.describe('')}: has no table of a split that {INFO} names")
    return {split: part for split, part in tables.items() if part}


def _by_role(files: Files, found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The table files of train, test and val; a single split is `train`."""
    roles = {}
    for role, words in SPLITS.items():
        named = [split for split in found if split.lower() in words]
        if named:
            roles[role] = found[named[0]]
    if "train" not in roles and len(found) == 1:
        roles = {"train": next(iter(found.values()))}
    if "train" not in roles:
        raise DataError(
            f"{files.describe('')}: none of its splits {', '.join(map(repr, found))} is called "
            "'train'; rename one, or save one of them alone, which is then divided"
        )
    return roles


def _is_secret(rows: Rows) -> bool:
    """True for a split whose labels say nothing."""
    return all(label == _UNKNOWN for label in rows.labels())


def _column(
    files: Files,
    features: Mapping[str, Any],
    kind: str,
    usual: Sequence[str],
    others: Sequence[str] = (),
    hint: str = "",
) -> str:
    """The column with a feature of that kind: the only one, or one that is called as usual."""
    columns = [name for name, feature in features.items() if feature.get("_type") == kind]
    columns = columns or [*others]
    if len(columns) == 1:
        return columns[0]
    called = [name for name in usual if name in columns]
    if called:
        return called[0]
    listed = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
    number = f"{len(columns)} columns" if columns else "no column"
    raise DataError(
        f"{files.describe('')}: {number} with the feature {kind}, expected one, or one called "
        f"{' or '.join(usual)}; there are: {listed}; use cast_column or rename_column, and save it "
        f"again{hint}"
    )


def _label_column(files: Files, features: Mapping[str, Any]) -> str:
    """The column of labels."""
    plain = [
        name
        for name in LABEL_COLUMNS
        if name in features and _LABEL_TYPES.fullmatch(str(features[name].get("dtype")))
    ]
    hint = f"; {UNLABELLED}"
    return _column(files, features, "ClassLabel", LABEL_COLUMNS, plain[:1], hint)


def _kind(feature: Mapping[str, Any]) -> str:
    """The kind of a feature, for messages."""
    kind = feature.get("_type")
    return foreign_text.excerpt(feature.get("dtype") if kind == "Value" else kind)[1:-1]


def _features(files: Files, name: str) -> dict[str, Any]:
    """The features of the columns, by name; those that are lists are left out."""
    features = _json(files, name).get("features")
    if not isinstance(features, dict):
        raise DataError(f"{files.describe(name)}: expected the features of columns")
    return {key: value for key, value in features.items() if isinstance(value, dict)}


def _json(files: Files, name: str) -> dict[str, Any]:
    """The JSON object in a file."""
    value = foreign_text.parse_json(files.read(name), files.describe(name))
    if not isinstance(value, dict):
        raise DataError(f"{files.describe(name)}: expected an object, found another value")
    return value
