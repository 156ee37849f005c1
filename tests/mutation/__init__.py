"""Mutants: small faults put into a copy of kie4o, one at a time, which the tests of its line must see."""
