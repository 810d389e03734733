"""Names of Linux capabilities: include/uapi/linux/capability.h, up to 6.12 (CAP_LAST_CAP is 40)."""

from __future__ import annotations

NAMES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE"),
    *("CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER"),
    *("CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT"),
    *("CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME"),
    *("CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL"),
    *("CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM"),
    *("CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"),
)

_FEWEST = 38


def is_all(mask: int) -> bool:
    """Whether a bit mask has every capability of its kernel: there are 38 since 3.16, and more since."""
    return mask.bit_length() >= _FEWEST and mask & (mask + 1) == 0


def names(mask: int) -> list[str]:
    """The capabilities of a bit mask; those without a name here as ``CAP_41``."""
    bits = (bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    return [NAMES[bit] if bit < len(NAMES) else f"CAP_{bit}" for bit in bits]
