"""What travels between kie4o and Kie, as values and bytes. Pure: no module of this room does I/O, reads a
clock or keeps anything between two calls but compiled converters."""
