"""Looking on while training runs: where time goes, who is slow, what hangs."""
