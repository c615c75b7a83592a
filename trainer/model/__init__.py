"""The classifier: backbone, class-activation maps, BoostLU."""
