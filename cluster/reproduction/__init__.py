"""Published results, and the runs that are put beside them."""
