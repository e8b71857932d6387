"""Networks of a store as files that need no raykd: safetensors, torch.export, ONNX."""

from raykd.export.folder import FORMATS, ExportedFile, ExportResult, export
from raykd.prediction.lookup import by_experiment, by_fingerprint, folder_name, is_fingerprint

__all__ = [
    "FORMATS",
    "ExportResult",
    "ExportedFile",
    "by_experiment",
    "by_fingerprint",
    "export",
    "folder_name",
    "is_fingerprint",
]
