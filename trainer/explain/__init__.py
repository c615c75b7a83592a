"""What a trained model sees: activation maps over images, and how two models compare."""
