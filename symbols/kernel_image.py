"""Kernel files (vmlinuz, unified kernel image, vmlinux) unpacked to the kernel image as linked.

Theory of operation
-------------------
A vmlinuz is both a PE/COFF image (the EFI stub) and a bzImage.  Its setup header
(Documentation/arch/x86/boot.rst) has the place of the compressed kernel: ``payload_offset`` bytes behind the
real-mode sectors.  The payload is an ELF file in one of six compression formats.  Its size (4 bytes) and
relocations may follow, so the decompressors used stop at the end of their stream.  A unified kernel image is
a PE with a vmlinuz in its section ``.linux``.  The ELF file's loadable segments above ``__START_KERNEL_map``,
arranged by address, are the image that `symbols.guest.decode` takes, as it does from RAM, with a KASLR shift
of 0.

Known warts
-----------
* Before 6.15 per-CPU data is a segment at address 0.  It is left out; nothing in it is needed.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from live.core.errors import TargetError
from symbols.placement import START_KERNEL_MAP
from symbols.window import Bytes

MAX_KERNEL = 1 << 30
"""Largest unpacked kernel in bytes; a decompression bomb exceeds it."""

_SETUP_MAGIC_AT = 0x202
_LZ4_BLOCK = 8 << 20
_MIN_PROTOCOL = 0x208
_DAMAGED = "the file is damaged, copy it again"


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel as linked: ``data`` begins at link-time virtual address ``va``, that of ``_text``."""

    data: bytes
    va: int


def is_kernel(view: Bytes) -> bool:
    """Whether a file begins like a kernel: a bzImage, a PE, or an ELF file that is no core."""
    head = bytes(view[:0x210])
    if head.startswith(b"\x7fELF"):
        return head[16:18] != b"\x04\0"
    return head.startswith(b"MZ") or head[_SETUP_MAGIC_AT : _SETUP_MAGIC_AT + 4] == b"HdrS"


def kernel_image(view: Bytes, name: str) -> KernelImage:
    """The kernel in a file; ``name`` is for messages.  Raises `TargetError`."""
    head = bytes(view[:0x260])
    if head.startswith(b"\x7fELF"):
        return _assembled(view, name)
    if head[_SETUP_MAGIC_AT : _SETUP_MAGIC_AT + 4] == b"HdrS":
        return _assembled(_unpacked(_payload(view, head, name), name), name)
    if head.startswith(b"MZ"):
        return kernel_image(_linux_section(view, name), f"the .linux section of {name}")
    raise TargetError(f"{name} is no Linux kernel: give a vmlinuz, a unified kernel image or a vmlinux")


def _payload(view: Bytes, head: bytes, name: str) -> Bytes:
    if len(head) < 0x250:
        raise TargetError(f"{name} ends in its setup header: {_DAMAGED}")
    (protocol,) = struct.unpack_from("<H", head, 0x206)
    offset, length = struct.unpack_from("<II", head, 0x248)
    if protocol < _MIN_PROTOCOL:
        raise TargetError(f"{name} has boot protocol {protocol:#x}, older than 2.6.26: give its vmlinux")
    start = ((head[0x1F1] or 4) + 1) * 512 + offset
    if not length or start + length > len(view):
        raise TargetError(
            f"{name} ends before its compressed kernel ({start + length} bytes needed, {len(view)} there): "
            f"{_DAMAGED}"
        )
    return view[start : start + length]


def _linux_section(view: Bytes, name: str) -> Bytes:
    import pefile  # type: ignore[import-untyped]  # noqa: PLC0415 - no stubs; takes longer to import than most kernels to unpack

    try:
        pe = pefile.PE(data=bytes(view), fast_load=True)
        for section in pe.sections:
            if section.Name.rstrip(b"\0") == b".linux":
                start, size = section.PointerToRawData, section.SizeOfRawData
                # SizeOfRawData includes padding to the file alignment.
                size = min(size, section.Misc_VirtualSize or size)
                inner = view[start : start + size]
                if (
                    bytes(inner[:2]) == b"MZ"
                    and bytes(inner[_SETUP_MAGIC_AT : _SETUP_MAGIC_AT + 4]) != b"HdrS"
                ):
                    break
                return inner
    except (pefile.PEFormatError, struct.error, AttributeError, ValueError, TypeError, IndexError) as error:
        raise TargetError(f"{name} is a damaged PE image ({error}): copy it again") from error
    raise TargetError(
        f"{name} is a PE image without a Linux kernel in it: give a vmlinuz or a unified kernel image"
    )


