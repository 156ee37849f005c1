"""Waiting for tasks: when to check on them, in which order, and what their outcome is.

A *look* is one status check of one task (Kie's record-info page). `policy`, `planning` and `learning`
say when to look, `trust` whether callbacks make most looks needless, `schedule` which task is next, and
`watches` who waits for it; `poller` ties them together. `sharing` is for tasks that other processes wait for
as well, and `reports` is what is logged. `outcome` turns the last details of a task into its images or its
error.
"""
