"""The store in PostgreSQL, which several processes and machines share.

`address` is its URL, `database` sends statements until they are answered, `schema` creates the tables and
functions, whose SQL is in `sql/`, and `process` is the lease of this process.
"""
