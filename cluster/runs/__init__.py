"""One run on Ray: its workers, its coordinator, attempts and what comes between."""
