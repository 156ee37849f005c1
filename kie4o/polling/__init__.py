"""Waiting for tasks: when to look (pure), whose turn it is, and who is told."""
