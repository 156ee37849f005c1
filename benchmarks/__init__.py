"""What kie4o costs, measured: `python -m benchmarks`; `limiter` and `store` are programs of their own."""