def _unpacked(payload: Bytes, name: str) -> Bytes:
    head = bytes(payload[:6])
    if head.startswith(b"\x7fELF"):
        return payload
    for magic, what, unpack in _FORMATS:
        if head.startswith(magic):
            try:
                return unpack(payload)
            except TargetError:
                raise
            except (
                OSError,
                EOFError,
                ValueError,
                RuntimeError,
                MemoryError,
                zlib.error,
                lzma.LZMAError,
            ) as error:
                raise TargetError(
                    f"the {what} kernel in {name} does not unpack ({error}): {_DAMAGED}"
                ) from error
    if head.startswith(b"\x89LZO"):
        raise TargetError(f"the kernel in {name} is packed with lzo: unpack it with extract-vmlinux first")
    raise TargetError(f"the kernel in {name} is packed in an unknown way ({head.hex()}): {_DAMAGED}")


def _stream(new: Callable[[], Any]) -> Callable[[Bytes], bytes]:
    """An unpacker with a decompressor object, which stops at the end of the stream and bounds its output."""

    def unpack(payload: Bytes) -> bytes:
        unpacker = new()
        result: bytes = unpacker.decompress(payload, MAX_KERNEL)
        if not unpacker.eof:
            raise EOFError("the stream ends early, or is too long")
        return result

    return unpack


def _lz4(payload: Bytes) -> bytes:
    import lz4.block  # type: ignore[import-untyped]  # noqa: PLC0415 - no stubs; a native library, wanted for some kernels only

    view = memoryview(payload)
    parts: list[bytes] = []
    total = 0
    at = 4
    while at + 4 <= len(view):
        (length,) = struct.unpack_from("<I", view, at)
        if at + 4 + length > len(view) or not length:
            break  # the kernel's size, which follows the stream
        try:
            part = lz4.block.decompress(view[at + 4 : at + 4 + length], uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        parts.append(part)
        total += len(part)
        if total > MAX_KERNEL:
            raise ValueError("too long")
        at += 4 + length
        if len(part) < _LZ4_BLOCK:
            break
    if not parts:
        raise EOFError("no block in it")
    return b"".join(parts)


def _zstd(payload: Bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - a native library, wanted for some kernels only

    try:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 30).stream_reader(payload)
        result: bytes = reader.read(MAX_KERNEL)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return result


_FORMATS: tuple[tuple[bytes, str, Callable[[Bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", _stream(lambda: zlib.decompressobj(31))),
    (b"\xfd7zXZ\0", "xz", _stream(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_KERNEL))),
    (b"\x5d\0\0", "lzma", _stream(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_KERNEL))),
    (b"BZh", "bzip2", _stream(bz2.BZ2Decompressor)),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)


def _assembled(view: Bytes, name: str) -> KernelImage:
    from symbols.elf import load_segments  # noqa: PLC0415 - pyelftools takes long to import

    segments = [one for one in load_segments(view, name) if one.vaddr >= START_KERNEL_MAP]
    if not segments:
        raise TargetError(f"{name} is an ELF file but no Linux kernel: give a vmlinux or a vmlinuz")
    first = min(one.vaddr for one in segments)
    length = max(one.vaddr + one.filesz for one in segments) - first
    if length > MAX_KERNEL:
        raise TargetError(f"{name} claims to need {length} bytes of memory: {_DAMAGED}")
    data = bytearray(length)
    for one in segments:
        data[one.vaddr - first : one.vaddr - first + one.filesz] = view[one.offset : one.offset + one.filesz]
    return KernelImage(bytes(data), first)
