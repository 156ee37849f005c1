"""What kie4o costs, measured: each module is a program of its own."""
