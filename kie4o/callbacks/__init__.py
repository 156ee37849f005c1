"""Callbacks: parsed (pure, loads neither aiohttp nor cattrs), delivered to the waiting callers, received.

`parsing` is all that `kie4o.parse_callback` needs. `delivery` knows the store and the poller, `receiving`
turns an HTTP request into a delivery.
"""

from .parsing import MAX_BODY, SIGNATURE_HEADER, TIMESTAMP_HEADER, TOLERANCE, parse_callback, sign_callback

__all__ = ["MAX_BODY", "SIGNATURE_HEADER", "TIMESTAMP_HEADER", "TOLERANCE", "parse_callback", "sign_callback"]
