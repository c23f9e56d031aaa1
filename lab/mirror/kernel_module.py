"""Kernel module files as far as kmod's tools read them: an ELF object with a `.modinfo` section.

The kernel of the machine below never loads them. Real `depmod`, `modinfo` and `modprobe --show-depends` accept them.
"""

import lzma
import struct
from collections.abc import Iterable, Mapping

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_PROGBITS, _STRTAB = 1, 3
_ALLOCATED = 2


def module_image(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a relocatable x86-64 ELF object with these `.modinfo` fields, in order (fields may repeat)."""
    modinfo = b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields)
    names = b"\0.modinfo\0.shstrtab\0"
    modinfo_at = _ELF_HEADER.size
    names_at = modinfo_at + len(modinfo)
    sections_at = -(-(names_at + len(names)) // 8) * 8
    header = _ELF_HEADER.pack(
        b"\x7fELF\x02\x01\x01" + bytes(9), 1, 62, 1, 0, 0, sections_at, 0, _ELF_HEADER.size, 0, 0, 64, 3, 2
    )
    sections = (
        bytes(_SECTION_HEADER.size)
        + _SECTION_HEADER.pack(1, _PROGBITS, _ALLOCATED, 0, modinfo_at, len(modinfo), 0, 0, 1, 0)
        + _SECTION_HEADER.pack(10, _STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0)
    )
    return (header + modinfo + names).ljust(sections_at, b"\0") + sections


def read_modinfo(image: bytes) -> Mapping[str, str]:
    """Return the fields of a module's `.modinfo`, the first value of each; the module may be xz-compressed.

    Raises ValueError for anything but a 64-bit ELF object with such a section.
    """
    if image.startswith(b"\xfd7zXZ"):
        image = lzma.decompress(image)
    if not image.startswith(b"\x7fELF\x02\x01"):
        raise ValueError("not a 64-bit little-endian ELF object")
    try:
        header = _ELF_HEADER.unpack_from(image)
        sections = [_SECTION_HEADER.unpack_from(image, header[6] + 64 * index) for index in range(header[12])]
        names_at = sections[header[13]][4]
        for name, _, _, _, offset, size, *_ in sections:
            if image[names_at + name :].startswith(b".modinfo\0"):
                return _fields(image[offset : offset + size])
    except (struct.error, IndexError) as error:
        raise ValueError(f"a damaged ELF object: {error}") from error
    raise ValueError("an ELF object without .modinfo")


def _fields(modinfo: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in modinfo.decode(errors="replace").split("\0"):
        key, separator, value = entry.partition("=")
        if separator:
            found.setdefault(key, value)
    return found
