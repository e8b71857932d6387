"""Image formats that are read, by the suffixes of their names.

Other formats of Pillow are not read: for EPS, it runs another program on the content of the file.
The suffix decides which files of a folder are images; the bytes of each decide its format.
"""

from PIL import features

SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",  # the first frame
}
if "avif" in features.modules and features.check("avif"):
    SUFFIXES[".avif"] = "AVIF"
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))  # as Pillow calls them


def suffix(name: str) -> str:
    """The suffix of a file's name in small letters, with its dot."""
    name = name.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def is_image(name: str) -> bool:
    """True for the name of an image that can be read."""
    return suffix(name) in SUFFIXES
