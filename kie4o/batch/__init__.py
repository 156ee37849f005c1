"""Batches: many keyed generates, whose requests a later run finds in the store under the same keys.

`items` takes the requests of a caller one by one and gives them their keys, `batch` runs them within their
`budget`, and `resumption` waits for what an earlier run left unfinished. `elsewhere` has the items on which
another process works. `completions` says what became of an item. `tasks` owns the tasks of a run.

A batch, a resumption and their parts are plain objects, not async generators. An event loop closes every
async generator that it collects, or that is left when it ends, all at the same time: if one of them closes
another one too, that fails. The only generators are the methods of the client.
"""
