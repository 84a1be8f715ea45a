"""How an interval's width is said: in percent, or as no figure at all where it leaves none a meaning."""

from __future__ import annotations

__all__ = ["CANNOT_TELL", "plus_minus", "spread_percent", "too_wide"]

CANNOT_TELL = "cannot tell"
"""What stands for a figure whose interval is too wide for it to be one."""

_USEFUL = 2.0
"""Factor on either side of a ratio within which an interval leaves it a meaning: beyond, half or twice the figure is as
likely as the figure, and one would do as well to guess. A fourfold span decides nothing that anybody asks."""
_WIDEST = (_USEFUL - 1 / _USEFUL) / 2
"""The same as a relative half-width, ±75%: that of the interval [x / 2, 2 x]."""


def too_wide(half_width: float | None) -> bool:
    """Whether a relative half-width (0.02 is ±2%) leaves a figure without a meaning; without an interval it is not."""
    return half_width is not None and half_width > _WIDEST  # NaN compares false


def plus_minus(half_width: float, digits: str = ".1%") -> str:
    """Return a relative half-width as in `±2.0%`, or `cannot tell` where it is too wide."""
    return CANNOT_TELL if too_wide(half_width) else f"±{half_width:{digits}}"


def spread_percent(share: float) -> str:
    """Return a spread between ratios as in `12%`; beyond a fourfold one, how much it is says nothing any more."""
    most = _USEFUL**2 - 1
    return f"{share:.0%}" if share <= most else f"more than {most:.0%}"
