"""Bytes in words."""

GIB = 1 << 30


def gib(size: int) -> str:
    """1610612736 -> '1.5 GiB'."""
    return f"{size / GIB:.1f} GiB"
