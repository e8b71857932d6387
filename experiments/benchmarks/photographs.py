"""Photographs for the benchmarks: synthetic, or from a folder.

Shapes: H, W pixels.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((375, 500), (333, 500), (500, 375), (375, 500), (500, 333), (480, 640))  # (H, W), in turns
QUALITY = 92
CLASSES = 8
_SPREAD, _GRAIN = 50.0, 1.5  # standard deviations, in grey levels
_TINT = 0.35  # amplitude of the colour fields relative to the brightness


def photograph(seed: int, height: int, width: int) -> bytes:
    """A JPEG file with the spectrum of a photograph: amplitudes fall with the frequency f.

    They go as 1 / f**a with a from 1.05 to 1.45 (natural images: about 1.2, Field 1987), so that
    some pictures have more detail than others: 0.3 to 0.7 bytes per pixel.
    """
    source = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / max(height, width)) ** -source.uniform(1.05, 1.45)

    def field() -> np.ndarray:
        noise = source.standard_normal((2, *amplitude.shape), dtype=np.float32)
        smooth = np.fft.irfft2((noise[0] + 1j * noise[1]) * amplitude, s=(height, width))
        return smooth / smooth.std()

    light, warm, cold = field(), _TINT * field(), _TINT * field()
    pixels = np.stack([light + warm, light, light + cold], axis=-1) * _SPREAD + 120
    pixels += _GRAIN * source.standard_normal((height, width, 1), dtype=np.float32)
    out = io.BytesIO()
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def photographs(folder: Path, count: int, path: Path | None = None) -> None:
    """Put `count` JPEG files into class folders of `folder`.

    They are synthetic, or links to files spread evenly over those below `path`.
    """
    files = [] if path is None else sorted(p for p in path.rglob("*") if _is_jpeg(p))
    if path is not None and len(files) < count:
        raise SystemExit(f"{path}: expected {count} JPEG files or more, found {len(files)}")
    for number in range(count):
        target = folder / f"class{number % CLASSES}" / f"{number:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if files:
            target.symlink_to(files[number * len(files) // count].resolve())
        else:
            target.write_bytes(photograph(number, *SIZES[number % len(SIZES)]))


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()
