"""Decoding a whole image with Pillow, which is optional and imported on first use.

That finds damage which no checksum shows, as far as the decoder reports it. Those of PNG and GIF are strict.
Those of JPEG and WebP make a picture of most broken data: a zeroed stretch in the middle is reported for 2
to 11 JPEGs of 100, and for none to nearly all WebP images, depending on the picture.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from ..errors import ConfigurationError
from .disk import in_thread_or_here
from .images import Suffix

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


class TooManyPixels(Exception):
    """The image would take too much memory to decode."""

    def __init__(self) -> None:
        super().__init__("it has more pixels than Pillow decodes (PIL.Image.MAX_IMAGE_PIXELS)")


async def require_pillow() -> None:
    """Import Pillow, in a thread. Raises `ConfigurationError` if it is not installed."""
    try:
        await in_thread_or_here(_plugins)
        return
    except ImportError:
        pass
    raise ConfigurationError("verify=True needs Pillow, which is not installed: pip install pillow")


def decode(file: str | IO[bytes], suffix: Suffix) -> None:
    """Decode every frame of the image; blocks. Raises `TooManyPixels`, or whatever Pillow raises.

    All frames together may have as many pixels as Pillow allows for one image
    (`PIL.Image.MAX_IMAGE_PIXELS`). It is opened by the class for its format, because `Image.open` warns
    of large images, and a warning cannot be handled in a thread.
    """
    from PIL import Image

    left = Image.MAX_IMAGE_PIXELS or float("inf")
    try:
        with _plugins()[suffix](file) as image:
            for frame in range(getattr(image, "n_frames", 1)):
                image.seek(frame)
                left -= image.width * image.height
                if left < 0:
                    raise TooManyPixels
                image.load()
    except Image.DecompressionBombError:
        raise TooManyPixels from None


def _plugins() -> dict[Suffix, type[ImageFile]]:
    from PIL import GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    return {
        "png": PngImagePlugin.PngImageFile,
        "jpg": JpegImagePlugin.JpegImageFile,
        "webp": WebPImagePlugin.WebPImageFile,
        "gif": GifImagePlugin.GifImageFile,
    }
