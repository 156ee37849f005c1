"""Carries out faults: what they make of an answer, and how its bytes reach the connection.

`Delivery` is two middlewares. One resets connections before a body is read. The other lets a request be
handled, unless it is a submit that is not charged, and deforms the answer. An answer that only says something
else is an ordinary response of aiohttp. A fault of the connection is a script of bytes, pauses and an end,
which is written to the transport; such a connection is not used again.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import json
import math
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import attrs
from aiohttp import web

from .account import Account
from .envelopes import ANSWER, SEEN, api_envelope, api_key, upload_envelope
from .fault_queue import Faults
from .faults import Arrival, Fault, Kind
from .files import IMAGE_PATH
from .magic import MARK
from .tasks import Answer, Task
from .uploads import SOURCES
from .variants import FRAMINGS, IMAGES, PAGES, RECORDS, STATES, Message, retry_after

PIECES = 20  # of an answer that drips
_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # close with RST, now

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Host(Protocol):
    """What delivery needs of an emulator. Times are in emulated seconds."""

    speed: float
    epoch: float
    status_429: int
    faults: Faults
    chance: random.Random

    def all_tasks(self) -> Mapping[str, Task]: ...

    def now(self) -> float: ...

    def has_planned_answers(self) -> bool: ...

    def account_of(self, key: str) -> Account | None: ...

    async def delay_submit(self) -> None: ...

    def refuse_if_due(self) -> bool: ...


class End(enum.Enum):
    """How a connection ends after what was written to it."""

    CLOSE = "FIN"
    RESET = "RST"
    NEVER = "it stays open"


Step = bytes | float | End


@attrs.define(eq=False)
class Delivery:
    """The faults of one emulator, as middlewares. `kinds` are those of requests, by method and route."""

    _host: Host
    _kinds: Mapping[tuple[str, str], Kind]
    _closing: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def open(self) -> None:
        """Hold connections, from now on, that a fault keeps open."""
        self._closing = asyncio.Event()

    def close(self) -> None:
        """Let go of them."""
        self._closing.set()

    @web.middleware
    async def reset_unread(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Reset the connection before the body is read, if a fault says so."""
        kind = self._kind(request)
        if kind and self._host.faults:
            arrival = self._arrival(kind, _task_id(request))
            if self._host.faults.take_unread(arrival, self._host.chance):
                return await self._play(request, [End.RESET])
        return await handler(request)

    @web.middleware
    async def misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle the request, with the fault that is for it."""
        kind = self._kind(request)
        if kind == "submit":
            response = await self._submit(request, handler)
        elif kind and self._host.faults:
            response = await self._read(kind, request, handler)
        else:
            return await handler(request)
        if self._host.refuse_if_due():
            response.force_close()
        return response

    # -- what happens to a request ---------------------------------------------------------------

    async def _submit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A submit: its fault is chosen first, since it decides whether the task is created."""
        host, sent = self._host, await request.read()
        if not (host.faults or host.has_planned_answers() or MARK in sent):
            return await handler(request)
        body = _json_object(sent)
        arrival = Arrival(kind="submit", at=host.now(), prompt=_text(body.get("prompt")), body=body)
        firing = host.faults.take(arrival, host.chance)
        account = host.account_of(api_key(request))  # None: the key is refused, whatever is planned
        planned = account.planned_answer(body) if account and not firing else None
        fault = firing.fault if firing else planned
        if fault is None:
            return await handler(request)
        if not fault.charges:
            await host.delay_submit()
            return await self._deliver(request, fault, "submit", None)
        response = await handler(request)
        if request[ANSWER].code != 200:  # refused, as Kie does: there is nothing to charge
            if firing:
                firing.undo()
            return response
        return await self._deliver(request, fault, "submit", response)

    async def _read(self, kind: Kind, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Any other request: it is handled in any case, and its fault depends on the true answer."""
        response = await handler(request)
        task_id = _task_id(request)
        if kind == "link":
            task_id = _text(_json_object(await request.read()).get("taskId"))
        arrival = self._arrival(kind, task_id)
        firing = self._host.faults.take(
            arrival, self._host.chance, lambda fault: _is_ready(fault, request, response)
        )
        return response if firing is None else await self._deliver(request, firing.fault, kind, response)

    def _kind(self, request: web.Request) -> Kind | None:
        resource = request.match_info.route.resource
        return self._kinds.get((request.method, resource.canonical)) if resource else None

    def _arrival(self, kind: Kind, task_id: str | None) -> Arrival:
        task = self._host.all_tasks().get(task_id or "")
        prompt = _text(task.request.get("prompt")) if task else None
        return Arrival(kind=kind, at=self._host.now(), prompt=prompt, task=task_id)

    # -- what is sent ----------------------------------------------------------------------------

    async def _deliver(
        self, request: web.Request, fault: Fault, kind: Kind, true: web.StreamResponse | None
    ) -> web.StreamResponse:
        if SEEN in request:
            request[SEEN].fault = fault
        if true is None or not isinstance(true, web.Response):
            true = _envelope(kind, Answer(500))
        answer = self._answer(request, fault, kind, true)
        if fault.framing and FRAMINGS[fault.framing].follows:
            await answer.prepare(request)
            await answer.write_eof()
            if request.transport is not None:
                request.transport.write(FRAMINGS[fault.framing].write(message_of(answer)))
            return answer
        steps = script(fault, message_of(answer))
        return answer if steps is None else await self._play(request, steps)

    def _answer(self, request: web.Request, fault: Fault, kind: Kind, true: web.Response) -> web.Response:
        """What the answer says with this fault."""
        answer = self._words(request, fault, kind, true)
        for name, value in (fault.headers or {}).items():
            answer.headers[name] = value
        if fault.retry_after is not None:
            moment = self._host.epoch + self._host.now()
            answer.headers["Retry-After"] = retry_after(fault.retry_after, moment)
        return answer

    def _words(self, request: web.Request, fault: Fault, kind: Kind, true: web.Response) -> web.Response:
        if fault.code is not None:
            status = fault.http_status or (self._host.status_429 if fault.code == 429 else 200)
            message = () if fault.message is None else (fault.message,)
            return _envelope(kind, Answer(fault.code, *message, http_status=status, data=fault.data))
        if fault.page is not None:
            page = PAGES[fault.page]
            headers = {"Content-Type": page.content_type, **page.headers}
            return web.Response(status=fault.http_status or page.status, body=page.body, headers=headers)
        if fault.body is not None:
            content = fault.body.encode() if isinstance(fault.body, str) else fault.body
            kind_of_text = "text/html" if content.lstrip().startswith(b"<") else "application/json"
            headers = {"Content-Type": kind_of_text}
            return web.Response(status=fault.http_status or 200, body=content, headers=headers)
        if fault.redirect is not None:
            location = str(request.rel_url) if fault.redirect == "self" else fault.redirect
            return web.Response(status=fault.http_status or 302, headers={"Location": location})
        if fault.http_status is not None:
            return web.Response(status=fault.http_status)
        if fault.record is not None:
            request[SEEN].answer = answer = RECORDS[fault.record].change(request[ANSWER].data)
            return _envelope(kind, answer)
        if fault.image is not None:
            image = IMAGES[fault.image]
            headers = {"Content-Type": image.content_type}
            return web.Response(status=image.status, body=image.change(_bytes(true)), headers=headers)
        return true

    async def _play(self, request: web.Request, steps: list[Step]) -> web.Response:
        """Write a script to the connection. What is returned is discarded, as the connection is closed."""
        for step in steps:
            if request.transport is None or request.transport.is_closing():
                break
            if isinstance(step, bytes):
                request.transport.write(step)
            elif isinstance(step, float):
                await asyncio.sleep(step / self._host.speed)
            elif step is End.CLOSE:
                request.transport.close()
            elif step is End.RESET:
                reset(request.transport)
            else:
                await self._closing.wait()
                if request.transport is not None:  # the client may have closed it by now
                    request.transport.close()
        return web.Response()


def script(fault: Fault, message: Message) -> list[Step] | None:
    """What is written to the connection, and when; None if the answer is sent as usual."""
    whole = message.whole()
    if fault.reset is not None:
        return [End.RESET]
    if fault.cut is not None:
        return [whole[: fault.cut], End.CLOSE]
    if fault.stall is not None:
        start, rest = whole[: fault.at or 0], whole[fault.at or 0 :]
        if math.isinf(fault.stall):
            return [start, End.NEVER]
        return [start, float(fault.stall), rest, End.CLOSE]
    if fault.drip is not None:
        return _dripping(whole, len(message.body), fault.drip)
    if fault.framing is not None:
        return [FRAMINGS[fault.framing].write(message), End.CLOSE]
    if fault.open_ended:
        return [message.head("Connection: close") + message.body, End.NEVER]
    return None


def _dripping(whole: bytes, size: int, duration: float) -> list[Step]:
    start = len(whole) - size
    bounds = [start + size * piece // PIECES for piece in range(PIECES + 1)]
    steps: list[Step] = [whole[:start]]
    for first, last in itertools.pairwise(bounds):
        steps += [duration / PIECES, whole[first:last]]
    return [*steps, End.CLOSE]


def message_of(response: web.Response) -> Message:
    """A response as it would be written, before it has headers of framing."""
    headers = tuple((name, value) for name, value in response.headers.items() if name not in _FRAMING)
    return Message(response.status, response.reason, headers, _bytes(response))


_FRAMING = ("Content-Length", "Transfer-Encoding", "Connection", "Date", "Server")


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection with RST; what was not sent yet is lost."""
    connection: socket.socket | None = transport.get_extra_info("socket")  # or what looks like one
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    transport.abort()


def _envelope(kind: Kind, answer: Answer) -> web.Response:
    return upload_envelope(answer) if kind == "upload" else api_envelope(answer)


def _is_ready(fault: Fault, request: web.Request, response: web.StreamResponse) -> bool:
    """Whether the true answer is one that the fault can deform."""
    if fault.record is not None:
        answer = request.get(ANSWER)
        return bool(answer and answer.data and STATES[RECORDS[fault.record].needs](answer.data))
    if fault.image is not None:
        signed = IMAGES[fault.image].signed
        return response.status == 200 and signed in (None, "X-Amz-Signature" in request.query)
    return True


def _task_id(request: web.Request) -> str | None:
    """The task that the URL of a request is about."""
    image = IMAGE_PATH.fullmatch(request.path)
    return image[1] if image else request.query.get("taskId")


def _json_object(text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _bytes(response: web.Response) -> bytes:
    body = response.body
    return bytes(body) if isinstance(body, (bytes, bytearray)) else b""


KIND_OF_UPLOADS: dict[tuple[str, str], Kind] = {("POST", path): "upload" for path in SOURCES}
