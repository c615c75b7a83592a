"""What a run leaves on storage: its directory, checkpoints and events, and the rules about them."""
