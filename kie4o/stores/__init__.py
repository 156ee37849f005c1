"""What the client remembers: the promise (`store`), its forms, and the ledger that writes in them."""
