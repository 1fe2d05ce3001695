"""A program as what it has beside another one: FORMAT.md, section 13. Pure.

A second program for GPUs has all that the plain one of its system has. So it is compressed by
Zstandard with the plain one as a prefix, and what both have costs next to nothing.
"""

from __future__ import annotations

import struct

from pyllamafile.errors import DamagedError, RefusedError

# Of Zstandard: the best that it has. It then looks back over both programs.
_LEVEL = 22

WAY = (1, _LEVEL)
"""What `made` makes of the same programs depends on this: the first is one more when it makes
other bytes of them."""

_SECTION = struct.Struct("<8s6I2HI")
_PERSONA = b".persona"


def made(program: bytes, plain: bytes) -> bytes:
    """A program as it is in a file: a frame of Zstandard.

    The same bytes come out for the same bytes in and the same version of the package zstandard.

    Args:
        program: The second program.
        plain: The plain one of the same system.

    Raises:
        RefusedError: The plain one is none that another can be made of.
    """
    import zstandard  # of the extra `runtimes`

    prefix = zstandard.ZstdCompressionDict(common(plain), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(program),
        dict_size=len(prefix),
        write_dict_id=False,
    )
    packed = zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters).compress(
        program
    )
    return bytes(packed)


def program(frame: bytes, plain: bytes, size: int) -> bytes:
    """The program itself.

    Args:
        frame: It as `made` makes it.
        plain: The plain program of the same system: the linker's, or the head of a file.
        size: How many bytes it has.

    Raises:
        DamagedError: It is damaged, or made of another plain program.
    """
    import zstandard  # of the extra `runtimes`

    prefix = zstandard.ZstdCompressionDict(common(plain), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        if zstandard.frame_content_size(frame) != size:
            raise DamagedError("the program for GPUs is damaged: it has another size")
        return bytes(zstandard.ZstdDecompressor(prefix).decompress(frame, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise DamagedError(f"the program for GPUs is damaged: {error}") from None


def common(plain: bytes) -> bytes:
    """What of a plain program no file changes.

    Of a Windows program that is its sections: the headers change when a script or a persona comes
    in.

    Raises:
        RefusedError: It is a broken Windows program.
    """
    if not plain.startswith(b"MZ"):
        return plain
    try:
        (headers,) = struct.unpack_from("<I", plain, 60)
        count, size = struct.unpack_from("<6xH12xH", plain, headers)
        table = headers + 24 + size
        sections = [
            _SECTION.unpack_from(plain, table + index * _SECTION.size) for index in range(count)
        ]
    except struct.error:
        raise RefusedError("not a Windows program: its headers are cut short") from None
    parts = [(at, at + size) for name, _, _, size, at, *_ in sections if name != _PERSONA and at]
    if not parts:
        raise RefusedError("not a Windows program: it has no sections")
    return plain[min(parts)[0] : max(end for _, end in parts)]
