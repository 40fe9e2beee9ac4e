"""Writes byte counts for people."""

GIB = 1 << 30


def gib(size: int) -> str:
    """Writes bytes in GiB: 1610612736 -> '1.5 GiB'."""
    return f"{size / GIB:.1f} GiB"
