"""The cluster itself: joining it, what it has, what would fit."""
