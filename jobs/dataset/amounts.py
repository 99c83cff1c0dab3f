"""Amounts as people read them. Standard library only."""

_KILO = 1000
# From here on three digits would be written as 1e+03.
_ROUNDED_UP = 999.5


def size(count: float) -> str:
    """Bytes: 312 B · 4.45 MB · 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < _ROUNDED_UP:
            return f"{count:.3g} {unit}"
        count /= _KILO
    return f"{count:.3g} GB" if count < _ROUNDED_UP else f"{count:,.0f} GB"


def duration(seconds: float) -> str:
    """Seconds: 0.04 s · 12.5 s · 3 min 20 s · 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def percent(share: float) -> str:
    """A share of 1, never rounded to all or nothing: 12.3 % · < 0.1 % · 99.97 %."""
    per_cent = 100 * share
    if 0 < per_cent < 0.05:  # noqa: PLR2004 - what would be written as 0.0
        return "< 0.1 %"
    if 99 <= per_cent < 100:  # noqa: PLR2004 - the last per cent is where row use is decided
        return f"{min(per_cent, 99.99):.2f} %"
    return f"{per_cent:.0f} %" if per_cent in (0, 100) else f"{per_cent:.1f} %"


def several(count: float, noun: str) -> str:
    """A count with its noun: 1 file · 2,048 files."""
    return f"{count:,.0f} {noun}" if count == 1 else f"{count:,.0f} {noun}s"
