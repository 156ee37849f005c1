"""What the client remembers of every submit.

`store` says what any store must do, `memory` and `sqlite` are the two stores, `choosing` turns the `store=`
argument into one. `ledger` is the only writer of entries: every other package reads from the store and writes
through the ledger. `shared` is what a store may offer when several processes use it at once.
"""
