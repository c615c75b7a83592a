"""Files that run a configuration on Compose, Kubernetes or a cloud."""
