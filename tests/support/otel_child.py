"""A process that receives callbacks for the clients on a store: `otel_child.py STORE BASE_URL WEBHOOK_KEY`.

It writes its port. Once its standard input ends, it writes its spans as a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

import attrs
from aiohttp import web
from aiohttp.typedefs import Handler
from canary import CANARY_KEY
from spans import Recorder

from kie4o import AsyncKieClient
from kie4o.webhooks import routes

PATH = "/kie/callback"


async def main(store: str, base_url: str, webhook_key: str) -> None:
    recorder = Recorder("process 2")

    @web.middleware
    async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
        with recorder.span(f"{request.method} {request.path}"):
            return await handler(request)

    async with AsyncKieClient(CANARY_KEY, base_url=base_url, store=store, webhook_key=webhook_key) as client:
        recorder.instrument(client)
        application = web.Application(middlewares=[traced])
        application.add_routes(routes(client, PATH))
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await runner.cleanup()
    assert recorder.open == 0
    print(json.dumps([attrs.asdict(span) for span in recorder.spans()]), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
