"""What travels between us and Kie, as values and bytes. Pure: nothing in this room opens anything."""
