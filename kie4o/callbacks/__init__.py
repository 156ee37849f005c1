"""What Kie posts to a callback URL. Pure up to here: `delivery` knows stores and the poller."""

from .parsing import MAX_BODY, SIGNATURE_HEADER, TIMESTAMP_HEADER, TOLERANCE, parse_callback, sign_callback

__all__ = ["MAX_BODY", "SIGNATURE_HEADER", "TIMESTAMP_HEADER", "TOLERANCE", "parse_callback", "sign_callback"]
