"""kie4o: one await turns a prompt into images; ten thousand run side by side without paying twice.

The names in `__all__` are public; everything else is internal. They are loaded on first use, so that
`kie4o.callbacks` needs no aiohttp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .arguments import OnUnknown
    from .callbacks import parse_callback, sign_callback
    from .callbacks.receiving import CallbackReceiver
    from .client import AsyncKieClient
    from .details import TaskDetails, TaskState
    from .errors import (
        APIConnectionError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        CallbackError,
        ConfigurationError,
        ContentPolicyError,
        CreditLimitError,
        DownloadError,
        FeatureDisabledError,
        ImageUnavailableError,
        InputImageError,
        InsufficientCreditsError,
        InternalServerError,
        InvalidRequestError,
        InvalidSignatureError,
        KeyConflictError,
        KeyLimitError,
        KieError,
        MaintenanceError,
        MalformedCallbackError,
        NoImagesError,
        NotFoundError,
        PermissionDeniedError,
        QueueFullError,
        RateLimitError,
        StoreError,
        StoreLockedError,
        SubmissionUnknownError,
        TaskError,
        TaskFailedError,
        TaskNotFoundError,
        TaskTimeoutError,
        UnexpectedResponseError,
        UnprocessableEntityError,
    )
    from .files.memory import Image
    from .image_request import FallbackModel, ImageRequest, RequestFields, Size, UploadedFile, Variants
    from .models import Callback, Completion, Exists, ImageResult, RateLimit
    from .polling.policy import PollPolicy
    from .polling.poller import TaskPoller
    from .polling.watches import OnUpdate
    from .pricing import Prices, Spent
    from .state import ClientState
    from .stores.store import Entry, EntryState, Store
    from .task import ImageTask

_HOMES = {
    "AsyncKieClient": "client",
    "CallbackReceiver": "callbacks.receiving",
    "ClientState": "state",
    "Entry": "stores.store",
    "EntryState": "stores.store",
    "Store": "stores.store",
    "FallbackModel": "image_request",
    "Image": "files.memory",
    "ImageRequest": "image_request",
    "ImageTask": "task",
    "OnUnknown": "arguments",
    "RequestFields": "image_request",
    "Size": "image_request",
    "UploadedFile": "image_request",
    "Variants": "image_request",
    "OnUpdate": "polling.watches",
    "PollPolicy": "polling.policy",
    "TaskPoller": "polling.poller",
    "Prices": "pricing",
    "Spent": "pricing",
    "TaskDetails": "details",
    "TaskState": "details",
    "parse_callback": "callbacks",
    "sign_callback": "callbacks",
}  # every other name is an error by its ending, or a value

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncKieClient",
    "AuthenticationError",
    "BadRequestError",
    "Callback",
    "CallbackError",
    "CallbackReceiver",
    "ClientState",
    "Completion",
    "ConfigurationError",
    "ContentPolicyError",
    "CreditLimitError",
    "DownloadError",
    "Entry",
    "EntryState",
    "Exists",
    "FallbackModel",
    "FeatureDisabledError",
    "Image",
    "ImageRequest",
    "ImageResult",
    "ImageTask",
    "ImageUnavailableError",
    "InputImageError",
    "InsufficientCreditsError",
    "InternalServerError",
    "InvalidRequestError",
    "InvalidSignatureError",
    "KeyConflictError",
    "KeyLimitError",
    "KieError",
    "MaintenanceError",
    "MalformedCallbackError",
    "NoImagesError",
    "NotFoundError",
    "OnUnknown",
    "OnUpdate",
    "PermissionDeniedError",
    "PollPolicy",
    "Prices",
    "QueueFullError",
    "RateLimit",
    "RateLimitError",
    "RequestFields",
    "Size",
    "Spent",
    "Store",
    "StoreError",
    "StoreLockedError",
    "SubmissionUnknownError",
    "TaskDetails",
    "TaskError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskPoller",
    "TaskState",
    "TaskTimeoutError",
    "UnexpectedResponseError",
    "UnprocessableEntityError",
    "UploadedFile",
    "Variants",
    "__version__",
    "parse_callback",
    "sign_callback",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "errors" if name.endswith("Error") else "models")
    value = globals()[name] = getattr(importlib.import_module(f".{home}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
