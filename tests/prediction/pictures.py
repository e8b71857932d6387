"""Test images of a student as files."""

from pathlib import Path

from PIL import Image

from raykd.data.dataset import open_images


def save_pictures(store, student, folder: Path, count: int) -> Path:
    """Save the first test images of a student's data as PNG files named by their rows."""
    _, test = open_images(store, student.data)
    for row in range(count):
        Image.fromarray(test.pixels[row].numpy()).save(folder / f"{row}.png")
    return folder
