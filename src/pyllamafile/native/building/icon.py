"""Draws the icon that Windows shows for a llamafile, so that no binary stands in the sources.

A build step of CMakeLists.txt: ``python icon.py OUT.ico``.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

PICTURE = """\
................
..##......##....
..#o#....#o#....
..#o######o#....
..#oooooooo#....
..#o#oooo#o#....
..#oooooooo#....
..#ooo==ooo#....
..#oo=##=oo#....
..#ooo==ooo#....
...#oooooo#.....
...#oooooo####..
...#ooooooooo##.
...#oooooooooo#.
...#oooooooooo#.
...############.
""".splitlines()

# Blue, green, red, and a byte of nothing, as in a RGBQUAD.
COLOURS = {
    ".": (0, 0, 0, 0),
    "#": (43, 52, 64, 0),
    "o": (196, 226, 245, 0),
    "=": (150, 190, 225, 0),
}
SCALES = (1, 2, 3, 4)  # 16, 32, 48 and 64 pixels


def image(scale: int) -> bytes:
    """A bitmap of 16 colours as an icon holds it.

    BITMAPINFOHEADER with twice the height, palette, rows from the bottom, then a mask of what
    is transparent (Win32, "Icons in Win32").
    """
    side = len(PICTURE) * scale
    palette = list(COLOURS)
    header = struct.pack("<IiiHHIIiiII", 40, side, 2 * side, 1, 4, 0, 0, 0, 0, 16, 0)
    table = b"".join(bytes(colour) for colour in COLOURS.values()).ljust(16 * 4, b"\0")
    rows = [[dot for dot in row for _ in range(scale)] for row in PICTURE for _ in range(scale)]
    pixels = b"".join(_row([palette.index(dot) for dot in row], 4) for row in reversed(rows))
    mask = b"".join(_row([int(dot == ".") for dot in row], 1) for row in reversed(rows))
    return header + table + pixels + mask


def _row(values: list[int], bits: int) -> bytes:
    """Pixels of one row, the first in the highest bits, filled up to four bytes."""
    text = "".join(f"{value:0{bits}b}" for value in values)
    return int(text.ljust(-(-len(text) // 32) * 32, "0"), 2).to_bytes(
        -(-len(text) // 32) * 4, "big"
    )


def icon() -> bytes:
    """The whole file: ICONDIR, an ICONDIRENTRY for each size, the images."""
    images = [image(scale) for scale in SCALES]
    at = 6 + 16 * len(images)
    entries = b""
    for scale, data in zip(SCALES, images, strict=True):
        side = len(PICTURE) * scale
        entries += struct.pack("<4B2H2I", side, side, 16, 0, 1, 4, len(data), at)
        at += len(data)
    return struct.pack("<3H", 0, 1, len(images)) + entries + b"".join(images)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(icon())
