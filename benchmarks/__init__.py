"""What search costs, measured beside what it is compared with; `make bench-search` runs it."""
