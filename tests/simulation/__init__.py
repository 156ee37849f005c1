"""Deterministic simulation: one seed makes a whole world, whose laws are checked when it is over.

A world is an emulated Kie with exact books, and the lives of a program that uses it: one or two clients on
stores of their own, with calls, cancels, crashes and restarts. All of it runs in one thread on one loop in
virtual time, over real sockets of loopback. Nothing is random but what is drawn from the seed.

    loop    virtual time, and lives that end as by `kill -9`
    kie     the emulated Kie: answers, faults, callbacks true and forged, and books of all that
    store   the SQLite store with a worker on the loop instead of its thread
    plan    what happens in a world, drawn from its seed; data
    calls   the calls of the program, and what becomes of them
    run     one life of the program, and how it ends
    play    a plan, played
    laws    what must hold in a world that was played
    shrink  the smallest plan that still breaks a law
    mutants faults put back into kie4o, each of which a world must show

`nox -s simulate -- --seeds 100000` plays many worlds, and `nox -s simulate -- --show SEED` shows one.
"""
