"""JPEG files that end after some of their rows: the rest need not be decoded.

A decoder reads a file from its top, so one whose header promises fewer rows is done sooner. Those
that are wanted have the pixels that they have in the whole image.
"""

_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # tables and notes
_BASELINE, _SCAN, _END = 0xC0, b"\xff\xda", b"\xff\xd9"
_BELOW = 2  # more rows, whose colours are mixed into the last one that is wanted


def trimmed(data: bytes, rows: int) -> tuple[bytearray, int] | None:
    """The file cut down to its first `rows` rows of pixels and a few more, and how many it has.

    None where nothing is saved, where the file is not of the baseline kind with all its colours
    side by side, and where its end is missing. A strict decoder then complains of bytes that
    follow after the last row, once it has the pixels.
    """
    place, frame, rows = 2, 0, rows + _BELOW
    if data[-2:] != _END:
        return None
    while data[place : place + 2] != _SCAN:
        if place + 20 > len(data) or data[place] != 0xFF:
            return None
        if data[place + 1] == _BASELINE:
            frame = place
        elif data[place + 1] not in _SEGMENTS:
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    if not frame or data[place + 4 : place + 5] != data[frame + 9 : frame + 10]:
        return None
    # Whole rows of blocks are decoded, as high as the finest colour's.
    sides = data[frame + 11 : frame + 11 + 3 * data[frame + 9] : 3]
    block = 8 * max(side & 15 for side in sides)
    height = int.from_bytes(data[frame + 5 : frame + 7], "big")
    if -(-rows // block) >= -(-height // block):
        return None
    short = bytearray(data)
    short[frame + 5 : frame + 7] = rows.to_bytes(2, "big")
    return short, rows
