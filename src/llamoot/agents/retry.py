"""When a failed call may be repeated, and after how many seconds. No I/O, no sleeping.

Only what failed before anything was delivered is repeated. Backoff is 0.5 s doubling to 8 s with
up to 25 % taken off at random, so that experts refused together do not come back together.
"""

import calendar
import random
import time
from collections.abc import Mapping

RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is given up
_FORMS = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


def retryable(status: int, headers: Mapping[str, str], code: str = "") -> bool:
    """May this refusal be answered by asking again?"""
    told = headers.get("x-should-retry", "").lower()
    if told in ("true", "false"):
        return told == "true"
    return status in RETRIED and code not in ("insufficient_quota", "billing_hard_limit_reached")


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that the server asks to wait, from its three header forms; None if it does not."""
    text = headers.get("retry-after-ms", "")
    try:
        return max(0.0, float(text) / 1000.0)
    except ValueError:
        text = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    for form in _FORMS:
        try:
            at = calendar.timegm(time.strptime(text, form))
        except ValueError:
            continue
        return max(0.0, at - (time.time() if now is None else now))
    return None


def backoff(attempt: int, asked: float | None = None) -> float | None:
    """Seconds to wait before repeat `attempt` (0, 1, …); None where it is not worth waiting."""
    own = min(8.0, 0.5 * 2.0**attempt) * (1.0 - 0.25 * random.random())
    if not asked:
        return own
    if asked > LONGEST_WAIT:
        return None
    # Never earlier than asked; a little later, for the same reason as above.
    return asked + 0.1 * own
