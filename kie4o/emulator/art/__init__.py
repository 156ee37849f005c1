"""The pictures that the emulator serves: scenes drawn from the words of a prompt.

`scenes` reads the words, without Pillow. `painting` draws a scene on a `sheet`: first the sky, then one of
`grounds`, the `things` (with a `pen`) that stand there, and at last one of `styles` goes over the whole.
"""
