"""A headless Chromium, driven by its DevTools protocol over a websocket on loopback.

Nothing is downloaded: without an installed one `CHROMIUM` is None, and the tests that need it are skipped.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse
from portable import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "needs an installed Chromium (apt-get install chromium)"

_FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """One page of the browser.

    `complaints` has what its console says is wrong: exceptions, failed loads, violations of the policy.
    `urls` has every URL that it asked for.
    """

    def __init__(self, socket: ClientWebSocketResponse, pid: int = 0) -> None:
        self.pid = pid  # of the browser
        self.complaints: list[str] = []
        self.urls: list[str] = []
        self._socket = socket
        self._session: str | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def open(self, url: str) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def send(self, method: str, **params: Any) -> Any:
        number = len(self._answers) + 1
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": self._session} if self._session else {}))
        return await asyncio.wait_for(self._answers[number], PATIENCE)

    async def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        answer = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(PATIENCE):
            while not await self.run(script):
                await asyncio.sleep(0.05)

    async def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            shown = text if kind == "keyDown" else {}
            await self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **shown
            )

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def goto(self, url: str) -> None:
        """Open another page in the same browser."""
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window and the colours that the user prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.send("Emulation.setDeviceMetricsOverride", **size)

    async def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A picture of the whole page, or of what the window shows."""
        taken = await self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    async def listen(self) -> None:
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                future = self._answers[event["id"]]
                if not future.done():
                    future.set_result(event.get("result") or event.get("error"))
            else:
                self._note(event["method"], event["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@contextlib.asynccontextmanager
async def open_page(url: str, profile: Path) -> AsyncIterator[Page]:
    """A page of a new browser, whose files are in the folder `profile`."""
    root = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM),
        *_FLAGS,
        *root,
        f"--user-data-dir={profile}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        address = await asyncio.wait_for(_address(process), PATIENCE)
        drain = asyncio.create_task(_drain(process))
        async with ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            page = Page(socket, process.pid)
            listening = asyncio.create_task(page.listen())
            try:
                await page.open(url)
                yield page
            finally:
                with contextlib.suppress(Exception):
                    await page.send("Browser.close")
                listening.cancel()
                drain.cancel()
                await asyncio.gather(listening, drain, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    """Where the browser listens, as it says."""
    assert process.stderr is not None
    said = b""
    while line := await process.stderr.readline():
        said += line
        if found := re.search(rb"DevTools listening on (ws://127\.0\.0\.1:\S+)", line):
            return found[1].decode()
    raise RuntimeError(f"the browser did not start: {said.decode(errors='replace')}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass
