"""The routes of an emulator, read from the application that serves them: it has no public list of them."""

from kie4o.emulator import Emulator


def routes_of(kie: Emulator) -> set[tuple[str, str]]:
    """Each method with the path it is for, placeholders in braces: ("GET", "/s/{name}")."""
    return {
        (route.method, route.resource.canonical)
        for route in kie._app().router.routes()
        if route.resource is not None and route.method != "HEAD"  # aiohttp adds it to each GET
    }
